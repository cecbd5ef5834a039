"""A linear layer: products with ``cblas_sgemm``, and the bias without a pass of NumPy. Formula: ``ops/linear.py``."""

import numpy as np

from minivit import ops
from minivit.autograd import wanted
from minivit.backend import Array
from minivit.loops.blas import multiply
from minivit.loops.compiler import inlined, known, loop, rows_of, stands_in_for


@stands_in_for(ops.linear.raw)
def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple:
    """What is kept, and which products are computed, is as in the formula."""
    if not (known(x, weight) and (bias is None or known(bias)) and _fits(x, weight, bias)):
        return ops.linear.raw(x, weight, bias)
    shape, x, weight = x.shape, rows_of(x), rows_of(weight)
    y = np.empty((len(x), len(weight)), x.dtype)
    _forward(x, weight, np.zeros(len(weight), x.dtype) if bias is None else bias, y)
    x_kept, weight_kept = x if wanted(1) else None, weight if wanted(0) else None
    has_bias = bias is not None

    def pullback(dy):
        dy = rows_of(dy)
        dbias = bias_gradient(dy) if has_bias else None  # first, while dy is in the cache
        dx = None if weight_kept is None else input_gradient(dy, weight_kept).reshape(shape)
        dweight = None if x_kept is None else weight_gradient(dy, x_kept)
        return dx, dweight, dbias

    return y.reshape(shape[:-1] + y.shape[-1:]), pullback


def _fits(x: Array, weight: Array, bias: Array | None) -> bool:
    return weight.ndim == 2 and x.shape[-1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1])


def input_gradient(dy: Array, weight: Array) -> Array:
    """dx = dy W."""
    dx = np.empty((len(dy), weight.shape[1]), dy.dtype)
    _input_gradient(dy, weight, dx)
    return dx


def weight_gradient(dy: Array, x: Array) -> Array:
    """dW = dyᵀ x."""
    dweight = np.empty((dy.shape[1], x.shape[1]), dy.dtype)
    _weight_gradient(dy, x, dweight)
    return dweight


def bias_gradient(dy: Array) -> Array:
    """db = Σ dy."""
    dbias = np.zeros(dy.shape[1], dy.dtype)
    _bias_gradient(dy, dbias)
    return dbias


@loop
def _forward(x, weight, bias, y):
    multiply(1, x, False, weight, True, y)
    add_bias(y, bias)


@inlined
def add_bias(y, bias):
    for i in range(len(y)):
        for j in range(len(bias)):
            y[i, j] += bias[j]


@loop
def _input_gradient(dy, weight, dx):
    multiply(1, dy, False, weight, False, dx)


@loop
def _weight_gradient(dy, x, dweight):
    multiply(1, dy, True, x, False, dweight)


@loop
def _bias_gradient(dy, dbias):
    for i in range(len(dy)):
        for j in range(len(dbias)):
            dbias[j] += dy[i, j]
