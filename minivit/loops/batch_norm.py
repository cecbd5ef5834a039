"""Batch normalisation as loops: formula in ``ops/batch_norm.py``.

Forwards x is read three times, as its mean comes before its variance, and that before its norm; on the way back x and
dy are read twice. The numbers of a channel in one image lie side by side: they are added up as float32, some at a time,
and these sums as float64. Kept is x, and x̂ is computed again.
"""

from collections.abc import Callable

import numpy as np

from minivit import ops
from minivit.autograd import wanted
from minivit.backend import Array
from minivit.loops.compiler import known, loop, stands_in_for
from minivit.shared import batch_total, is_cut


@stands_in_for(ops.batch_norm.raw)
def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    report: Callable | None = None,
) -> tuple:
    """Of a batch that is cut, each total is that of all pieces, as in the formula."""
    if not _fits(x, weight, bias):
        return ops.batch_norm.raw(x, weight, bias, eps, report)
    total, shape = batch_total(), x.shape
    x = np.ascontiguousarray(x).reshape(*shape[:2], -1)  # (B, C, values)
    sums = np.zeros(x.shape[1])
    _sums(x, sums)
    totals = total(np.append(sums, len(x) * x.shape[2]).astype(x.dtype))
    mean, n = totals[:-1] / totals[-1:], totals[-1:]
    squares = np.zeros(x.shape[1])
    _squares(x, mean, squares)
    var = total(squares.astype(x.dtype)) / n
    if report:
        report(mean, var, n)
    rstd = 1 / np.sqrt(var + np.float32(eps))
    gain = rstd if weight is None else rstd * weight
    y = np.empty_like(x)
    _forward(x, mean, gain, np.zeros_like(mean) if bias is None else bias, y)
    needs_dx = wanted(0)

    def pullback(dy):
        dy = np.ascontiguousarray(dy).reshape(x.shape)
        sums = np.zeros((2, x.shape[1]))
        _sums_back(dy, x, mean, sums)
        dbias, dweight = sums.astype(x.dtype)
        dweight *= rstd
        dx = None
        if needs_dx:
            dy_mean, along_x = total(np.stack((dbias, dweight))) / n
            dx = np.empty_like(x)
            _backward(dy, x, mean, gain, dy_mean, along_x * rstd, dx)
            dx = dx.reshape(shape)
        return dx, dweight, dbias

    return y.reshape(shape), pullback


def _fits(x: Array, weight: Array | None, bias: Array | None) -> bool:
    given = [p for p in (weight, bias) if p is not None]
    return (
        x.ndim > 1
        and known(x, *given)
        and all(p.shape == x.shape[1:2] for p in given)
        and (x.size > x.shape[1] or is_cut())
    )


@loop
def _sums(x, sums):
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            total = np.float32(0)
            for i in range(x.shape[2]):
                total += x[b, c, i]
            sums[c] += total


@loop
def _squares(x, mean, squares):
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            total = np.float32(0)
            for i in range(x.shape[2]):
                total += (x[b, c, i] - mean[c]) * (x[b, c, i] - mean[c])
            squares[c] += total


@loop
def _forward(x, mean, gain, bias, y):
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            for i in range(x.shape[2]):
                y[b, c, i] = (x[b, c, i] - mean[c]) * gain[c] + bias[c]


@loop
def _sums_back(dy, x, mean, sums):
    """Σ dy, and Σ dy (x − μ)."""
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            total, along_x = np.float32(0), np.float32(0)
            for i in range(x.shape[2]):
                total += dy[b, c, i]
                along_x += dy[b, c, i] * (x[b, c, i] - mean[c])
            sums[0, c] += total
            sums[1, c] += along_x


@loop
def _backward(dy, x, mean, gain, dy_mean, along_x, dx):
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            for i in range(x.shape[2]):
                dx[b, c, i] = gain[c] * (dy[b, c, i] - dy_mean[c] - (x[b, c, i] - mean[c]) * along_x[c])
