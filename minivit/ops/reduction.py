"""Sums, means and maxima over axes. A reduction's pullback hands dy to every element that took part.

It needs the shape of x, and mentions ``shape`` instead of ``x.shape``: so x itself is not kept.
"""

import math

from minivit.autograd import op
from minivit.backend import Array, array_module


@op
def sum(x, axis=None, keepdims=False):
    """Σ x over ``axis`` (an integer, a tuple, or None for all): every element receives dy.

    >>> sum(Tensor([[1.0, 2.0], [3.0, 4.0]]), axis=0).numpy()
    array([4., 6.], dtype=float32)
    """
    shape = x.shape
    return x.sum(axis=axis, keepdims=keepdims), lambda dy: _spread(dy, shape, axis)


@op
def mean(x, axis=None, keepdims=False):
    """Σ x / n over ``axis``: every element receives dy / n.

    >>> mean(Tensor([[1.0, 2.0], [3.0, 4.0]]), axis=0).numpy()
    array([2., 3.], dtype=float32)
    """
    shape = x.shape
    count = math.prod(shape[a] for a in _axes(axis, x.ndim))
    return x.mean(axis=axis, keepdims=keepdims), lambda dy: _spread(dy / count, shape, axis)


@op
def amax(x, axis=None, keepdims=False):
    """max x over ``axis``: dy goes to the largest element, in equal parts where several are equal.

    >>> amax(Tensor([[1.0, 2.0], [3.0, 4.0]]), axis=0).numpy()
    array([3., 4.], dtype=float32)
    """
    largest = x.max(axis=axis, keepdims=True)

    def pullback(dy):
        winners = (x == largest).astype(x.dtype)
        winners /= winners.sum(axis=axis, keepdims=True)
        return winners * _spread(dy, x.shape, axis)

    return x.max(axis=axis, keepdims=keepdims), pullback


def _axes(axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in (axis if isinstance(axis, tuple) else (axis,)))


def _spread(dy: Array, shape: tuple[int, ...], axis: int | tuple[int, ...] | None) -> Array:
    """dy with the reduced axes put back at length 1, then repeated to ``shape``: a view."""
    axes = _axes(axis, len(shape))
    kept = tuple(1 if a in axes else n for a, n in enumerate(shape))
    return array_module(dy).broadcast_to(dy.reshape(kept), shape)
