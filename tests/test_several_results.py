"""Ops with several results: each is a Tensor of its own, and on the way back their cotangents arrive together."""

import weakref

import numpy as np
import pytest

from minivit import Tensor, detect_anomaly, gradcheck, no_grad, op, ops

SEEN = []  # the cotangents that the pullback below was given


@op
def product_and_sum(x, y):
    def pullback(dp, ds):
        SEEN.append((dp, ds))
        return dp * y + ds, dp * x + ds

    return (x * y, x + y), pullback


@pytest.fixture(autouse=True)
def forget():
    SEEN.clear()


def leaves():
    return Tensor([2.0, 3.0], requires_grad=True), Tensor([5.0, 7.0], requires_grad=True)


def test_cotangents_of_both_results_arrive_in_one_call():
    """f = Σ (xy)² (x + y) + xy: ∂f/∂x = (2xy (x + y) + 1) y + (xy)²."""
    x, y = leaves()
    p, s = product_and_sum(x, y)
    (p * s * p + p).sum().backward()
    assert len(SEEN) == 1
    np.testing.assert_array_equal(x.grad, [(20 * 7 + 1) * 5 + 100, (42 * 10 + 1) * 7 + 441])
    np.testing.assert_array_equal(y.grad, [(20 * 7 + 1) * 2 + 100, (42 * 10 + 1) * 3 + 441])


@pytest.mark.parametrize("place", [0, 1])
def test_a_result_that_the_loss_does_not_depend_on_has_a_cotangent_of_zeros(place):
    x, y = leaves()
    product_and_sum(x, y)[place].backward(np.ones(2, np.float32))
    for i, cotangent in enumerate(SEEN[0]):
        np.testing.assert_array_equal(cotangent, [float(i == place)] * 2)
        assert cotangent.dtype == np.float32
    np.testing.assert_array_equal(x.grad, [[5, 7], [1, 1]][place])


def test_each_result_knows_its_op_and_has_its_shape_and_type():
    x, y = leaves()
    results = product_and_sum(x, y)
    assert isinstance(results, tuple)
    assert [(z.node.op, z.node.shape, z.node.dtype, z.requires_grad) for z in results] == [
        ("product_and_sum", (2,), np.float32, True)
    ] * 2


def test_nothing_is_recorded_where_nobody_asks():
    x, y = leaves()
    with no_grad():
        assert all(z.node is None and not z.requires_grad for z in product_and_sum(x, y))
    assert all(z.node is None for z in product_and_sum(Tensor([1.0]), Tensor([2.0])))


def test_a_graph_serves_one_backward():
    x, y = leaves()
    p, s = product_and_sum(x, y)
    p.sum().backward()
    with pytest.raises(RuntimeError, match="went through this graph before"):
        s.sum().backward()


def test_what_the_pullback_keeps_dies_with_the_walk():
    log = []

    @op
    def twice(x):
        held = np.ones(2)
        log.append(weakref.ref(held))
        return (x + 0, x + 0), lambda dy, dz: (dy + dz) * held.mean()

    x, _ = leaves()
    y, z = twice(x)
    (y + z).sum().backward()
    assert log[0]() is None
    np.testing.assert_array_equal(x.grad, [2, 2])


def test_an_anomaly_in_one_of_the_results_or_on_the_way_back_is_found():
    @op
    def bad(x):
        return (x + 0, x / 0), lambda dy, dz: dy + dz

    @op
    def bad_back(x):
        return (x + 0, x + 0), lambda dy, dz: dy / 0

    x, _ = leaves()
    with detect_anomaly(), np.errstate(divide="ignore"):
        with pytest.raises(FloatingPointError, match="2 of 2 values are not finite in the forward pass of bad"):
            bad(x)
        y, _ = bad_back(x)
        with pytest.raises(FloatingPointError, match="2 of 2 values are not finite in the backward pass of bad_back"):
            y.sum().backward()


def test_a_residual_connection_and_its_norm_are_the_two_ops_one_after_the_other():
    """To the last bit on a CPU, values and gradients, whichever of the results the loss depends on."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 5, 8), (3, 5, 8), (8,), (8,))]

    def run(together, factors):
        x, branch, weight, bias = tensors = [Tensor(array, requires_grad=True) for array in arrays]
        if together:
            y, z = ops.add_layer_norm(x, branch, weight, bias)
        else:
            z = x + branch
            y = ops.layer_norm(z, weight, bias)
        loss = (y * factors[0]).sum() + (z * factors[1]).sum()
        loss.backward()
        return [y.data, z.data, *(t.grad for t in tensors)]

    for factors in ((1.5, 0.5), (1.5, 0.0), (0.0, 0.5)):
        factors = [f * rng.standard_normal((3, 5, 8)).astype(np.float32) for f in factors]
        for ours, theirs in zip(run(True, factors), run(False, factors)):
            np.testing.assert_array_equal(ours, theirs)


def test_gradcheck_of_several_results_gets_a_sentence():
    with pytest.raises(TypeError, match="a function of one result, a Tensor, got a tuple"):
        gradcheck(product_and_sum, np.ones(2), np.ones(2))
    gradcheck(lambda x, y: ops.concatenate(*product_and_sum(x, y)), np.ones(2), np.ones(2))


def test_a_sum_of_arrays_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"add_layer_norm adds arrays of one shape, got \(2, 3\) and \(3,\)"):
        ops.add_layer_norm(Tensor(np.ones((2, 3))), Tensor(np.ones(3)), Tensor(np.ones(3)), Tensor(np.ones(3)))
