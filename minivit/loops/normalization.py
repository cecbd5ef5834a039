"""Layer normalisation, alone and with the residual before it, as loops: formulas in ``ops/normalization.py``.

A row is short enough for a core's first cache, so that only the first of the passes over it waits for memory. For the
way back the input is kept, and μ and r of each row; x̂ is computed again, which is cheaper than to write and read it.
"""

import numpy as np

from minivit import ops
from minivit.backend import Array
from minivit.loops.compiler import inlined, known, loop, rows_of, stands_in_for


@stands_in_for(ops.layer_norm.raw)
def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-6) -> tuple:
    """One pass over memory each way."""
    if not _fits(x, weight, bias):
        return ops.layer_norm.raw(x, weight, bias, eps)
    shape, x = x.shape, rows_of(x)
    y, mean, rstd = _room(x)
    _forward(x, weight, bias, np.float32(eps), y, mean, rstd)

    def pullback(dy):
        dx, dweight, dbias = np.empty_like(x), np.zeros_like(weight), np.zeros_like(bias)
        _backward(rows_of(dy), x, weight, mean, rstd, dx, dweight, dbias)
        return dx.reshape(shape), dweight, dbias

    return y.reshape(shape), pullback


@stands_in_for(ops.add_layer_norm.raw)
def add_layer_norm(x: Array, branch: Array, weight: Array, bias: Array, eps: float = 1e-6) -> tuple:
    """The sum and its norm in one pass; on the way back the norm, and the sum of the two cotangents."""
    if not (_fits(x, weight, bias) and known(branch) and x.shape == branch.shape):
        return ops.add_layer_norm.raw(x, branch, weight, bias, eps)
    shape, z = x.shape, np.empty(rows_of(x).shape, x.dtype)
    y, mean, rstd = _room(z)
    _add_forward(rows_of(x), rows_of(branch), weight, bias, np.float32(eps), y, z, mean, rstd)

    def pullback(dy, dz):
        dx, dweight, dbias = np.empty_like(z), np.zeros_like(weight), np.zeros_like(bias)
        _add_backward(rows_of(dy), rows_of(dz), z, weight, mean, rstd, dx, dweight, dbias)
        return dx.reshape(shape), dx.reshape(shape), dweight, dbias

    return (y.reshape(shape), z.reshape(shape)), pullback


def _fits(x: Array, weight: Array, bias: Array) -> bool:
    return known(x, weight, bias) and weight.shape == bias.shape == x.shape[-1:]


def _room(rows: Array) -> tuple[Array, Array, Array]:
    """For the norm of these rows (R, D), and for μ and r of each, (R,)."""
    return np.empty_like(rows), np.empty(len(rows), rows.dtype), np.empty(len(rows), rows.dtype)


@loop
def _forward(x, weight, bias, eps, y, mean, rstd):
    for i in range(len(x)):
        mean[i], rstd[i] = _normalise(x[i], weight, bias, eps, y[i])


@loop
def _add_forward(x, branch, weight, bias, eps, y, z, mean, rstd):
    for i in range(len(x)):
        for j in range(x.shape[1]):
            z[i, j] = x[i, j] + branch[i, j]
        mean[i], rstd[i] = _normalise(z[i], weight, bias, eps, y[i])


@inlined
def _normalise(x, weight, bias, eps, y):
    """Write the norm of a row (D,) to ``y``; its mean, and one over its deviation."""
    width = np.float32(len(x))
    total = np.float32(0)
    for j in range(len(x)):
        total += x[j]
    mean = total / width
    squares = np.float32(0)
    for j in range(len(x)):
        squares += (x[j] - mean) * (x[j] - mean)
    rstd = np.float32(1) / np.sqrt(squares / width + eps)
    for j in range(len(x)):
        y[j] = (x[j] - mean) * rstd * weight[j] + bias[j]
    return mean, rstd


@loop
def _backward(dy, x, weight, mean, rstd, dx, dweight, dbias):
    for i in range(len(x)):
        _denormalise(dy[i], x[i], weight, mean[i], rstd[i], dx[i], dweight, dbias)


@loop
def _add_backward(dy, dz, z, weight, mean, rstd, dx, dweight, dbias):
    for i in range(len(z)):
        _denormalise(dy[i], z[i], weight, mean[i], rstd[i], dx[i], dweight, dbias)
        for j in range(z.shape[1]):
            dx[i, j] += dz[i, j]


@inlined
def _denormalise(dy, x, weight, mean, rstd, dx, dweight, dbias):
    """The way back of a row: write to ``dx``, add to ``dweight`` and ``dbias``, all (D,)."""
    g_total, along_x = np.float32(0), np.float32(0)
    for j in range(len(x)):
        x_hat = (x[j] - mean) * rstd
        g_total += dy[j] * weight[j]
        along_x += dy[j] * weight[j] * x_hat
        dweight[j] += dy[j] * x_hat
        dbias[j] += dy[j]
    width = np.float32(len(x))
    g_mean, along_x = g_total / width, along_x / width
    for j in range(len(x)):
        dx[j] = rstd * (dy[j] * weight[j] - g_mean - (x[j] - mean) * rstd * along_x)
