import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, no_grad
from minivit.autograd import Buffer
from minivit.nn import BatchNorm1d, BatchNorm2d, Linear, Module, checkpoint
from minivit.optim import EMA, SGD, weight_decay_groups
from minivit.shared import sharing
from tests.nn.test_gradients import batch_norms, randomise
from tests.strategies import flags, generators

kinds = st.sampled_from([BatchNorm1d, BatchNorm2d])


@given(kinds.flatmap(batch_norms), generators)
def test_evaluation_is_the_formula_with_the_running_estimates(layer_and_x, rng):
    layer, x = layer_and_x
    randomise(layer.eval(), rng)
    channels = (-1, *[1] * (x.ndim - 2))
    mean, var = (b.data.reshape(channels) for b in (layer.running_mean, layer.running_var))
    expected = (x - mean) / np.sqrt(var + layer.eps)
    if layer.weight is not None:
        expected = expected * layer.weight.data.reshape(channels) + layer.bias.data.reshape(channels)
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, rtol=1e-9, atol=1e-12)


@given(kinds.flatmap(batch_norms), generators, st.sampled_from([0.1, 0.5, 1.0]), st.integers(1, 3))
def test_estimates_follow_the_mean_and_the_unbiased_variance(layer_and_x, rng, momentum, batches):
    layer, x = layer_and_x
    layer.astype(np.float64).momentum = momentum
    mean, var = np.zeros(x.shape[1]), np.ones(x.shape[1])
    for _ in range(batches):
        x = rng.standard_normal(x.shape)
        values = x.swapaxes(0, 1).reshape(x.shape[1], -1)
        mean = (1 - momentum) * mean + momentum * values.mean(1)
        var = (1 - momentum) * var + momentum * values.var(1, ddof=1)
        layer(Tensor(x))
    np.testing.assert_allclose(layer.running_mean.data, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(layer.running_var.data, var, rtol=1e-9, atol=1e-12)
    assert layer.num_batches_tracked.item() == batches


def test_estimates_stay_in_evaluation_without_gradients_and_in_pieces_that_are_not_the_first():
    layer, x = BatchNorm1d(3), Tensor(np.arange(6.0).reshape(2, 3))
    start = layer.state_dict()
    with no_grad():
        layer(x)
    with sharing(lambda array: 2 * array, first=False):
        layer(x)
    layer.eval()(x)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, start[name])


@given(generators)
def test_a_layer_that_is_computed_twice_counts_once(rng):
    """Recomputation gives the same value, gradients and estimates."""
    plain = Twice()
    again, x = copy.deepcopy(plain), rng.standard_normal((5, 3)).astype(np.float32)
    results = []
    for model, run in ((plain, lambda model, x: model(x)), (again, checkpoint)):
        inputs = Tensor(x, requires_grad=True)
        y = run(model, inputs)
        y.backward(x)
        results.append([y.data, inputs.grad, *(p.grad for p in model.parameters()), *model.state_dict().values()])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert again.norm.num_batches_tracked.item() == 1


class Twice(Module):
    def __init__(self):
        self.fc, self.norm = Linear(3, 3), BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.fc(x))


def test_an_image_is_by_itself_in_evaluation_only():
    rng = np.random.default_rng(0)
    layer, x = BatchNorm2d(2), rng.standard_normal((3, 2, 4, 4)).astype(np.float32)
    assert np.abs(layer(Tensor(x)).data[:1] - layer(Tensor(x[:1])).data).max() > 0.01
    layer.eval()
    np.testing.assert_array_equal(layer(Tensor(x)).data[:1], layer(Tensor(x[:1])).data)


@pytest.mark.parametrize("affine", [True, False])
def test_a_state_of_pytorchs_is_loaded(affine):
    """PyTorch counts batches in an int64."""
    state = {"running_mean": np.full(2, 3.0), "running_var": np.full(2, 4.0), "num_batches_tracked": np.array(7)}
    if affine:
        state |= {"weight": np.full(2, 5.0), "bias": np.full(2, 6.0)}
    layer = BatchNorm1d(2, affine=affine)
    layer.load_state_dict(state)
    assert layer.state_dict().keys() == state.keys()
    for name, array in layer.state_dict().items():
        assert array.dtype == np.float32 and array.shape == state[name].shape
        np.testing.assert_array_equal(array, state[name])


def test_it_starts_as_pytorchs():
    layer = BatchNorm2d(2)
    assert (layer.eps, layer.momentum) == (1e-5, 0.1)
    expected = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    for name, array in layer.state_dict().items():
        assert (array == expected.pop(name)).all()
    assert not expected


@pytest.mark.parametrize(
    ("layer", "shape", "needed"),
    [
        (BatchNorm1d(3), (2, 4), r"BatchNorm1d needs x \(B, C\) or \(B, C, L\) with C = 3, got \(2, 4\)"),
        (BatchNorm1d(3), (2, 3, 4, 4), r"got \(2, 3, 4, 4\)"),
        (BatchNorm2d(3), (2, 3), r"BatchNorm2d needs x \(B, C, H, W\) with C = 3, got \(2, 3\)"),
        (BatchNorm2d(3).eval(), (2, 1, 3, 3), r"got \(2, 1, 3, 3\)"),
    ],
)
def test_an_input_of_another_shape_gets_a_sentence(layer, shape, needed):
    with pytest.raises(ValueError, match=needed):
        layer(Tensor(np.ones(shape)))


# --- buffers -------------------------------------------------------------------------------------------------------


def test_buffers_stand_among_the_parameters_and_are_not_counted():
    model = Twice()
    names = [name for name, p in model.named_parameters() if isinstance(p, Buffer)]
    assert names == ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    assert model.buffers() == [model.norm.running_mean, model.norm.running_var, model.norm.num_batches_tracked]
    assert model.num_parameters() == 12 + 6
    assert "18 parameters" in repr(model)
    assert set(model.state_dict()) >= set(names)
    assert {p.dtype for p in model.astype(np.float64).parameters()} == {np.dtype(np.float64)}


@given(flags)
def test_an_optimizer_leaves_buffers_alone_and_so_does_an_average(decay):
    model, x = Twice(), Tensor(np.arange(6.0, dtype=np.float32).reshape(2, 3))
    optimizer = SGD(weight_decay_groups(model, 0.1) if decay else model.named_parameters(), lr=0.1)
    ema = EMA(optimizer, decay=0.5)
    assert not any(name.startswith("norm.running") for name in optimizer.flat.parameters)
    (model(x) * x).sum().backward()
    before = model.state_dict()
    optimizer.step()
    ema.update()
    after = model.state_dict()
    with ema.applied():
        averaged = model.state_dict()
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert np.array_equal(before[name], after[name]) and np.array_equal(after[name], averaged[name])
    assert not np.array_equal(before["fc.weight"], after["fc.weight"])
    assert not np.array_equal(after["fc.weight"], averaged["fc.weight"])
