"""The layer-norm kernels against the formula in float64."""

import numpy as np
import pytest

from minivit.cuda.normalization import MAX_WIDTH, layer_norm
from minivit.cuda.precision import precision
from tests.cuda.compare import UNIT, errors, numbers

SHAPES = [(1, 4), (5, 36), (3, 7, 384), (130, 132)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm_and_its_pullback_agree_with_the_formula(xp, dtype, shape):
    width = shape[-1]
    args = numbers(0, *shape, dtype=dtype), 1 + numbers(1, width), numbers(2, width)
    with precision("bf16" if dtype == "bfloat16" else "fp32"):
        assert max(errors(layer_norm, xp, args)) < 8 * UNIT[dtype.name]


def test_the_residual_stream_may_be_float32_and_the_result_bfloat16(xp):
    args = numbers(0, 6, 64), 1 + numbers(1, 64), numbers(2, 64)
    with precision("bf16"):
        value, pullback = layer_norm(*map(xp.asarray, args))
        found = errors(layer_norm, xp, args)
    assert value.dtype == "bfloat16"
    assert [x.dtype.name for x in pullback(value)] == ["float32"] * 3
    assert found[0] < UNIT["bfloat16"]
    assert max(found[1:]) < 8 * UNIT["float32"]  # dy was given in bfloat16, and nothing was rounded after it


def test_a_large_mean_costs_no_precision_of_the_variance(xp):
    args = 1000 + numbers(0, 4, 64), np.ones(64, "f"), np.zeros(64, "f")
    assert max(errors(layer_norm, xp, args)) < 1e-4


@pytest.mark.parametrize(
    "shape, dtype", [((3, 6), "float32"), ((2, 4), "float64"), ((0, 4), "float32"), ((1, MAX_WIDTH + 4), "float32")]
)
def test_what_the_kernel_does_not_know_is_left_to_the_formula(xp, shape, dtype, monkeypatch):
    monkeypatch.setattr("minivit.cuda.normalization.launch", None)  # would raise
    width = shape[-1]
    value, _ = layer_norm(
        *map(xp.asarray, (numbers(0, *shape, dtype=dtype), np.ones(width, dtype), np.zeros(width, dtype)))
    )
    assert value.shape == shape
