"""Locality self-attention, LSA (Lee, Lee and Song, "Vision Transformer for Small-Size Datasets", 2021,
arXiv:2112.13492, section 3.2).

    A = softmax(q kᵀ · e^t, without the diagonal)

On little data attention stays flat: each token looks a little at all, and most at itself. Two changes sharpen it. The
temperature is learned, e^t, starting at t = ln(1/√d). And no token looks at itself: its score is taken out before the
softmax, so that its weight goes to the others; what a token is comes through the residual connection anyway.
"""

import math

import numpy as np

from minivit.autograd import Parameter, Tensor
from minivit.backend import array_module
from minivit.nn.attention import Attention

NEVER = -1e30  # as a score: e to this power is 0, and a row of nothing else still has a softmax


class LocalitySelfAttention(Attention):
    """Multi-head attention to the other tokens, at a learned temperature, (B, N, dim) → (B, N, dim).

    Arguments are those of ``Attention``; ``temperature`` t is one number a layer.

    >>> layer = LocalitySelfAttention(dim=8, num_heads=2)
    >>> layer(Tensor(np.ones((1, 5, 8), np.float32))).shape, round(float(layer.temperature.data), 3)
    ((1, 5, 8), -0.693)
    """

    packed = False

    def __init__(self, dim: int, num_heads: int = 8, *args, **options):
        super().__init__(dim, num_heads, *args, **options)
        self.temperature = Parameter(np.array(math.log(1 / math.sqrt(self.head_dim)), np.float32))

    def scaled(self, q: Tensor) -> Tensor:
        return q * self.temperature.exp()

    def bias(self, queries: int, tokens: int) -> Tensor:
        t = self.temperature.data
        diagonal = array_module(t).eye(queries, tokens, dtype=t.dtype) * NEVER
        places = super().bias(queries, tokens)
        return Tensor(diagonal) if places is None else places + diagonal
