"""The layer-norm kernels against the formula in float64."""

import numpy as np
import pytest

from minivit.cuda.normalization import MAX_WIDTH, add_layer_norm, layer_norm
from minivit.cuda.precision import precision
from tests.compare import UNIT, errors, numbers

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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stream", ["float32", "bfloat16"])
def test_a_sum_and_its_norm_agree_with_the_formula(xp, dtype, stream, shape):
    """The stream and the branch in either type: the sum has the wider one, each cotangent that of its argument."""
    width = shape[-1]
    args = (
        numbers(0, *shape, dtype=stream), numbers(3, *shape, dtype=dtype), 1 + numbers(1, width), numbers(2, width)
    )  # fmt: skip
    name = "bf16" if "bfloat16" in (dtype, stream) else "fp32"
    with precision(name):
        (y, z), pullback = add_layer_norm(*map(xp.asarray, args))
        assert max(errors(add_layer_norm, xp, args)) < 8 * UNIT["float32" if name == "fp32" else "bfloat16"]
    cotangents = pullback(y, z)
    assert y.dtype == {"fp32": "float32", "bf16": "bfloat16"}[name]
    assert z.dtype == ("float32" if "float32" in (dtype, stream) else "bfloat16")
    assert [x.dtype.name for x in cotangents] == [stream, dtype.name, "float32", "float32"]


def test_a_sum_that_the_kernel_does_not_know_is_left_to_the_formula(xp, monkeypatch):
    monkeypatch.setattr("minivit.cuda.normalization.launch", None)  # would raise
    args = numbers(0, 3, 6), numbers(1, 3, 6), np.ones(6, "f"), np.zeros(6, "f")
    (y, z), _ = add_layer_norm(*map(xp.asarray, args))
    assert y.shape == z.shape == (3, 6)
    with pytest.raises(ValueError, match=r"arrays of one shape, got \(3, 8\) and \(1, 8\)"):
        add_layer_norm(*map(xp.asarray, (numbers(0, 3, 8), numbers(1, 1, 8), np.ones(8, "f"), np.zeros(8, "f"))))


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
