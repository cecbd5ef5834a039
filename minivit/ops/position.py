"""Ops for positions that are *relative*: what belongs to a difference of places, laid out over pairs of tokens.

A grid of H × W tokens has (HW)² pairs (n, m), but only (2H − 1)(2W − 1) displacements place(n) − place(m). A number
for each displacement makes a matrix over pairs that is constant along its diagonals (a Toeplitz matrix, here of two
axes): each number is copied to every pair that it fits, and on the way back the cotangents of its copies are added up.
That sum is made by shifting rows, not by indices: it has a fixed order, so it gives the same bits each time, also on a
GPU. Indices are computed where the table lies, so none are kept, and none have to travel.
"""

from types import ModuleType
from typing import Any

import numpy as np

from minivit.autograd import op, wanted
from minivit.backend import Array, array_module


def relative_index(grid: tuple[int, int], prefix_tokens: int = 0, xp: ModuleType = np) -> Array:
    """Which row of a bias table belongs to a pair (query, key): integers of shape (T, T), T = prefix_tokens + H W.

    For two patches at displacement (dy, dx) = place(query) − place(key): (dy + H − 1)(2W − 1) + dx + W − 1. The three
    rows after these are for prefix → patch, patch → prefix and prefix → prefix. ``xp`` is the array module.

    >>> relative_index((1, 3))
    array([[2, 1, 0],
           [3, 2, 1],
           [4, 3, 2]])
    """
    rows, columns = grid
    n = xp.arange(rows * columns)
    y, x = n // columns, n % columns
    patches = (y[:, None] - y + rows - 1) * (2 * columns - 1) + x[:, None] - x + columns - 1
    first = (2 * rows - 1) * (2 * columns - 1)
    p, tokens = prefix_tokens, prefix_tokens + rows * columns
    index = xp.empty((tokens, tokens), patches.dtype)
    index[p:, p:] = patches
    index[:p, p:] = first
    index[p:, :p] = first + 1
    index[:p, :p] = first + 2
    return index


@op
def relative_bias(table, grid, prefix_tokens=0):
    """y[h, n, m] = table[r, h] with r = ``relative_index(grid, prefix_tokens)[n, m]``: a number for each pair.

    table ((2H − 1)(2W − 1), heads), with three rows more where there are prefix tokens → (heads, T, T) for a ``grid``
    of H × W patches after ``prefix_tokens`` others, T = prefix_tokens + H W.

    Each row of the table gets the sum of the cotangents of its copies. For patches these lie on diagonals of dy,
    seen as (H, H) blocks of (W, W): they are summed along the first pair of axes, then along the second.
    Raises ValueError for a table of another length.

    >>> relative_bias(Tensor([[1.0], [2.0], [3.0]]), grid=(1, 2)).numpy()
    array([[[2., 1.],
            [3., 2.]]], dtype=float32)
    """
    (rows, columns), p = grid, prefix_tokens
    shape, count = table.shape, (2 * rows - 1) * (2 * columns - 1)
    if len(shape) != 2 or shape[0] != count + (3 if p else 0):
        raise ValueError(
            f"relative_bias needs a table of shape ({count + (3 if p else 0)}, heads) for a grid {grid} "
            f"with {p} prefix tokens, got {shape}"
        )
    xp, heads = array_module(table), shape[1]
    y = table.T.take(relative_index(grid, p, xp), axis=1)

    def pullback(dy):
        patches = dy[:, p:, p:].reshape(heads, rows, columns, rows, columns)
        by_row = _sum_diagonals(patches.transpose(1, 3, 0, 2, 4))  # (2H - 1, heads, W, W)
        by_both = _sum_diagonals(by_row.transpose(2, 3, 0, 1))  # (2W - 1, 2H - 1, heads)
        dtable = xp.empty(shape, dy.dtype)
        dtable[:count] = by_both.transpose(1, 0, 2).reshape(count, heads)
        for row, pairs in enumerate((dy[:, :p, p:], dy[:, p:, :p], dy[:, :p, :p]) if p else ()):
            dtable[count + row] = pairs.reshape(heads, -1).sum(axis=1)
        return dtable

    return y, pullback


def _sum_diagonals(x: Array) -> Array:
    """(L, L, …) → (2L − 1, …): at place d + L − 1 the sum of all x[i, j] with i − j = d.

    Row i, read backwards, belongs i places to the right. Written into rows of length 2L and read again in rows of
    length 2L − 1, each row has moved one place further than the row above; then columns are summed.
    """
    xp, length = array_module(x), len(x)
    wide = xp.zeros((length, 2 * length, *x.shape[2:]), x.dtype)
    wide[:, :length] = x[:, ::-1]
    shifted = wide.reshape(-1, *x.shape[2:])[: length * (2 * length - 1)]
    return shifted.reshape(length, -1, *x.shape[2:]).sum(axis=0)


@op
def by_distance(x, tokens):
    """y[…, i, j] = x[…, i, clip(j − i, −k, k) + k] for j = 0 … tokens − 1: what row i has for each distance, laid out
    over the tokens at that distance from token i.

    x (…, n, 2k + 1) → (…, n, tokens). Its transpose is ``sum_by_distance``.
    Raises ValueError where the last axis is even, or has length 1.

    >>> by_distance(Tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), tokens=4).numpy()
    array([[2., 3., 3., 3.],
           [1., 2., 3., 3.]], dtype=float32)
    """
    reach, odd = divmod(x.shape[-1], 2)
    if x.ndim < 2 or not odd or reach < 1:
        raise ValueError(f"by_distance needs x (…, n, 2k + 1) with k of at least 1, got {x.shape}")
    return _spread(x, tokens), lambda dy: _collect(dy, reach)


@op
def sum_by_distance(w, reach):
    """y[…, i, r] = Σ w[…, i, j] over all j with clip(j − i, −k, k) = r − k, where k is ``reach``.

    w (…, n, tokens) → (…, n, 2k + 1). Its transpose is ``by_distance``. Raises ValueError for a reach below 1.

    >>> sum_by_distance(Tensor([[1.0, 2.0, 3.0, 4.0]]), reach=1).numpy()
    array([[0., 1., 9.]], dtype=float32)
    """
    if w.ndim < 2 or reach < 1:
        raise ValueError(f"sum_by_distance needs w (…, n, tokens) and a reach of at least 1, got {w.shape} and {reach}")
    tokens = w.shape[-1]
    return _collect(w, reach), lambda dy: _spread(dy, tokens)


def _spread(x: Array, tokens: int) -> Array:
    """``by_distance``, as one selection of columns from the flattened rows."""
    xp, (rows, distances) = array_module(x), x.shape[-2:]
    reach = distances // 2
    i = xp.arange(rows)[:, None]
    index = (xp.arange(tokens) - i).clip(-reach, reach) + reach + i * distances
    return x.reshape(-1, rows * distances).take(index, axis=1).reshape(*x.shape[:-1], tokens)


def _collect(w: Array, reach: int) -> Array:
    """``sum_by_distance``: one token for each distance below k, and sums over all those at k and beyond."""
    xp, (rows, tokens) = array_module(w), w.shape[-2:]
    i = xp.arange(rows)[:, None]
    j = i + xp.arange(-reach, reach + 1)  # (n, 2k + 1): the token at each distance
    there = j % tokens  # where there is none, another is read, and counts nothing
    y = w.reshape(-1, rows * tokens).take(i * tokens + there, axis=1).reshape(*w.shape[:-1], 2 * reach + 1)
    y *= there == j
    distance = xp.arange(tokens) - i
    y[..., 0] = (w * (distance <= -reach)).sum(axis=-1)
    y[..., -1] = (w * (distance >= reach)).sum(axis=-1)
    return y


@op
def rotate(x, angles):
    """Each pair of neighbouring channels, as a point of the plane, turned about the origin:

        y[2i]     = x[2i] cos θ[i] − x[2i + 1] sin θ[i]
        y[2i + 1] = x[2i] sin θ[i] + x[2i + 1] cos θ[i]

    x (…, d), angles θ (…, d/2), broadcast. With complex numbers x[2i] + i x[2i + 1] that is a product, y = x e^(iθ),
    and is computed so, in the precision of the angles, float32 or float64. A rotation's transpose is the rotation back:
    dx = dy e^(−iθ). As θ grows, y moves at a right angle to itself, ∂y/∂θ = iy, so dθ = ⟨dy, iy⟩ = Im(dy ȳ).
    Raises ValueError where the shapes do not fit.

    >>> rotate(Tensor([1.0, 0.0, 0.0, 1.0]), Tensor([np.pi / 2, np.pi])).numpy().round(6) + 0.0
    array([ 0.,  1.,  0., -1.], dtype=float32)
    """
    if x.shape[-1] != 2 * angles.shape[-1]:
        raise ValueError(f"rotate needs x (…, d) and angles (…, d/2), got {x.shape} and {angles.shape}")
    xp = array_module(x)
    turn = xp.cos(angles) + 1j * xp.sin(angles)
    real, pairs = angles.dtype, turn.dtype
    y = _read_as(pairs, x.astype(real, copy=False)) * turn
    back, y_kept = turn.conj() if wanted(0) else None, y.conj() if wanted(1) else None

    def pullback(dy):
        dy = _read_as(pairs, dy.astype(real, copy=False))
        dx = None if back is None else _read_as(real, dy * back)
        return dx, None if y_kept is None else (dy * y_kept).imag

    return _read_as(real, y).astype(x.dtype, copy=False), pullback


def _read_as(dtype: Any, x: Array) -> Array:
    """The memory of x as numbers of another type, such as two real ones as a complex one: no copy, if in order."""
    if x.strides[-1] != x.dtype.itemsize:
        x = array_module(x).ascontiguousarray(x)
    return x.view(dtype)
