import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from minivit import Tensor
from minivit.ops import batch_norm
from minivit.shared import sharing
from tests.strategies import CASES, generators


@given(CASES["batch_norm"])
def test_channels_are_centred_and_have_the_variance_that_eps_leaves(case):
    """Of each channel the mean is 0 and the mean square v / (v + eps), v the biased variance."""
    x, eps = case.args[0], case.options["eps"]
    others = (0, *range(2, x.ndim))
    y, pullback = batch_norm.raw(x, eps=eps)
    np.testing.assert_allclose(y.mean(others), 0, atol=1e-12)
    np.testing.assert_allclose((y * y).mean(others), x.var(others) / (x.var(others) + eps), rtol=1e-9)
    dx = pullback(np.random.default_rng(0).standard_normal(x.shape))[0]
    np.testing.assert_allclose(dx.sum(others), 0, atol=1e-9)  # a shift of x changes nothing


@given(generators)
def test_an_offset_costs_no_more_digits_than_x_loses_by_it(rng):
    """In float32, x + 1000 has 4 digits behind the point; Σx² − n μ² would have none of the variance."""
    x = rng.standard_normal((64, 3, 8, 8))
    shifted = (x + 1000).astype(np.float32)
    exact = batch_norm.raw(shifted.astype(np.float64))[0]
    np.testing.assert_allclose(batch_norm.raw(shifted)[0], exact, atol=1e-3)


@given(generators)
def test_half_precision_is_normalised_in_float32(rng):
    """1,025 values of about 1: bfloat16 counts to 256."""
    x, dy = (rng.normal(1, 0.1, (1025, 2)).astype(ml_dtypes.bfloat16) for _ in range(2))
    told = []
    y, pullback = batch_norm.raw(x, report=lambda *numbers: told.extend(numbers))
    single, single_pullback = batch_norm.raw(x.astype(np.float32))
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y, single.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(pullback(dy)[0], single_pullback(dy.astype(np.float32))[0])
    assert [numbers.dtype for numbers in told] == [np.float32] * 3 and told[2] == 1025


def test_what_is_not_wanted_is_not_asked_for():
    """Frozen features need no gradient, and so no totals on the way back."""
    asked = []
    with sharing(lambda array: asked.append(array.shape) or array, first=True):
        x, weight = np.ones((3, 2)), Tensor(np.ones(2), requires_grad=True)
        batch_norm(x, weight).sum().backward()
        assert asked == [(3,), (2,)]
        batch_norm(Tensor(x, requires_grad=True), weight).sum().backward()
    assert asked[2:] == [(3,), (2,), (2, 2)]


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1), (0, 4)])
def test_a_single_value_has_no_variance(shape):
    with pytest.raises(ValueError, match=r"several values a channel, to have a variance: got x \("):
        batch_norm(Tensor(np.ones(shape)))
    if shape[0]:
        with sharing(lambda array: 2 * array, first=True):  # another piece has a value too
            batch_norm(Tensor(np.ones(shape)))


@pytest.mark.parametrize(("weight", "bias"), [((3,), (4,)), ((4,), (3,)), ((1, 4), (4,)), ((), None), (None, (3,))])
def test_shapes_that_do_not_fit(weight, bias):
    weight, bias = (None if shape is None else Tensor(np.ones(shape)) for shape in (weight, bias))
    with pytest.raises(ValueError, match=r"weight and bias of shape \(4,\), or None, got"):
        batch_norm(Tensor(np.ones((2, 4))), weight, bias)
    with pytest.raises(ValueError, match=r"needs x \(B, C, …\), got \(4,\)"):
        batch_norm(Tensor(np.ones(4)))
