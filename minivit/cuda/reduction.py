"""Sums over rows on a GPU (``kernels/reduce.cu``): of a bias, or a gain, the gradient is a sum over all tokens."""

from minivit.autograd import sum_of_rows
from minivit.backend import Array, array_module
from minivit.cuda.launch import launch
from minivit.cuda.registry import blocks_for, fits, stands_in_for


@stands_in_for(sum_of_rows)
def sum_rows(rows: Array) -> Array:
    """What the engine sums over the axes along which an argument was broadcast; without cuBLAS, so in a graph too."""
    return column_sums(rows) if fits(rows, multiple=1) else sum_of_rows(rows)


def column_sums(x: Array) -> Array:
    """Σ over all axes but the last, in float32 and always in the same order: the gradient of a bias.

    x (…, C) → (C,).
    """
    xp, width = array_module(x), x.shape[-1]
    x = xp.ascontiguousarray(x).reshape(-1, width)
    parts = min(64, blocks_for(len(x), 64))
    sums = xp.empty((parts, width), "float32")
    launch("reduce", "column_sums", (blocks_for(width, 32), parts), 256, x, sums, len(x), width, X=x.dtype)
    return sums[0] if parts == 1 else column_sums(sums)
