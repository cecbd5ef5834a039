"""GELU and softmax against their formulas in float64."""

import numpy as np
import pytest

from minivit import ops
from minivit.cuda import activation, elementwise
from minivit.cuda.activation import gelu, log_softmax, softmax, softmax_rows, softmax_rows_backward
from tests.compare import UNIT, errors, exact, numbers, relative


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 1029)], ids=str)
def test_gelu(xp, dtype, approximate, shape):
    """One rounding to the type of the result, after errors of float32."""
    x = numbers(0, *shape, dtype=dtype, scale=3)
    value, dx = errors(gelu, xp, (x,), approximate=approximate)
    assert value < UNIT[dtype.name] + 4 * UNIT["float32"]
    assert dx < UNIT[dtype.name] + 8 * UNIT["float32"]
    y, pullback = gelu(xp.asarray(x), approximate)
    assert y.dtype == pullback(y).dtype == dtype


def test_gelu_has_tails(xp):
    """Small numbers far to the left, where 1 + erf(x/√2) would have lost all digits."""
    x = np.linspace(-8, 8, 1601, dtype=np.float32)
    value, right = exact(gelu(xp.asarray(x))[0]), ops.gelu.raw(x.astype(float))[0]
    np.testing.assert_allclose(value, right, rtol=5e-3, atol=0)
    np.testing.assert_allclose(value, right, rtol=2e-7, atol=2e-7)


def test_gelu_of_large_numbers(xp):
    x = np.array([1e4, 1e30, -1e4, -1e30, 0, np.nan, 3e38, -3e38], np.float32)
    y, pullback = gelu(xp.asarray(x))
    np.testing.assert_array_equal(exact(y), [1e4, np.float32(1e30), 0, 0, 0, np.nan, np.float32(3e38), 0])
    np.testing.assert_allclose(exact(pullback(xp.asarray(np.ones(8, "f")))), [1, 1, 0, 0, 0.5, np.nan, 1, 0], rtol=1e-7)


WIDTHS = [1, 33, 197, 768, 769, 9000]  # a warp a row up to 768, then blocks of 256 and 1,024


@pytest.mark.parametrize("stand_in", [softmax, log_softmax], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_any_length(xp, dtype, width, stand_in):
    rows = (3, 2) if width < 1000 else (2,)
    value, dx = errors(stand_in, xp, (numbers(0, *rows, width, dtype=dtype, scale=2),))
    assert value < UNIT[dtype.name] + 16 * UNIT["float32"]
    assert dx < 4 * UNIT[dtype.name] + (0 if dtype == "bfloat16" else 32 * UNIT["float32"])


@pytest.mark.parametrize("scale", [0.125, -1.5])
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
def test_scores_become_weights_of_another_type(xp, dtype, x_dtype, scale):
    """What attention asks for: softmax(scale · x), float32 scores to bfloat16 weights, and the way back."""
    x, dy = numbers(0, 2, 5, 37, dtype=x_dtype, scale=4), numbers(1, 2, 5, 37, dtype=x_dtype)
    y = softmax_rows(xp.asarray(x), scale, dtype)
    right, _ = ops.softmax.raw(scale * exact(x))
    assert y.dtype == dtype
    assert relative(exact(y), right) < UNIT[dtype.name] + 16 * UNIT["float32"]
    dx = softmax_rows_backward(y, xp.asarray(dy), scale, x_dtype)
    y, dy = exact(y), exact(dy)
    assert dx.dtype == x_dtype
    right = scale * y * (dy - (dy * y).sum(-1, keepdims=True))
    assert relative(exact(dx), right) < UNIT[x_dtype] + 16 * UNIT["float32"]


@pytest.mark.parametrize("width", [33, 769])
def test_only_differences_matter(xp, width):
    """To the last bit, if they are exact; the exponentials of these rows are beyond float32, or zero."""
    x = np.round(8 * numbers(0, 2, width)) / 8
    for stand_in in softmax, log_softmax:
        plain, low, high = (exact(stand_in(xp.asarray(x + shift))[0]) for shift in (0, -1024, 1024))
        np.testing.assert_array_equal(low, plain)
        np.testing.assert_array_equal(high, plain)


def test_softmax_of_large_numbers(xp):
    x = np.array([[1e30, 1e30, -1e30], [-np.inf, 0, -np.inf], [np.nan, 0, 0]], np.float32)
    right = [[0.5, 0.5, 0], [0, 1, 0], [np.nan] * 3]
    np.testing.assert_array_equal(exact(softmax(xp.asarray(x))[0]), right)
    np.testing.assert_array_equal(exact(log_softmax(xp.asarray(x[2:]))[0]), right[2:])


def test_arrays_in_any_order_of_memory(xp):
    x = numbers(0, 40, 36)
    for stand_in in gelu, softmax, log_softmax:
        turned, plain = stand_in(xp.asarray(x).T), stand_in(xp.asarray(x.T.copy()))
        np.testing.assert_array_equal(exact(turned[0]), exact(plain[0]))
        dy = xp.asarray(numbers(1, 40, 36))
        np.testing.assert_array_equal(exact(turned[1](dy.T)), exact(plain[1](xp.ascontiguousarray(dy.T))))


@pytest.mark.parametrize("name", ["gelu", "softmax", "log_softmax"])
def test_what_the_kernels_do_not_know_is_left_to_the_formulas(xp, name, monkeypatch):
    monkeypatch.setattr(activation, "launch", None)  # would raise
    monkeypatch.setattr(elementwise, "launch", None)
    stand_in = getattr(activation, name)
    x = numbers(0, 3, 4)
    calls = [(x.astype("float64"), {}), (x[:0], {})] + ([] if name == "gelu" else [(x, {"axis": 0})])
    for array, options in calls:
        value, pullback = stand_in(xp.asarray(array), **options)
        np.testing.assert_array_equal(exact(value), exact(stand_in.formula(array, **options)[0]))
        assert pullback(value).shape == array.shape
    with pytest.raises(ValueError, match="approximate must be one of"):
        gelu(xp.asarray(x), "erf")
