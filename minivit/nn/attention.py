"""Multi-head self-attention (Vaswani et al., 2017, arXiv:1706.03762, section 3.2.2).

    x (B, N, D) ──qkv──▶ (B, N, 3D) ──split──▶ q, k, v: H heads of d = D/H channels, (B, H, N, d) each
    A = softmax(q kᵀ / √d)   (B, H, N, N): how much token n of head h looks at token m
    y = proj(heads of A v side by side)   (B, N, D)

First project, then split: each head sees all D channels of a token. Two paths compute the same numbers: the fused ops
of ``ops/attention.py``, and small ops, in which A is a Tensor of the graph that passes through ``attn_drop``, where
``nn.observe`` can read it and a loss can be put on it.
"""

import math

from minivit import ops
from minivit.autograd import Tensor
from minivit.nn.dropout import Dropout
from minivit.nn.linear import Linear
from minivit.nn.module import Module
from minivit.nn.normalization import Identity, LayerNorm


class Attention(Module):
    """Multi-head self-attention, (B, N, dim) → (B, N, dim), with timm's names.

    ``qk_norm`` normalises q and k of each head (Dehghani et al., 2023, arXiv:2302.05442). ``fused_attn`` chooses the
    fused ops; dropout on A needs the other path, which is then taken. With ``queries`` only the first so many tokens
    look at the others, (B, queries, dim). Raises ValueError where H does not divide dim, or for less than one query.

    >>> Attention(dim=8, num_heads=2)(Tensor(np.ones((1, 5, 8), np.float32))).shape
    (1, 5, 8)
    """

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = True, qk_norm: bool = False, attn_drop: float = 0.0,
        proj_drop: float = 0.0, norm_eps: float = 1e-6,
    ):  # fmt: skip
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads {num_heads} must divide dim {dim}")
        self.num_heads = num_heads
        self.qk_norm = qk_norm
        self.fused_attn = True
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = LayerNorm(dim // num_heads, norm_eps) if qk_norm else Identity()
        self.k_norm = LayerNorm(dim // num_heads, norm_eps) if qk_norm else Identity()
        self.attn_drop = Dropout(attn_drop)
        self.proj = Linear(dim, dim)
        self.proj_drop = Dropout(proj_drop)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        if queries is not None and queries < 1:
            raise ValueError(f"queries must be at least 1, got {queries}")
        if queries is not None and (self.drops_weights or queries >= x.shape[1]):
            return self.forward(x)[:, :queries]  # what is dropped of a row of A depends on its place among all rows
        fused = self.fused_attn and not self.drops_weights
        if fused and queries is None and not self.qk_norm:
            y = ops.self_attention(self.qkv(x), self.num_heads)
        else:
            q = self.q_norm(self.heads(x if queries is None else x[:, :queries], 0))
            k = self.k_norm(self.heads(x, 1))
            v = self.heads(x, 2)
            y = ops.scaled_dot_product_attention(q, k, v) if fused else self.composed(q, k, v)
            y = y.transpose(0, 2, 1, 3).reshape(len(x), -1, x.shape[-1])
        return self.proj_drop(self.proj(y))

    def heads(self, x: Tensor, part: int) -> Tensor:
        """Queries (part 0), keys (1) or values (2) of the tokens x (B, N, D), by a third of ``qkv``: (B, H, N, d)."""
        batch, tokens, dim = x.shape
        y = self.qkv(x, rows=slice(part * dim, (part + 1) * dim))
        return y.reshape(batch, tokens, self.num_heads, -1).transpose(0, 2, 1, 3)

    def composed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A v in small ops; q, k, v (B, H, N, d). The output of ``attn_drop`` is A, as a Tensor of the graph."""
        scores = q @ k.transpose(0, 1, 3, 2) * (1 / math.sqrt(q.shape[-1]))
        return self.attn_drop(ops.softmax(scores)) @ v

    @property
    def drops_weights(self) -> bool:
        """Is dropout at work on A?"""
        return self.training and self.attn_drop.p > 0

    def flops(self, inputs: tuple, output: Tensor) -> int:
        tokens = inputs[0].shape[1]
        queries = tokens if self.drops_weights else output.shape[1]
        return 2 * 2 * len(output) * queries * tokens * output.shape[2]  # q kᵀ and A v

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"
