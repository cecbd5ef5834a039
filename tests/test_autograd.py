import threading
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minivit import Parameter, Tensor, gradcheck, op, ops
from minivit.autograd import unbroadcast
from tests.strategies import generators


def leaf(*numbers):
    return Tensor(list(numbers), requires_grad=True)


# Graphs of any form.


def test_diamond():
    x = leaf(2.0)
    y = x * x
    (y * y + y).sum().backward()  # x⁴ + x²
    np.testing.assert_array_equal(x.grad, [4 * 8 + 2 * 2])


def test_one_tensor_as_every_argument():
    x = leaf(3.0)
    (x * x + x / x - x).sum().backward()
    np.testing.assert_allclose(x.grad, [2 * 3 - 1], rtol=1e-6)


def test_two_heads_on_a_trunk():
    x = leaf(1.0, 2.0)
    trunk = x * x
    (trunk.sum() + (trunk * 3).sum()).backward()
    np.testing.assert_array_equal(x.grad, 4 * 2 * x.data)


def test_a_short_and_a_long_way():
    """The long branch must have arrived at x before x passes on what it received."""
    x = leaf(1.0)
    y = x * 2
    long = y
    for _ in range(10):
        long = long + 1
    (y * long).sum().backward()  # 2x (2x + 10)
    np.testing.assert_array_equal(x.grad, [8 * 1 + 20])


@given(generators, st.integers(1, 12))
def test_any_graph(rng, size):
    """Random graphs of operations on three leaves that broadcast against one another, against central differences."""
    plan = [(rng.integers(5), *rng.integers(3 + i, size=2)) for i in range(size)]
    steps = [
        lambda a, b: (a + b) * 0.5,
        lambda a, b: a * b,
        lambda a, b: a - b,
        lambda a, b: (-(a * a)).exp(),
        lambda a, b: a / (b * b + 1),
    ]

    def graph(*leaves):
        made = list(leaves)
        for step, i, j in plan:
            made.append(steps[step](made[i], made[j]))
        return sum(made)

    assert gradcheck(graph, *(rng.uniform(-1, 1, shape) for shape in [(), (3,), (2, 1)])) < 1e-7


def test_a_chain_of_any_length_needs_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(5000):
        y = y * 1.0
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [1])


def test_a_long_chain_may_be_dropped_without_backward():
    y = leaf(1.0)
    for _ in range(50_000):
        y = y + 1
    del y


def test_threads_have_their_own_graphs():
    gradients = {}

    def work(number):
        x = leaf(float(number))
        y = x
        for _ in range(200):
            y = y + x
        y.sum().backward()
        gradients[number] = x.grad.item()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gradients == dict.fromkeys(range(4), 201.0)


# Broadcasting.


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3), generators)
def test_unbroadcast_is_the_transpose_of_broadcasting(shapes, rng):
    """⟨g, broadcast(x)⟩ = ⟨unbroadcast(g), x⟩."""
    x = rng.standard_normal(shapes.input_shapes[0])
    g = rng.standard_normal(shapes.result_shape)
    pulled = unbroadcast(g, x.shape)
    assert pulled.shape == x.shape
    np.testing.assert_allclose((g * np.broadcast_to(x, g.shape)).sum(), (pulled * x).sum(), rtol=1e-9, atol=1e-11)
    assert unbroadcast(x, x.shape) is x


@pytest.mark.parametrize(("given_shape", "shape"), [((3,), (2,)), ((3,), (2, 3)), ((2, 3), (3, 1)), ((1,), (2,))])
def test_a_cotangent_that_does_not_fit(given_shape, shape):
    with pytest.raises(ValueError, match=r"a pullback gave a cotangent of shape .* for an argument of shape"):
        unbroadcast(np.ones(given_shape), shape)
    with pytest.raises(ValueError, match=r"a pullback gave a cotangent of shape .* for an argument of shape"):
        x = Tensor(np.ones(shape), requires_grad=True)
        op(lambda x: (x * 1, lambda dy: np.ones(given_shape)))(x).sum().backward()


# What backward asks for.


def test_backward_starts_from_one_number_or_a_gradient():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"starts from a single number, the loss; this Tensor has shape \(2,\)"):
        (x * x).backward()
    with pytest.raises(ValueError, match=r"gradient has shape \(3,\), the Tensor \(2,\)"):
        (x * x).backward(np.ones(3))
    (x * x).backward(np.array([1.0, 10.0], np.float32))
    np.testing.assert_array_equal(x.grad, [2, 40])


def test_any_tensor_of_one_element_is_a_loss():
    x = Tensor([[3.0]], requires_grad=True)
    (x * x).backward()
    np.testing.assert_array_equal(x.grad, [[6]])


def test_a_graph_serves_one_backward():
    x = leaf(1.0)
    trunk = x * x
    loss, other = trunk.sum(), (trunk * 2).sum()
    loss.backward()
    for again in (loss, other):
        with pytest.raises(RuntimeError, match="went through this graph before, and freed it"):
            again.backward()


def test_nothing_to_go_back_through():
    for y in (Tensor([1.0]), Tensor([1.0]) * 2, leaf(1.0).detach() * 2, Parameter([1.0], requires_grad=False) * 2):
        with pytest.raises(RuntimeError, match="no input of this computation has requires_grad=True"):
            y.backward()


def test_backward_of_a_leaf():
    x = leaf(2.0)
    x.backward()
    np.testing.assert_array_equal(x.grad, [1])


# Gradients.


def test_gradients_add_up_in_place():
    x = leaf(1.0, 2.0)
    (x * 3).sum().backward()
    buffer = x.grad
    (x * 4).sum().backward()
    assert x.grad is buffer
    np.testing.assert_array_equal(buffer, [7, 7])


def test_gradients_are_added_to_a_view_of_a_flat_buffer():
    flat = np.zeros(4, np.float32)
    x, scale = leaf(1.0, 2.0), Tensor(np.float32(3), requires_grad=True)
    x.grad, scale.grad = flat[:2], flat[2:3].reshape(())
    (x * scale).sum().backward()
    np.testing.assert_array_equal(flat, [3, 3, 3, 0])


def test_gradients_never_share_memory():
    """add hands one array to both sides, sum a view to all elements, reshape a view."""
    x, y, z = leaf(1.0, 2.0), leaf(3.0, 4.0), Tensor([[5.0, 6.0]], requires_grad=True)
    (x + y + z.reshape(2)).sum().backward()
    gradients = [x.grad, y.grad, z.grad]
    for i, gradient in enumerate(gradients):
        assert gradient.flags.writeable
        gradient += 1
        assert not any(np.shares_memory(gradient, other) for other in gradients[:i])
    np.testing.assert_array_equal(np.concatenate([g.ravel() for g in gradients]), np.full(6, 2.0))


def test_the_gradient_given_to_backward_is_not_kept():
    x = leaf(1.0, 2.0)
    gradient = np.ones(2, np.float32)
    (x + 0.0).backward(gradient)
    x.backward(gradient)
    np.testing.assert_array_equal(gradient, [1, 1])
    assert not np.shares_memory(x.grad, gradient)


def test_gradients_have_the_dtype_of_their_tensor():
    x = leaf(1.0)
    (x * np.ones(1, np.float64)).sum().backward()
    assert x.grad.dtype == np.float32


def test_the_gradient_of_a_number_is_an_array():
    x = Tensor(np.float32(2), requires_grad=True)
    (x * x).backward()
    assert isinstance(x.grad, np.ndarray) and x.grad.shape == ()


def test_into_collects_gradients_beside_grad():
    x, y, z = leaf(1.0, 2.0), leaf(3.0), leaf(5.0)
    gradients = {x: np.ones(2, np.float32)}
    given = gradients[x]
    for _ in range(2):
        (x * y + x).sum().backward(into=gradients)
    assert gradients[x] is given and set(gradients) == {x, y}
    np.testing.assert_array_equal(given, [9, 9])
    np.testing.assert_array_equal(gradients[y], [6])
    assert x.grad is None and y.grad is None and z.grad is None


def test_into_does_not_share_memory_between_leaves():
    x, y = leaf(1.0), leaf(2.0)
    gradients = {}
    (x + y).backward(into=gradients)
    x.sum().backward(into=gradients)
    assert gradients[x] == [2] and gradients[y] == [1]


def test_only_leaves_that_ask_for_it_receive_a_gradient():
    x, constant, frozen = leaf(1.0), Tensor([2.0]), Parameter([3.0], requires_grad=False)
    y = x * constant
    (y * frozen).sum().backward()
    assert [t.grad for t in (y, constant, frozen)] == [None, None, None]
    np.testing.assert_array_equal(x.grad, [6])


# Tensors.


@pytest.mark.parametrize("data", [1, [1, 2], np.arange(3), np.array([True]), np.int64(2), [True], 1j, ["a"]], ids=repr)
def test_tensors_hold_floating_point_numbers(data):
    with pytest.raises(TypeError, match=r"holds floating-point numbers, got .*\.astype\(np\.float32\)"):
        Tensor(data)


def test_a_tensor_of_a_tensor():
    with pytest.raises(TypeError, match=r"got a Tensor: use \.detach\(\)"):
        Tensor(Tensor([1.0]))


def test_precision_of_new_tensors():
    """Python numbers become float32; arrays stay as they are."""
    assert Tensor(1.5).dtype == Tensor([[1.5]]).dtype == np.float32
    for dtype in (np.float16, np.float32, np.float64):
        x = np.ones(2, dtype)
        assert Tensor(x).data is x
        assert Tensor(dtype(1)).dtype == dtype


def test_properties():
    x = Tensor(np.ones((2, 3)))
    assert (x.shape, x.ndim, x.size, x.dtype, x.device, len(x)) == ((2, 3), 2, 6, np.float64, "cpu", 2)
    assert x.numpy() is x.data and Tensor(2.5).item() == 2.5
    assert x.detach().data is x.data


def test_repr_says_how_it_was_made():
    x = leaf(1.0)
    assert repr(x) == "Tensor([1.], requires_grad=True)"
    assert repr(x * 2) == "Tensor([2.], op=scale)"
    assert repr(Parameter([1.0]).detach()) == "Tensor([1.])"
    assert repr(Parameter([1.0])) == "Parameter([1.], requires_grad=True)"


# Ops.


def test_numpy_scalars_do_not_raise_the_precision():
    x = leaf(1.0, 2.0)
    for number in (np.float64(2), np.float32(2), np.int64(2), 2, 2.0):
        for y in (x + number, x - number, number * x, x / number, ops.mul(x, number), ops.scale(x, number), x**number):
            assert y.dtype == np.float32
            y.sum().backward()
    assert x.grad.dtype == np.float32


def test_tensors_may_be_keyword_arguments():
    x, weight, bias = Tensor([[1.0, 2.0]], requires_grad=True), leaf(3.0, 4.0), leaf(5.0)
    weight = weight.reshape(1, 2)
    ops.linear(bias=bias, weight=weight, x=x).sum().backward()
    np.testing.assert_array_equal(x.grad, [[3, 4]])
    np.testing.assert_array_equal(bias.grad, [1])


def test_a_tensor_where_the_op_has_no_derivative():
    x = leaf(1.0, 2.0)
    with pytest.raises(TypeError, match="power needs a number as exponent"):
        x**x
    with pytest.raises(TypeError, match=r"scale is not differentiable in argument 1, which was given a Tensor"):
        ops.scale(Tensor([1.0, 2.0]), x).sum().backward()
    with pytest.raises(TypeError, match=r"layer_norm is not differentiable in argument 3"):
        ops.layer_norm(x, Tensor([1.0, 1.0]), Tensor([0.0, 0.0]), eps=Tensor(0.1, requires_grad=True)).sum().backward()
    ops.scale(x, Tensor([3.0, 4.0])).sum().backward()  # as a constant it may come


class OnTheGPU:
    """An array of another library, as far as the engine looks at it before it computes."""

    dtype, shape = np.dtype(np.float32), (2,)
    device = types.SimpleNamespace(id=0)


def test_arguments_on_different_devices():
    with pytest.raises(TypeError, match=r"arguments of mul are on different devices \(cpu, cuda:0\): .*\.to\(device\)"):
        leaf(1.0, 2.0) * Tensor(OnTheGPU())


def test_raw_is_the_function_itself():
    def function(x):
        return x, lambda dy: dy

    lifted = op(function)
    assert lifted.raw is function and lifted.__name__ == "function"
