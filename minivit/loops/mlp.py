"""The perceptron of a block, some rows at a time: see ``ops/mlp.py``.

A hidden layer of 2^18 numbers takes a megabyte, and stays in the second-level cache from the first product by way of
bias and GELU to the second one. Without a way back no more than that is ever made. But each product begins with putting
the weight in order, which few rows are not worth: at least 256 are taken, and all where the weight is large itself.
"""

import numpy as np

from minivit import ops
from minivit.autograd import recording, wanted
from minivit.backend import Array
from minivit.loops.activation import gelu_of
from minivit.loops.blas import multiply
from minivit.loops.compiler import known, loop, rows_of, stands_in_for
from minivit.loops.linear import add_bias, bias_gradient, input_gradient, weight_gradient

FEWEST, HIDDEN, LARGE = 256, 2**18, 2**18  # rows of a block, numbers of its hidden layer, numbers of a weight


@stands_in_for(ops.mlp.raw)
def mlp(x: Array, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> tuple:
    """What is kept, and which products are computed, is as in the formula."""
    if not (known(x, weight1, bias1, weight2, bias2) and _fits(x, weight1, bias1, weight2, bias2)):
        return ops.mlp.raw(x, weight1, bias1, weight2, bias2)
    shape, x, weight1, weight2 = x.shape, rows_of(x), rows_of(weight1), rows_of(weight2)
    rows = len(x) if weight1.size > LARGE else min(len(x), max(FEWEST, HIDDEN // len(weight1)))
    a = np.empty((len(x) if recording() else rows, len(weight1)), x.dtype)
    slope = np.empty_like(a) if recording() else a[:0]
    y = np.empty((len(x), len(weight2)), x.dtype)
    _forward(x, weight1, bias1, weight2, bias2, rows, a, slope, y)
    before_gelu = wanted(0) or wanted(1) or wanted(2)
    x_kept, weight1_kept, a_kept = x if wanted(1) else None, weight1 if wanted(0) else None, a if wanted(3) else None
    slope_kept, weight2_kept = (slope, weight2) if before_gelu else (None, None)

    def pullback(dy):
        dy, dx, dweight1, dbias1 = rows_of(dy), None, None, None
        dbias2 = bias_gradient(dy)
        dweight2 = None if a_kept is None else weight_gradient(dy, a_kept)
        if weight2_kept is not None:
            dh, dbias1 = input_gradient(dy, weight2_kept), np.zeros(weight2_kept.shape[1], dy.dtype)
            _through_gelu(dh, slope_kept, dbias1)
            dweight1 = None if x_kept is None else weight_gradient(dh, x_kept)
            dx = None if weight1_kept is None else input_gradient(dh, weight1_kept).reshape(shape)
        return dx, dweight1, dbias1, dweight2, dbias2

    return y.reshape(shape[:-1] + y.shape[-1:]), pullback


def _fits(x: Array, weight1: Array, bias1: Array, weight2: Array, bias2: Array) -> bool:
    return (
        weight1.ndim == weight2.ndim == 2
        and (x.shape[-1:], bias1.shape) == (weight1.shape[1:], weight1.shape[:1])
        and (bias1.shape, bias2.shape) == (weight2.shape[1:], weight2.shape[:1])
    )


@loop
def _forward(x, weight1, bias1, weight2, bias2, rows, a, slope, y):
    """``a`` has room for all rows, or without a way back for one block of them after another."""
    for start in range(0, len(x), rows):
        end = min(start + rows, len(x))
        block = a[start:end] if len(a) == len(x) else a[: end - start]
        multiply(1, x[start:end], False, weight1, True, block)
        if len(slope):
            slopes = slope[start:end]
            for i in range(len(block)):
                for j in range(len(bias1)):
                    block[i, j], slopes[i, j] = gelu_of(block[i, j] + bias1[j])
        else:
            for i in range(len(block)):
                for j in range(len(bias1)):
                    block[i, j] = gelu_of(block[i, j] + bias1[j])[0]
        multiply(1, block, False, weight2, True, y[start:end])
        add_bias(y[start:end], bias2)


@loop
def _through_gelu(dh, slope, dbias):
    """From da to dh, in its place, and the sum of its rows."""
    for i in range(len(dh)):
        for j in range(len(dbias)):
            dh[i, j] *= slope[i, j]
            dbias[j] += dh[i, j]
