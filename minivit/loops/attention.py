"""Attention, one head of one image after another, so that its scores stay in the cache: see ``ops/attention.py``.

The formula computes the scores of all images, then their largest, then the differences, and so on: each time they come
from memory. Here the scores of a head, 17 KB for 65 tokens and 155 KB for 197, are scaled, made weights and used before
those of the next head are computed. The weights are kept for the way back; there dS needs room for one head only.
"""

import math
from collections.abc import Callable

import numpy as np

from minivit.backend import Array
from minivit.loops.blas import multiply, readable
from minivit.loops.compiler import exp, known, larger, loop, stands_in_for
from minivit.ops import attention


@stands_in_for(attention.attend)
def attend(q: Array, k: Array, v: Array, bias: Array | None, scale: float | None, o: Array) -> Callable:
    """Without a bias on the scores."""
    if bias is not None or not known(q, k, v) or not readable(o):
        return attention.attend(q, k, v, bias, scale, o)
    q, k, v = map(_to_be_read, (q, k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    a = np.empty(q.shape[:3] + k.shape[2:3], q.dtype)
    _forward(q, k, v, scale, a, o)

    def pullback(do, dq, dk, dv):
        _backward(_to_be_read(do), q, k, v, scale, a, dq, dk, dv)

    return pullback


def _to_be_read(x: Array) -> Array:
    return x if readable(x) else np.ascontiguousarray(x)


@loop
def _forward(q, k, v, scale, a, o):
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            weights = a[b, h]
            multiply(scale, q[b, h], False, k[b, h], True, weights)
            for i in range(len(weights)):
                row = weights[i]
                largest = np.float32(-np.inf)
                for j in range(len(row)):
                    largest = larger(largest, row[j])
                for j in range(len(row)):
                    row[j] -= largest
            flat = weights.reshape(-1)  # whole vectors of numbers, whatever the length of a row
            for i in range(len(flat)):
                flat[i] = exp(flat[i])
            for i in range(len(weights)):
                row = weights[i]
                total = np.float32(0)
                for j in range(len(row)):
                    total += row[j]
                share = np.float32(1) / total
                for j in range(len(row)):
                    row[j] *= share
            multiply(1, weights, False, v[b, h], False, o[b, h])


@loop
def _backward(do, q, k, v, scale, a, dq, dk, dv):
    ds = np.empty(a.shape[2:], np.float32)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            weights = a[b, h]
            multiply(1, weights, True, do[b, h], False, dv[b, h])
            multiply(1, do[b, h], False, v[b, h], True, ds)
            for i in range(len(ds)):
                row, d_row = weights[i], ds[i]
                total = np.float32(0)
                for j in range(len(row)):
                    total += d_row[j] * row[j]
                for j in range(len(row)):
                    d_row[j] = (d_row[j] - total) * row[j]
            multiply(scale, ds, False, k[b, h], False, dq[b, h])
            multiply(scale, ds, True, q[b, h], False, dk[b, h])
