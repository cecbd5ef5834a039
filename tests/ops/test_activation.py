import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, no_grad, op
from minivit.ops import gelu, log_softmax, relu, softmax
from tests.rules import kept
from tests.strategies import along_an_axis

GRID = np.linspace(-40, 40, 80_001)
TOLERANCE = {np.float32: 3e-7, np.float64: 1e-15}  # 2.5 and 4.5 units in the last place of 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gelu_is_exact_on_the_whole_axis(dtype):
    """Value and slope, of x Φ(x) with the C library's erfc. Beyond ±40 they are x or 0, and 1 or 0."""
    x = GRID.astype(dtype)
    y, pullback = gelu.raw(x)
    exact = x.astype(np.float64)
    cdf = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in exact])
    density = np.exp(-exact * exact / 2) / math.sqrt(2 * math.pi)
    assert (np.abs(y - exact * cdf) <= TOLERANCE[dtype] * np.maximum(1, np.abs(exact))).all()
    assert (np.abs(pullback(np.ones_like(x)) - (cdf + exact * density)) <= TOLERANCE[dtype]).all()


def test_gelu_forms_differ_by_what_the_docstring_says():
    difference = np.abs(gelu.raw(GRID)[0] - gelu.raw(GRID, approximate="tanh")[0]).max()
    assert 4.6e-4 < difference < 4.8e-4


def test_gelu_of_extreme_numbers():
    x = np.array([-1e30, -1e4, -0.0, 1e4, 1e30], np.float32)
    with np.errstate(over="ignore"):  # x² is infinite, and e^(−∞) = 0
        y, pullback = gelu.raw(x)
    np.testing.assert_array_equal(y, [0, 0, 0, 1e4, np.float32(1e30)])
    np.testing.assert_allclose(pullback(np.ones_like(x)), [0, 0, 0.5, 1, 1], rtol=1e-7)


def test_gelu_names_the_forms_it_has():
    with pytest.raises(ValueError, match=r"approximate must be .*'none'.*'tanh', got 'sigmoid'"):
        gelu(Tensor([1.0]), approximate="sigmoid")


def test_gelu_skips_the_slope_where_nothing_is_recorded():
    """An op around it shows the pullback, which ``no_grad`` throws away."""
    slopes = []

    @op
    def around(x):
        y, pullback = gelu.raw(x)
        slopes.append(len(kept(pullback)))
        return y, pullback

    x = Tensor([-1.0, 2.0], requires_grad=True)
    recorded = around(x)
    with no_grad():
        unrecorded = around(x)
    assert slopes == [1, 0]
    np.testing.assert_array_equal(unrecorded.data, recorded.data)


def test_relu_lets_nothing_through_at_zero():
    _, pullback = relu.raw(np.array([-1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(pullback(np.ones(3)), [0, 0, 1])


@given(along_an_axis(), st.floats(-100, 100))
def test_softmax_is_a_distribution_that_a_shift_does_not_change(case, shift):
    (x,), axis = case.args, case.options["axis"]
    y = softmax.raw(x, axis)[0]
    assert (y >= 0).all()
    np.testing.assert_allclose(y.sum(axis), 1, rtol=1e-14)
    np.testing.assert_allclose(softmax.raw(x + shift, axis)[0], y, rtol=1e-11)
    np.testing.assert_allclose(np.exp(log_softmax.raw(x, axis)[0]), y, rtol=1e-12)


@given(along_an_axis())
def test_cotangents_that_softmax_does_not_feel(case):
    """Its outputs always sum to 1, so a constant one; for the logarithm, one that is softmax(x) itself."""
    (x,), axis = case.args, case.options["axis"]
    y, pullback = softmax.raw(x, axis)
    np.testing.assert_allclose(pullback(np.ones_like(x)), 0, atol=1e-15)
    np.testing.assert_allclose(log_softmax.raw(x, axis)[1](y), 0, atol=1e-15)


def test_softmax_of_large_numbers_does_not_overflow():
    x = Tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    np.testing.assert_array_equal(softmax(x).data, [[1, 0, 0]])
    np.testing.assert_array_equal(log_softmax(x).data, [[0, -1e4, -2e4]])
