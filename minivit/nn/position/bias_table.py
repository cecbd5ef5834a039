"""A learned number for each displacement of two patches (Swin: Liu et al., 2021, arXiv:2103.14030, eq. 4).

    A = softmax(q kᵀ/√d + B),   B[h, n, m] = table[r(n, m), h]

r numbers the (2H − 1)(2W − 1) displacements between two patches of an H × W grid, row by row: every pair that is moved
together shares its number, so B knows distance and direction, not place. Class token and registers have no place.
As in BEiT (Bao et al., 2021, arXiv:2106.08254), three more rows serve them all: prefix → patch, patch → prefix,
prefix → prefix.
"""

import numpy as np

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.nn.position.relative import Grid, RelativePosition
from minivit.nn.position.resize import resize_rel_pos_bias_table


class BiasTable(RelativePosition):
    """``relative_position_bias_table`` ((2H − 1)(2W − 1), num_heads), three rows more where there are prefix tokens.

    Name and shape are those of timm's ``RelPosBias``.

    >>> BiasTable(grid=(2, 3), prefix_tokens=1, num_heads=4, head_dim=8).bias().shape
    (4, 7, 7)
    """

    def __init__(self, grid: Grid, prefix_tokens: int, num_heads: int, head_dim: int):
        super().__init__(grid, prefix_tokens, num_heads, head_dim)
        length = (2 * grid[0] - 1) * (2 * grid[1] - 1) + (3 if prefix_tokens else 0)
        self.relative_position_bias_table = Parameter(np.zeros((length, num_heads), np.float32))

    def bias(self, queries: int | None = None) -> Tensor:
        bias = ops.relative_bias(self.relative_position_bias_table, self.grid, self.prefix_tokens)
        return bias if queries is None else bias[:, :queries]

    def resized_table(self, name: str, table: np.ndarray, grid: Grid) -> np.ndarray:
        return resize_rel_pos_bias_table(table, self.grid, grid)
