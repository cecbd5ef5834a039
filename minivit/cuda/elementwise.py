"""Number by number on a GPU: changes of type, residual connections, drop-path and dropout (``elementwise.cu``)."""

import math
from typing import Any

import numpy as np

from minivit import ops
from minivit.autograd import wanted
from minivit.backend import Array, array_module
from minivit.cuda.launch import launch
from minivit.cuda.reduction import column_sums
from minivit.cuda.registry import blocks_for, stands_in_for

THREADS = 256  # a block
AHEAD = 4  # groups of four numbers that a thread takes, as in common.cuh
TYPES = ("float32", "bfloat16")


def cast(x: Array, dtype: Any) -> Array:
    """x in another type, bfloat16 or float32; itself where it has that type.

    bfloat16 is rounded to the nearest, and to even in the middle.
    """
    if x.dtype == dtype:
        return x
    xp, dtype = array_module(x), np.dtype(dtype)
    if not _known(x) or dtype.name not in TYPES:
        return x.astype(dtype)
    y = xp.empty(x.shape, dtype)
    launch_elements("elementwise", "cast", x.size, packed(x), y, X=x.dtype, Y=x.dtype, Z=dtype)
    return y


@stands_in_for(ops.add.raw)
def add(x: Array, y: Array) -> tuple:
    """Arrays of one shape, or a smaller y that is added to each sample: (B, N, D) + (1, N, D), a table of positions.

    The residual stream stays float32 where a branch in bfloat16 is added to it.
    """
    if not (_known(x) and _known(y)) or not (x.shape == y.shape or _repeats(y.shape, x.shape)):
        return ops.add.raw(x, y)
    z = array_module(x).empty(x.shape, sum_type(x, y))
    arrays, types = (packed(x), packed(y), z), {"X": x.dtype, "Y": y.dtype, "Z": z.dtype}
    x_dtype, y_dtype, shape, size = x.dtype, y.dtype, y.shape, y.size
    if x.shape == shape:
        launch_elements("elementwise", "add", z.size, *arrays, **types)
        return z, lambda dz: (cast(dz, x_dtype), cast(dz, y_dtype))
    launch_elements("elementwise", "add_to_each", z.size, *arrays, last=size // 4, **types)
    for_y = wanted(1)
    return z, lambda dz: (cast(dz, x_dtype), column_sums(dz.reshape(-1, size)).reshape(shape) if for_y else None)


def sum_type(x: Array, y: Array) -> Any:
    """The dtype of x + y: the wider of the two, of those that kernels know."""
    return x.dtype if x.dtype == "float32" else y.dtype


@stands_in_for(ops.scale.raw)
def scale(x: Array, factor: Array | float) -> tuple:
    """A number, a factor for each element (dropout) or one for each sample (drop-path). The type of x is kept."""
    y = _scaled(x, factor)
    return ops.scale.raw(x, factor) if y is None else (y, lambda dy: _scaled(dy, factor))


def _scaled(x: Array, factor: Array | float) -> Array | None:
    """x · factor, or None where there is no kernel for that."""
    if not _known(x):
        return None
    y = array_module(x).empty(x.shape, x.dtype)
    types = {"X": x.dtype, "Y": getattr(factor, "dtype", x.dtype), "Z": x.dtype}
    if isinstance(factor, (int, float)):
        launch_elements("elementwise", "scale", x.size, packed(x), float(factor), y, **types)
    elif not _known(factor):
        return None
    elif factor.shape == x.shape:
        launch_elements("elementwise", "multiply", x.size, packed(x), packed(factor), y, **types)
    elif _leads(factor.shape, x.shape):
        each = x.size // factor.size // 4
        launch_elements("elementwise", "scale_each", x.size, packed(x), packed(factor), y, last=each, **types)
    else:
        return None
    return y


def launch_elements(file: str, kernel: str, size: int, *args: Any, last: int | None = None, **constants: Any) -> None:
    """Start a kernel that takes ``size`` numbers as groups of four and a tail, its last two arguments.

    ``last`` is given instead of the tail, to a kernel that wants none.
    """
    groups, tail = divmod(size, 4)
    grid = max(1, blocks_for(groups, THREADS * AHEAD))
    launch(file, kernel, grid, THREADS, *args, groups, tail if last is None else last, **constants)


def packed(x: Array) -> Array:
    """x as kernels read it: its numbers side by side, from an address on where four of them can be read at once.

    >>> x = np.zeros((4, 4), np.float32)
    >>> packed(x) is x, packed(x.T).flags.c_contiguous
    (True, True)
    """
    x = array_module(x).ascontiguousarray(x)
    return x.copy() if getattr(x.data, "ptr", 0) % (4 * x.itemsize) else x


def _known(x: Any) -> bool:
    return hasattr(x, "dtype") and x.dtype.name in TYPES and x.size > 0


def _repeats(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Is ``shape`` the end of ``whole``, perhaps after axes of length one, and a multiple of four numbers?"""
    ends = ((whole[i:], (1,) * i + whole[i:]) for i in range(len(whole)))
    return any(shape in pair and math.prod(shape) % 4 == 0 for pair in ends)


def _leads(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Is ``shape`` the beginning of ``whole``, before axes of length one that stand for a multiple of four numbers?"""
    beginnings = ((whole[:i] + (1,) * (len(whole) - i), whole[i:]) for i in range(len(whole)))
    return any(shape == beginning and math.prod(rest) % 4 == 0 for beginning, rest in beginnings)
