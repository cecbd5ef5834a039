"""Scaled dot-product attention (Vaswani et al., 2017, arXiv:1706.03762, eq. 1), fused: one op, one pullback.

    S = scale · Q Kᵀ + bias   (B, H, N, M)
    A = softmax(S)            rows sum to 1
    O = A V                   (B, H, N, d)

Backwards, with the products of ``ops/linear.py`` and the softmax of ``ops/activation.py``:

    dV = Aᵀ dO
    dA = dO Vᵀ
    dS = A ⊙ (dA − rowsum(dA ⊙ A)),   rowsum(dA ⊙ A) = rowsum(dO ⊙ O), which is N/d times smaller to compute
    dbias = dS summed over the samples, and whatever else the bias was broadcast along
    dQ = scale · dS K
    dK = scale · dSᵀ Q

Kept for the way back: Q, K, V, A and O. The products read and write views of packed arrays, which BLAS takes as they
are if each row of a matrix is contiguous, and row sums are products too: of A, which is large, few passes are made. The
same attention in small ops, with A as a Tensor of the graph, is ``softmax(matmul(q, k.transpose(...)) * scale)``: see
``nn/attention.py``.
"""

import math
from collections.abc import Callable

from minivit.autograd import op, unbroadcast, wanted
from minivit.backend import Array, array_module, implementation


@op
def scaled_dot_product_attention(q, k, v, bias=None, scale=None):
    """softmax(scale · Q Kᵀ + bias) V for every sample and head; ``scale`` defaults to 1/√d.

    q (B, H, N, d), k (B, H, M, d), v (B, H, M, d), bias None or to be broadcast to (B, H, N, M) → (B, H, N, d).
    Raises ValueError where the shapes do not fit.

    >>> q, k, v = Tensor([[[[1.0]]]]), Tensor([[[[1.0], [1.0]]]]), Tensor([[[[2.0], [4.0]]]])
    >>> scaled_dot_product_attention(q, k, v).numpy().ravel()
    array([3.], dtype=float32)
    """
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3]
    if not fits:
        raise ValueError(f"attention needs q (B, H, N, d), k and v (B, H, M, d), got {q.shape}, {k.shape}, {v.shape}")
    scores = q.shape[:3] + k.shape[2:3]
    if bias is not None and (bias.ndim > 4 or any(n not in (1, m) for n, m in zip(bias.shape[::-1], scores[::-1]))):
        raise ValueError(f"attention needs a bias like its scores {scores}, got {bias.shape}")
    xp = array_module(q)
    out = xp.empty(q.shape, q.dtype)
    attend_pullback = implementation(attend, q)(q, k, v, bias, scale, out)

    def pullback(dout):
        dq, dk, dv = (xp.empty(x.shape, x.dtype) for x in (q, k, v))
        return dq, dk, dv, attend_pullback(dout, dq, dk, dv)

    return out, pullback


@op
def self_attention(qkv, num_heads, scale=None):
    """Multi-head self-attention of packed projections: the step between the two Linears of a block.

    qkv (B, N, 3D), in the order (q or k or v, head, channel), is read in place through strided views; the
    result (B, N, D) holds the heads side by side; ``scale`` defaults to 1/√d, d = D / H.
    Raises ValueError where 3D is not a multiple of 3H.

    >>> self_attention(Tensor(np.ones((1, 5, 12), np.float32)), num_heads=2).shape
    (1, 5, 4)
    """
    if qkv.ndim != 3 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(f"self_attention needs qkv (B, N, 3D), D a multiple of num_heads={num_heads}, got {qkv.shape}")
    xp = array_module(qkv)
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    packed = (batch, tokens, 3, num_heads, width // num_heads)
    q, k, v = qkv.reshape(packed).transpose(2, 0, 3, 1, 4)  # three (B, H, N, d)
    out = xp.empty((batch, tokens, num_heads, width // num_heads), qkv.dtype)
    attend_pullback = implementation(attend, q)(q, k, v, None, scale, out.transpose(0, 2, 1, 3))

    def pullback(dy):
        dqkv = xp.empty(packed, dy.dtype)
        attend_pullback(dy.reshape(out.shape).transpose(0, 2, 1, 3), *dqkv.transpose(2, 0, 3, 1, 4))
        return dqkv.reshape(batch, tokens, 3 * width)

    return out.reshape(batch, tokens, width), pullback


def attend(q: Array, k: Array, v: Array, bias: Array | None, scale: float | None, o: Array) -> Callable:
    """Write O to ``o``; the pullback takes dO, writes dQ, dK and dV to arrays like Q, K and V, and returns dbias."""
    xp = array_module(q)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    bias_shape = None if bias is None or not wanted(3) else bias.shape
    a = q @ k.swapaxes(-1, -2)
    a *= scale
    if bias is not None:
        a += bias
    a -= a.max(-1, keepdims=True)
    xp.exp(a, out=a)
    a /= _row_sums(a)
    xp.matmul(a, v, out=o)

    def pullback(do, dq, dk, dv):
        ds = do @ v.swapaxes(-1, -2)
        ds -= _row_sums(do * o)
        ds *= a
        dbias = None if bias_shape is None else unbroadcast(ds, bias_shape)  # summed here: ds is large
        ds = xp.multiply(ds, scale, out=None if dbias is ds else ds)
        xp.matmul(ds, k, out=dq)
        xp.matmul(ds.swapaxes(-1, -2), q, out=dk)
        xp.matmul(a.swapaxes(-1, -2), do, out=dv)
        return dbias

    return pullback


def _row_sums(x: Array) -> Array:
    """Σ over the last axis, which stays with length 1: as a product, a sum runs at BLAS speed."""
    return x @ array_module(x).ones((x.shape[-1], 1), x.dtype)
