"""Scaled dot-product attention (Vaswani et al., 2017, arXiv:1706.03762, eq. 1), fused: one op, one pullback.

    S = scale · Q Kᵀ      (B, H, N, M)
    A = softmax(S)        rows sum to 1
    O = A V               (B, H, N, d)

Backwards, with the products of ``ops/linear.py`` and the softmax of ``ops/activation.py``:

    dV = Aᵀ dO
    dA = dO Vᵀ
    dS = A ⊙ (dA − rowsum(dA ⊙ A)),   rowsum(dA ⊙ A) = rowsum(dO ⊙ O), which is N/d times smaller to compute
    dQ = scale · dS K
    dK = scale · dSᵀ Q

Kept for the way back: Q, K, V, A and O. The same attention in small ops, with A as a Tensor of the graph, is
``softmax(matmul(q, k.transpose(...)) * scale)``: see ``nn/attention.py``.
"""

import math

from minivit.autograd import op
from minivit.backend import Array, array_module


@op
def scaled_dot_product_attention(q, k, v, scale=None):
    """softmax(scale · Q Kᵀ) V for every sample and head; ``scale`` defaults to 1/√d.

    q (B, H, N, d), k (B, H, M, d), v (B, H, M, d) → (B, H, N, d).
    Raises ValueError where the shapes do not fit.

    >>> q, k, v = Tensor([[[[1.0]]]]), Tensor([[[[1.0], [1.0]]]]), Tensor([[[[2.0], [4.0]]]])
    >>> scaled_dot_product_attention(q, k, v).numpy().ravel()
    array([3.], dtype=float32)
    """
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3]
    if not fits:
        raise ValueError(f"attention needs q (B, H, N, d), k and v (B, H, M, d), got {q.shape}, {k.shape}, {v.shape}")
    return _attend(q, k, v, scale)


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
    out, attend_pullback = _attend(q, k, v, scale)

    def pullback(dy):
        dout = dy.reshape(batch, tokens, num_heads, -1).transpose(0, 2, 1, 3)
        dqkv = xp.empty(packed, dy.dtype)
        for dest, cotangent in zip(dqkv.transpose(2, 0, 3, 1, 4), attend_pullback(dout)):
            dest[...] = cotangent
        return dqkv.reshape(batch, tokens, 3 * width)

    return out.transpose(0, 2, 1, 3).reshape(batch, tokens, width), pullback


def _attend(q: Array, k: Array, v: Array, scale: float | None) -> tuple:
    xp = array_module(q)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    a = q @ k.swapaxes(-1, -2)
    a *= scale
    a -= a.max(-1, keepdims=True)
    xp.exp(a, out=a)
    a /= a.sum(-1, keepdims=True)
    o = a @ v

    def pullback(do):
        dv = a.swapaxes(-1, -2) @ do
        ds = do @ v.swapaxes(-1, -2)
        ds -= (do * o).sum(-1, keepdims=True)
        ds *= a
        ds *= scale
        return ds @ k, ds.swapaxes(-1, -2) @ q, dv

    return o, pullback
