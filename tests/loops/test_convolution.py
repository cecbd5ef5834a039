"""Loops of residual networks against their formulas in float64, run by Python and compiled: BatchNorm, convolution."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import ops
from minivit.autograd import Tensor, op
from minivit.ops import convolution as formula
from minivit.shared import sharing
from tests.compare import errors, exact, numbers
from tests.loops.test_loops import TOLERANCE, odd, seeds, sizes


def convolution(convolve, **options):
    """``ops.conv2d.raw`` of kernels that keep the size, around another ``convolve``, and with that for its formula."""

    def stand_in(x, weight):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formula, "implementation", lambda *arguments: convolve)
            y, pullback = ops.conv2d.raw(x, weight, padding=1, **options)

        def pull(dy):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(formula, "implementation", lambda *arguments: convolve)
                return pullback(dy)

        return y, pull

    stand_in.formula = partial(ops.conv2d.raw, padding=1, **options)
    return stand_in


@given(*(sizes(4) for _ in range(5)), sizes(6), sizes(30), seeds)
def test_convolution(loops, batch, groups, inputs, height, width, outputs, line, seed):
    args = numbers(seed, batch, groups * inputs, height, width), numbers(seed + 1, groups * outputs, inputs, 3, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loops.convolve.__globals__, "LINE", line)
        assert max(errors(convolution(loops.convolve, groups=groups), np, args)) < TOLERANCE


@pytest.mark.parametrize("size", [45, 7])
def test_a_line_in_two_parts_and_images_that_share_one(loops, size):
    args = numbers(0, 3, 1, size, size), numbers(1, 1, 1, 3, 3)
    assert max(errors(convolution(loops.convolve), np, args)) < 1e-5


@pytest.mark.parametrize(
    "kernel, stride, padding",
    [((3, 3), (2, 1), (1, 1)), ((3, 3), (1, 1), (0, 1)), ((3, 1), (1, 1), (1, 1)), ((1, 3), (1, 1), (1, 1))],
)
def test_other_convolutions_are_left_to_the_formula(loops, kernel, stride, padding):
    x, k = numbers(0, 2, 3, 6, 7), numbers(1, 1, 4, 3, *kernel)
    size = [(n + 2 * p - a) // s + 1 for n, a, s, p in zip((6, 7), kernel, stride, padding)]
    y, right = np.empty((2, 4, *size), np.float32), np.empty((2, 4, *size))
    loops.convolve(x, k, stride, padding, y)
    loops.convolve.formula(exact(x), exact(k), stride, padding, right)
    np.testing.assert_allclose(y, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["x", "kernel", "y", "other"])
@pytest.mark.parametrize("kind", ["float64", "backwards", "every second", "columns", "locked"])
def test_arrays_of_a_convolution_of_every_form(loops, what, kind):
    arrays = {"x": numbers(0, 2, 3, 5, 4), "kernel": numbers(1, 1, 4, 3, 3, 3)}
    arrays |= {"y": np.zeros((2, 4, 5, 4), np.float32), "other": numbers(2, 2, 4, 5, 4)}
    right = {name: exact(array) for name, array in arrays.items()}
    products = loops.convolve.formula(right["x"], right["kernel"], (1, 1), (1, 1), right["y"], right["other"])
    arrays[what] = odd(kind if (what, kind) != ("y", "locked") else "columns", arrays[what])
    found = loops.convolve(arrays["x"], arrays["kernel"], (1, 1), (1, 1), arrays["y"], arrays["other"])
    np.testing.assert_allclose(arrays["y"], right["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, products, rtol=1e-4, atol=1e-5)


# --- BatchNorm ----------------------------------------------------------------------------------------------------


@given(sizes(4), sizes(3), st.lists(sizes(4), max_size=2), st.booleans(), st.booleans(), seeds)
def test_batch_norm(loops, batch, channels, size, with_weight, with_bias, seed):
    x = numbers(seed, 1 + batch, channels, *size)
    weight, bias = 1 + numbers(seed + 1, channels), numbers(seed + 2, channels)
    told = []
    for stand_in in (loops.batch_norm, ops.batch_norm.raw):
        stand_in(x, eps=1e-2, report=lambda *figures: told.append(figures))
    assert [figure.dtype for figure in told[0]] == [np.float32] * 3
    for found, right in zip(*told):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)
    args = x, weight if with_weight else None, bias if with_bias else None
    value, pullback = loops.batch_norm(*args, eps=1e-2)
    right, right_pullback = ops.batch_norm.raw(*map(exact, args), eps=1e-2)
    np.testing.assert_allclose(value, right, rtol=1e-4, atol=1e-5)
    dy = numbers(seed + 3, *x.shape)
    for found, expected in zip(pullback(dy), right_pullback(exact(dy)), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.sum(0) if expected.ndim > found.ndim else expected, 1e-4, 1e-4)


@given(seeds)
def test_a_large_mean_costs_no_precision_of_a_channel(loops, seed):
    x = (1000 + numbers(seed, 8, 2, 9)).astype(np.float32)
    np.testing.assert_allclose(loops.batch_norm(x)[0], ops.batch_norm.raw(exact(x))[0], atol=1e-3)


def test_a_batch_of_many_pieces_has_one_norm(loops):
    """As in the formula, totals are those of all pieces: here of two equal ones, which change nothing but n."""
    x, told, dy = numbers(0, 3, 2, 4), [], numbers(1, 3, 2, 4)
    alone, alone_pullback = loops.batch_norm(x)
    with sharing(lambda array: 2 * array, first=True):
        y, pullback = loops.batch_norm(x, report=lambda *figures: told.extend(figures))
        np.testing.assert_allclose(pullback(dy)[0], alone_pullback(dy)[0], rtol=1e-5, atol=1e-6)
        assert loops.batch_norm(numbers(2, 1, 2))[0].shape == (1, 2)  # a single value, of which there are others
    np.testing.assert_allclose(y, alone, rtol=1e-5, atol=1e-6)
    assert told[2] == 24


def test_frozen_features_ask_for_no_totals(loops):
    asked = []
    with sharing(lambda array: asked.append(array.shape) or array, first=True):
        y = op(loops.batch_norm)(numbers(0, 3, 2), Tensor(np.ones(2, np.float32), requires_grad=True))
        y.node.pullback(numbers(1, 3, 2))
    assert asked == [(3,), (2,)]
