"""The optimizer's step on a GPU: ``kernels/optim.cu`` and ``kernels/norm.cu`` for the formulas in ``minivit/optim``.

Nothing here is read by Python, and what changes from step to step lies in memory: these steps can be captured.
"""

import math
from typing import Any

from minivit import optim
from minivit.backend import Array, array_module
from minivit.cuda.launch import launch
from minivit.cuda.registry import blocks_for, fits, stands_in_for

THREADS = 256
PARTS = 1024  # blocks that add up squares: enough to keep the memory of any GPU busy
ROOM = 8  # numbers in a row of ``write``


def _launch_each_four(kernel: str, n: int, *args: Any) -> None:
    launch("optim", kernel, blocks_for(n, 4 * THREADS), THREADS, *args, n)


@stands_in_for(optim.adamw.adamw)
def adamw(numbers: Array, scale: Array | None, p: Array, g: Array, m: Array, v: Array, scratch: Array | None = None):
    """One pass: reads p, g, m and v, writes p, m and v, 28 bytes a parameter."""
    if not _float32(numbers, p, g, m, v):
        return adamw.formula(numbers, scale, p, g, m, v, scratch)
    _launch_each_four("adamw", p.size, numbers, scale, p, g, m, v)


@stands_in_for(optim.sgd.sgd)
def sgd(numbers: Array, scale: Array | None, p: Array, g: Array, b: Array, scratch: Array | None = None):
    """One pass: reads p, g and b, writes p and b."""
    if not _float32(numbers, p, g, b):
        return sgd.formula(numbers, scale, p, g, b, scratch)
    _launch_each_four("sgd", p.size, numbers, scale, p, g, b)


@stands_in_for(optim.ema.move_average)
def move_average(average: Array, p: Array, decay: float):
    """One pass: reads a and p, writes a."""
    if not _float32(average, p):
        return move_average.formula(average, p, decay)
    _launch_each_four("move_average", p.size, average, p, float(decay), float(1 - decay))


@stands_in_for(optim.optimizer.write)
def write(buffer: Array, values: list[tuple[float, ...]]):
    """A launch a row."""
    if buffer.dtype != "float32" or len(values[0]) > ROOM:
        return write.formula(buffer, values)
    for row, numbers in zip(buffer, values):
        padded = [float(x) for x in numbers] + [0.0] * (ROOM - len(numbers))
        launch("optim", "write_numbers", 1, 1, row, *padded, len(numbers))


@stands_in_for(optim.clip.norm_and_scale)
def norm_and_scale(g: Array, max_norm: float = math.inf) -> tuple[Array, Array]:
    """Two kernels, the sum of squares in parts and the rest."""
    if not _float32(g):
        return norm_and_scale.formula(g, max_norm)
    xp = array_module(g)
    parts = xp.empty(min(PARTS, blocks_for(g.size, 4 * THREADS)), "float32")
    result = xp.empty(2, "float32")
    launch("norm", "squares", parts.size, THREADS, g, parts, g.size)
    launch("norm", "norm_and_scale", 1, THREADS, parts, result, float(max_norm), parts.size)
    return result[0], result[1]


def _float32(*arrays: Array) -> bool:
    """Are these float32, and the flat ones (all but small tables of numbers) a multiple of four long?"""
    return all(array.dtype == "float32" for array in arrays) and fits(arrays[-1])
