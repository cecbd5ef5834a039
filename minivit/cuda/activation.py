"""GELU and softmax on a GPU: ``kernels/gelu.cu`` and ``softmax.cu`` for the formulas in ``ops/activation.py``."""

import math
from typing import Any

from minivit import ops
from minivit.backend import Array, array_module
from minivit.cuda.elementwise import TYPES, launch_elements, packed
from minivit.cuda.launch import launch
from minivit.cuda.registry import blocks_for, stands_in_for

OWN = 24  # numbers of a row that a thread has in its registers, at most: of 64 that it has in a block of 1,024
LONGEST_ROW = OWN * 1024


@stands_in_for(ops.gelu.raw)
def gelu(x: Array, approximate: str = "none") -> tuple:
    """Keeps x alone. The slope is computed on the way back, once more than in the formula, but not stored and read."""
    if x.dtype.name not in TYPES or not x.size or approximate not in ("none", "tanh"):
        return ops.gelu.raw(x, approximate)
    xp, x = array_module(x), packed(x)
    y, tanh = xp.empty(x.shape, x.dtype), int(approximate == "tanh")
    launch_elements("gelu", "gelu", x.size, x, y, X=x.dtype, DY=x.dtype, TANH=tanh)

    def pullback(dy):
        dy, dx = packed(dy), xp.empty(x.shape, x.dtype)
        launch_elements("gelu", "gelu_backward", x.size, dy, x, dx, X=x.dtype, DY=dy.dtype, TANH=tanh)
        return dx

    return y, pullback


@stands_in_for(ops.softmax.raw)
def softmax(x: Array, axis: int = -1) -> tuple:
    """Along the last axis, of up to 24,576 numbers."""
    if not _has_rows(x, axis):
        return ops.softmax.raw(x, axis)
    y = softmax_rows(x, 1.0, x.dtype)
    return y, lambda dy: softmax_rows_backward(y, dy, 1.0, y.dtype)


@stands_in_for(ops.log_softmax.raw)
def log_softmax(x: Array, axis: int = -1) -> tuple:
    """Along the last axis, of up to 24,576 numbers."""
    if not _has_rows(x, axis):
        return ops.log_softmax.raw(x, axis)
    xp, x = array_module(x), array_module(x).ascontiguousarray(x)
    y = xp.empty(x.shape, x.dtype)
    launch_rows("softmax", "log_softmax", x.shape, x, y, X=x.dtype, Y=y.dtype, DY=y.dtype)

    def pullback(dy):
        dy, dx = xp.ascontiguousarray(dy), xp.empty(y.shape, y.dtype)
        launch_rows("softmax", "log_softmax_backward", y.shape, y, dy, dx, X=dx.dtype, Y=y.dtype, DY=dy.dtype)
        return dx

    return y, pullback


def softmax_rows(x: Array, scale: float, dtype: Any) -> Array:
    """softmax(scale · x) along the last axis, in a type of its own: scores (…, M) in float32 or bfloat16 → (…, M).

    For arrays that are not empty and M up to 24,576.
    """
    xp = array_module(x)
    y = xp.empty(x.shape, dtype)
    types = {"X": x.dtype, "Y": y.dtype, "DY": y.dtype}
    launch_rows("softmax", "softmax", x.shape, xp.ascontiguousarray(x), y, float(scale), **types)
    return y


def softmax_rows_backward(y: Array, dy: Array, scale: float, dtype: Any) -> Array:
    """scale · y ⊙ (dy − Σ dy ⊙ y), of y = softmax_rows(x, scale, …): the gradient of x, in a type of its own."""
    xp = array_module(y)
    dx = xp.empty(y.shape, dtype)
    types = {"X": dx.dtype, "Y": y.dtype, "DY": dy.dtype}
    arrays = xp.ascontiguousarray(y), xp.ascontiguousarray(dy), dx
    launch_rows("softmax", "softmax_backward", y.shape, *arrays, float(scale), **types)
    return dx


def launch_rows(file: str, kernel: str, shape: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Start a kernel that takes rows (the last axis of ``shape``) and their number, as its last argument.

    A row stays in the registers of TEAM threads: a warp has rows of up to 768 numbers, a block longer ones.
    """
    width = shape[-1]
    team = next(team for team in (32, 256, 1024) if width <= OWN * team)
    rows, threads = math.prod(shape[:-1]), max(team, 128)
    launch(file, kernel, blocks_for(rows, threads // team), threads, *args, rows, TEAM=team, WIDTH=width, **constants)


def _has_rows(x: Array, axis: int) -> bool:
    return x.dtype.name in TYPES and x.size > 0 and axis in (-1, x.ndim - 1) and x.shape[-1] <= LONGEST_ROW
