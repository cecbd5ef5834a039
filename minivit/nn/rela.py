"""Rectified linear attention, ReLA (Zhang, Titov and Sennrich, "Sparse Attention with Linear Units", 2021,
arXiv:2104.07012).

    A = ReLU(q kᵀ / √d)                       a token looks at nothing that points away from it: exact zeros
    y = proj(GatedRMSNorm(heads of A v))

Softmax gives every token some weight, and weights that sum to 1. Here neither holds: a row may be all zero (the head
has nothing to say of this token), or large. So the sums are brought to one size afterwards, by an RMSNorm over all
heads together, with a gate: o ↦ γ ⊙ o / √(mean(o²) + ε) ⊙ σ(g ⊙ o), with vectors γ and g that are learned.
"""

import numpy as np

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.nn.attention import Attention
from minivit.nn.module import Module


class GatedRMSNorm(Module):
    """γ ⊙ x / √(mean(x²) + eps) ⊙ σ(g ⊙ x) over the last axis; ``weight`` γ starts at 1, ``gate`` g at 0: half open.

    >>> GatedRMSNorm(2)(Tensor([[3.0, 3.0]])).numpy().round(3)
    array([[0.5, 0.5]], dtype=float32)
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        self.eps = eps
        self.weight = Parameter(np.ones(dim, np.float32))
        self.gate = Parameter(np.zeros(dim, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps) * ops.sigmoid(x * self.gate)

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"


class RectifiedAttention(Attention):
    """Multi-head attention with ReLU in place of softmax, (B, N, dim) → (B, N, dim); arguments of ``Attention``.

    >>> RectifiedAttention(dim=8, num_heads=2)(Tensor(np.ones((1, 5, 8), np.float32))).shape
    (1, 5, 8)
    """

    fused = False  # ReLU is one pass over the scores: there is nothing to fuse

    def __init__(self, dim: int, num_heads: int = 8, *args, norm_eps: float = 1e-6, **options):
        super().__init__(dim, num_heads, *args, norm_eps=norm_eps, **options)
        self.norm = GatedRMSNorm(self.width, norm_eps)

    def weights(self, scores: Tensor) -> Tensor:
        return ops.relu(scores)

    def combined(self, y: Tensor) -> Tensor:
        return self.norm(y)
