"""Multi-head self-attention (Vaswani et al., 2017, arXiv:1706.03762, section 3.2.2).

    x (B, N, D) ──qkv──▶ (B, N, 3D) ──split──▶ q, k, v: H heads of d = D/H channels, (B, H, N, d) each
    A = softmax(q kᵀ / √d)   (B, H, N, N): how much token n of head h looks at token m
    y = proj(heads of A v side by side)   (B, N, D)

First project, then split: each head sees all D channels of a token. Two paths compute the same numbers: the fused ops
of ``ops/attention.py``, and small ops, in which A is a Tensor of the graph that passes through ``attn_drop``, where
``nn.observe`` can read it and a loss can be put on it.

A relative position embedding (``nn/position``) takes part in the scores; other kinds of attention (``rela.py``,
``lsa.py``) override the small methods below.
"""

import math
from collections.abc import Callable

from minivit import ops
from minivit.autograd import Tensor
from minivit.nn.dropout import Dropout
from minivit.nn.linear import Linear
from minivit.nn.module import Module
from minivit.nn.normalization import Identity, LayerNorm
from minivit.nn.position import RelativePosition

RelativePositions = Callable[[int, int], RelativePosition]  # num_heads, head_dim → an embedding for one layer


class Attention(Module):
    """Multi-head self-attention, (B, N, dim) → (B, N, dim), with timm's names.

    ``qk_norm`` normalises q and k of each head (Dehghani et al., 2023, arXiv:2302.05442). ``rel_pos`` makes a relative
    position embedding for so many heads of such a width. ``head_dim`` is the width d of a head, by default
    dim / num_heads. ``fused_attn`` chooses the fused ops; what needs A itself takes the other path: dropout on it, and
    Shaw's positions. With ``queries`` only the first so many tokens look at the others, (B, queries, dim).
    Raises ValueError where H does not divide dim and no ``head_dim`` is given, or for less than one query.

    >>> Attention(dim=8, num_heads=2)(Tensor(np.ones((1, 5, 8), np.float32))).shape
    (1, 5, 8)
    """

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = True, qk_norm: bool = False, attn_drop: float = 0.0,
        proj_drop: float = 0.0, norm_eps: float = 1e-6, rel_pos: RelativePositions | None = None,
        head_dim: int | None = None,
    ):  # fmt: skip
        if num_heads < 1 or (head_dim is None and dim % num_heads):
            raise ValueError(f"num_heads {num_heads} must divide dim {dim}")
        self.num_heads = num_heads
        self.head_dim = head_dim or dim // num_heads
        self.qk_norm = qk_norm
        self.fused_attn = True
        self.qkv = Linear(dim, 3 * self.width, bias=qkv_bias)
        self.q_norm = LayerNorm(self.head_dim, norm_eps) if qk_norm else Identity()
        self.k_norm = LayerNorm(self.head_dim, norm_eps) if qk_norm else Identity()
        self.rel_pos = None if rel_pos is None else rel_pos(num_heads, self.head_dim)
        self.attn_drop = Dropout(attn_drop)
        self.proj = Linear(self.width, dim)
        self.proj_drop = Dropout(proj_drop)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        if queries is not None and queries < 1:
            raise ValueError(f"queries must be at least 1, got {queries}")
        if queries is not None and (self.drops_weights or queries >= x.shape[1]):
            return self.forward(x)[:, :queries]  # what is dropped of a row of A depends on its place among all rows
        if queries is None and self.packed:
            y = ops.self_attention(self.qkv(x), self.num_heads)
        else:
            q = self.turned(self.q_norm(self.heads(x if queries is None else x[:, :queries], 0)))
            k = self.turned(self.k_norm(self.heads(x, 1)))
            y = self.attend(self.scaled(q), k, self.heads(x, 2))  # (B, H, N, d)
            y = y.transpose(0, 2, 1, 3).reshape(len(x), -1, self.width)
        return self.proj_drop(self.proj(self.combined(y)))

    def heads(self, x: Tensor, part: int) -> Tensor:
        """Queries (part 0), keys (1) or values (2) of the tokens x (B, N, D), by a third of ``qkv``: (B, H, N, d)."""
        batch, tokens, _ = x.shape
        y = self.qkv(x, rows=slice(part * self.width, (part + 1) * self.width))
        return y.reshape(batch, tokens, self.num_heads, self.head_dim).transpose(0, 2, 1, 3)

    def turned(self, x: Tensor) -> Tensor:
        """q or k (B, H, n, d), turned by their places where positions are rotary."""
        return x if self.rel_pos is None else self.rel_pos.turn(x)

    def scaled(self, q: Tensor) -> Tensor:
        """q / √d: then scores have a variance of one, if the entries of q and k have."""
        return q * (1 / math.sqrt(self.head_dim))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A v for scaled queries (B, H, n, d), keys and values (B, H, N, d) → (B, H, n, d)."""
        if self.fused:
            return ops.scaled_dot_product_attention(q, k, v, self.bias(q.shape[2], k.shape[2]), scale=1.0)
        weights = self.attn_drop(self.weights(self.scores(q, k)))
        y = weights @ v
        extra = None if self.rel_pos is None else self.rel_pos.values(weights)
        return y if extra is None else y + extra

    def bias(self, queries: int, tokens: int) -> Tensor | None:
        """What is added to the scores whatever q and k are: (H, queries, tokens) or None."""
        return None if self.rel_pos is None else self.rel_pos.bias(queries)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """q kᵀ and what the places add to it: (B, H, n, N)."""
        scores = q @ k.transpose(0, 1, 3, 2)
        extras = [self.bias(q.shape[2], k.shape[2]), None if self.rel_pos is None else self.rel_pos.scores(q)]
        for extra in extras:
            scores = scores if extra is None else scores + extra
        return scores

    def weights(self, scores: Tensor) -> Tensor:
        """A from the scores. The output of ``attn_drop``, to which it goes, is A as a Tensor of the graph."""
        return ops.softmax(scores)

    def combined(self, y: Tensor) -> Tensor:
        """The heads' outputs side by side, (B, n, H d), on their way to ``proj``."""
        return y

    @property
    def width(self) -> int:
        """H d, which is dim as long as no head was removed."""
        return self.num_heads * self.head_dim

    @property
    def drops_weights(self) -> bool:
        """Is dropout at work on A?"""
        return self.training and self.attn_drop.p > 0

    @property
    def fused(self) -> bool:
        """Does the fused op compute A v?"""
        return self.fused_attn and not self.drops_weights and not (self.rel_pos and self.rel_pos.reads_weights)

    @property
    def packed(self) -> bool:
        """Does the fused op take q, k and v as ``qkv`` gives them?"""
        return self.fused and not self.qk_norm and self.rel_pos is None

    def flops(self, inputs: tuple, output: Tensor) -> int:
        tokens = inputs[0].shape[1]
        queries = tokens if self.drops_weights else output.shape[1]
        vectors = 2 * tokens + (self.rel_pos.vectors if self.rel_pos else 0)  # q kᵀ, A v, and those of positions
        return 2 * len(output) * queries * vectors * self.width

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"
