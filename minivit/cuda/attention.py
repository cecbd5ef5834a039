"""Attention on a GPU: ``kernels/attention.cu`` for whole rows in bfloat16, and products and softmax for the rest.

The kernels know the common case, self-attention of up to 256 tokens with heads of 32 or 64 channels: they keep neither
S nor A, and read and write packed projections. Everything else (float32 and TF32, other sizes, queries that are not the
keys, a bias on the scores) goes the way of the formulas in ``ops/attention.py``: a product, a softmax, a product.

Those products have one batch axis, and the heads of packed projections lie along two, B and H. Here they are copied to
one. Compared with A, which is N/d times as large and is gone over several times, that costs little, and each product is
one call, however many heads there are.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minivit import ops
from minivit.autograd import unbroadcast, wanted
from minivit.backend import Array, array_module
from minivit.cuda import blas
from minivit.cuda.activation import LONGEST_ROW, softmax_rows, softmax_rows_backward
from minivit.cuda.elementwise import cast, packed
from minivit.cuda.launch import launch
from minivit.cuda.precision import current, precision, working_type
from minivit.cuda.registry import blocks_for, stands_in_for

MAX_TOKENS = 256  # 16 rows of scores in the registers of a warp: 128 numbers a thread
HEAD_WIDTHS = (32, 64)
WARPS = 4  # of a block, at most: one for each scheduler of a multiprocessor


@stands_in_for(ops.self_attention.raw)
def self_attention(qkv: Array, num_heads: int, scale: float | None = None) -> tuple:
    """qkv (B, N, 3D) → (B, N, D), of the type that the precision in force works in."""
    if not _known(qkv) or qkv.ndim != 3 or qkv.shape[-1] % (3 * num_heads):
        return ops.self_attention.raw(qkv, num_heads, scale)
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    shape = (batch, tokens, 3, num_heads, width // num_heads)
    factor = 1 / math.sqrt(shape[-1]) if scale is None else float(scale)
    kind = np.dtype(working_type(qkv))
    if kind.name == "bfloat16" and tokens <= MAX_TOKENS and shape[-1] in HEAD_WIDTHS:
        return _whole_rows(qkv, shape, factor, kind)
    if not _multiplies(tokens):
        return ops.self_attention.raw(qkv, num_heads, scale)
    xp, dtype = array_module(qkv), qkv.dtype
    out, attend_pullback = _attend(*qkv.reshape(shape).transpose(2, 0, 3, 1, 4), None, factor, kind)

    def pullback(dy):
        dqkv = xp.empty(shape, dtype)
        cotangents = attend_pullback(dy.reshape(shape[:2] + shape[3:]).transpose(0, 2, 1, 3))
        for part, cotangent in zip(dqkv.transpose(2, 0, 3, 1, 4), cotangents):
            part[...] = cotangent
        return dqkv.reshape(batch, tokens, 3 * width)

    return out.transpose(0, 2, 1, 3).reshape(batch, tokens, width), pullback


@stands_in_for(ops.scaled_dot_product_attention.raw)
def scaled_dot_product_attention(
    q: Array, k: Array, v: Array, bias: Array | None = None, scale: float | None = None
) -> tuple:
    """q (B, H, N, d), k and v (B, H, M, d), bias None or like (B, H, N, M) → (B, H, N, d)."""
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3]
    known = all(_known(x) for x in (q, k, v, bias) if x is not None)
    if not fits or not known or not _multiplies(k.shape[2]) or not _broadcasts(bias, (*q.shape[:3], k.shape[2])):
        return ops.scaled_dot_product_attention.raw(q, k, v, bias, scale)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    return _attend(q, k, v, bias, factor, np.dtype(working_type(q)))


def _whole_rows(qkv: Array, shape: tuple[int, ...], scale: float, kind: Any) -> tuple:
    """The kernels. They keep qkv and the result for the way back, and one number a query."""
    xp, dtype, (batch, tokens, _, heads, head) = array_module(qkv), qkv.dtype, shape
    tiles = blocks_for(tokens, 16)
    warps = blocks_for(tiles, blocks_for(tiles, WARPS))  # no more than are needed to be done in as many rounds
    rows = 2 * 16 * tiles * (head + 8) * 2  # bytes of K and V in shared memory, or of Q and dO
    statistics = 2 * 16 * tiles * 4  # and of L and D

    def run(kernel: str, shared: int, *arrays: Array) -> None:
        sizes = {"shared": shared, "TOKENS": tokens, "HEAD": head, "WARPS": warps}
        launch("attention", kernel, batch * heads, warps * 32, *arrays, scale, heads, **sizes)

    qkv = _ready(qkv, kind)
    out, logsumexp = xp.empty((batch, tokens, heads * head), kind), xp.empty((batch, heads, tokens), "float32")
    run("attention", rows, qkv, out, logsumexp)

    def pullback(dy):
        dy, dqkv, d = _ready(dy, kind), xp.empty(qkv.shape, kind), xp.empty(logsumexp.shape, "float32")
        run("attention_backward_queries", rows, qkv, out, dy, logsumexp, d, dqkv)
        run("attention_backward_keys", rows + statistics, qkv, dy, logsumexp, d, dqkv)
        return cast(dqkv, dtype)

    return out, pullback


def _attend(q: Array, k: Array, v: Array, bias: Array | None, scale: float, kind: Any) -> tuple[Array, Callable]:
    """O (B, H, N, d), and its pullback to (dQ, dK, dV, dbias). S and dA are float32, A and dS of the type ``kind``."""
    name, types, of_queries, of_keys = current(), (q.dtype, k.dtype, v.dtype), q.shape, k.shape
    of_scores = of_queries[:3] + of_keys[2:3]
    of_bias = bias.shape if bias is not None and wanted(3) else None
    q, k, v = (cast(x.reshape(-1, *x.shape[2:]), kind) for x in (q, k, v))  # (B H, N or M, d)
    s = blas.matmul(q, k.swapaxes(1, 2), alpha=scale, dtype="float32")
    if bias is not None:
        by_head = s.reshape(of_scores)  # a view
        by_head += cast(bias, "float32")
    a = softmax_rows(s, 1.0, kind)

    def pullback(do):
        do = cast(do.reshape(-1, *of_queries[2:]), kind)
        with precision(name):
            da = blas.matmul(do, v.swapaxes(1, 2), dtype="float32")
            ds, dbias = softmax_rows_backward(a, da, 1.0, kind if of_bias is None else np.dtype("float32")), None
            if of_bias is not None:
                dbias = unbroadcast(ds.reshape(of_scores), (1,) * (4 - len(of_bias)) + of_bias).reshape(of_bias)
                ds = cast(ds, kind)
            dq = blas.matmul(ds, k, alpha=scale, dtype=types[0]).reshape(of_queries)
            dk = blas.matmul(ds.swapaxes(1, 2), q, alpha=scale, dtype=types[1]).reshape(of_keys)
            dv = blas.matmul(a.swapaxes(1, 2), do, dtype=types[2]).reshape(of_keys)
        return dq, dk, dv, dbias

    return blas.matmul(a, v).reshape(of_queries), pullback


def _ready(x: Array, kind: Any) -> Array:
    """x as the kernels read it: of this type, contiguous, and 16 bytes at a time."""
    x = packed(cast(x, kind))
    return x.copy() if x.data.ptr % 16 else x


def _known(x: Array) -> bool:
    return x.dtype.name in ("float32", "bfloat16") and x.size > 0


def _broadcasts(bias: Array | None, shape: tuple[int, ...]) -> bool:
    return bias is None or (bias.ndim <= 4 and all(n in (1, m) for n, m in zip(bias.shape[::-1], shape[::-1])))


def _multiplies(keys: int) -> bool:
    """Without cublasLt, float32 is left to the formula; the other precisions need it, and say so."""
    return keys <= LONGEST_ROW and (current() != "fp32" or blas.available())
