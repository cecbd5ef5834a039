"""A learned vector for each distance (Shaw, Uszkoreit and Vaswani, 2018, arXiv:1803.02155, section 3).

The key and the value of token j, as token i sees them, have a vector of their distance added to them:

    e_ij = q_i (k_j + a^K_r)ᵀ / √d,   z_i = Σ_j α_ij (v_j + a^V_r),   r = clip(j − i, −k, k).

The sequence is one line: prefix tokens, then the patches row by row. Distances beyond k count as k. All heads share
the 2k + 1 vectors of keys and of values. Taken apart, the terms q_i k_jᵀ and Σ α_ij v_j are those of plain attention.
What remains never needs a vector for each pair of tokens: a query is compared with the 2k + 1 vectors, and the results
are laid out over the tokens; the weights of equal distance are summed, and then weigh the 2k + 1 vectors.

    scores_ij = (q_i · a^K_r) at r = clip(j − i, −k, k)
    values_i  = Σ_r (Σ_{j at distance r} α_ij) a^V_r
"""

import numpy as np

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.nn.position.relative import Grid, RelativePosition


class ShawPosition(RelativePosition):
    """``relative_keys`` and ``relative_values`` (2 max_distance + 1, head_dim), from −max_distance to max_distance.

    Raises ValueError for a max_distance below 1.

    >>> shaw = ShawPosition(grid=(2, 3), prefix_tokens=1, num_heads=2, head_dim=4, max_distance=3)
    >>> shaw.scores(Tensor(np.ones((5, 2, 7, 4), np.float32))).shape
    (5, 2, 7, 7)
    >>> shaw.values(Tensor(np.ones((5, 2, 7, 7), np.float32))).shape
    (5, 2, 7, 4)
    """

    reads_weights = True

    def __init__(self, grid: Grid, prefix_tokens: int, num_heads: int, head_dim: int, max_distance: int = 16):
        super().__init__(grid, prefix_tokens, num_heads, head_dim)
        if max_distance < 1:
            raise ValueError(f"max_distance must be at least 1, got {max_distance}")
        self.max_distance = max_distance
        self.relative_keys = Parameter(np.zeros((2 * max_distance + 1, head_dim), np.float32))
        self.relative_values = Parameter(np.zeros((2 * max_distance + 1, head_dim), np.float32))

    @property
    def vectors(self) -> int:
        return len(self.relative_keys) + len(self.relative_values)

    def scores(self, q: Tensor) -> Tensor:
        return ops.by_distance(ops.linear(q, self.relative_keys), self.num_tokens)

    def values(self, weights: Tensor) -> Tensor:
        return ops.linear(ops.sum_by_distance(weights, self.max_distance), self.relative_values.T)
