"""Clipping by the global norm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Parameter
from minivit.optim import SGD, FlatParameters, clip_grad_norm
from minivit.random import generator


def with_gradient(seed, sizes, dtype=np.float64):
    rng = generator(seed, "gradient")
    flat = FlatParameters([Parameter(np.zeros(size, dtype)) for size in sizes])
    for p in flat.parameters.values():
        p.grad += rng.normal(size=p.shape).astype(dtype)
    return flat


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 20), min_size=1, max_size=4), st.floats(1e-3, 100))
def test_length_and_direction(seed, sizes, max_norm):
    flat = with_gradient(seed, sizes)
    before = flat.grad.copy()
    norm = clip_grad_norm(flat, max_norm)
    assert norm == pytest.approx(np.linalg.norm(before), rel=1e-12)
    if norm <= max_norm:
        np.testing.assert_array_equal(flat.grad, before)
    else:
        np.testing.assert_allclose(flat.grad, before * (max_norm / (norm + 1e-6)), rtol=1e-12)
        assert np.linalg.norm(flat.grad) <= max_norm


def test_all_parameters_count_as_one_vector():
    flat = with_gradient(0, [3, 40_000], np.float32)
    assert clip_grad_norm(flat) == pytest.approx(np.linalg.norm(flat.grad.astype(np.float64)), rel=1e-6)


def test_an_optimizer_will_do():
    p = Parameter([0.0, 0.0])
    optimizer = SGD([p])
    p.grad += np.float32([3, 4])
    assert clip_grad_norm(optimizer, 2.5) == 5
    np.testing.assert_allclose(p.grad, [1.5, 2.0], rtol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_left_as_it_is(value):
    flat = with_gradient(0, [3])
    flat.grad[1] = value
    before = flat.grad.copy()
    assert not math.isfinite(clip_grad_norm(flat, 0.1))
    np.testing.assert_array_equal(flat.grad, before)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_bad_max_norm_gets_a_sentence(max_norm):
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        clip_grad_norm(with_gradient(0, [3]), max_norm)
