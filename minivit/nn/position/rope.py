"""Rotary position embedding: queries and keys are turned by an angle that grows with their place.

One pair of channels, as a complex number q = q_0 + i q_1, and one axis (Su et al., 2021, arXiv:2104.09864): turned by
angle tω at place t, a query at t and a key at s have the inner product

    Re(q e^(itω) · conj(k e^(isω))) = Re(q k̄ e^(i(t − s)ω)):

the places have become their difference. Nothing is added, lengths stay, and the values carry no position.

An image has two axes, x the column and y the row; a head has d/2 pairs (Heo et al., 2024, arXiv:2403.13298):

- **axial**: the first d/4 pairs turn with x, the others with y, by ω_i = θ^(−4i/d), i = 0 … d/4 − 1, with θ = 100. Each
  pair sees one axis.
- **mixed**: each pair turns by x ω_x + y ω_y, along a direction of its own; all (ω_x, ω_y) are learned, by head and by
  layer. They start with θ = 10 as two sets of d/4 directions at right angles, turned by one random angle a head.

Places are counted in patches, 0 … W − 1 and 0 … H − 1; a larger grid has larger places, and the coordinates are not
scaled to those of training. Prefix tokens are not turned.
"""

from types import ModuleType

import numpy as np

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.backend import Array, array_module
from minivit.nn.position.relative import Grid, RelativePosition


def coordinates(grid: Grid, prefix_tokens: int = 0, xp: ModuleType = np) -> Array:
    """(x, y) of each token, (prefix_tokens + H W, 2); prefix tokens are at (0, 0), where the angle is 0.

    >>> coordinates((2, 2), prefix_tokens=1)
    array([[0, 0], [0, 0], [1, 0], [0, 1], [1, 1]])
    """
    n = xp.arange(grid[0] * grid[1])
    return xp.pad(xp.stack([n % grid[1], n // grid[1]], axis=1), ((prefix_tokens, 0), (0, 0)), mode="constant")


def frequencies(head_dim: int, theta: float, xp: ModuleType = np) -> Array:
    """ω_i = θ^(−4i/d), i = 0 … d/4 − 1. Raises ValueError where head_dim is no multiple of 4.

    >>> frequencies(8, theta=100.0)
    array([1. , 0.1])
    """
    if head_dim % 4:
        raise ValueError(f"a 2-D rotary embedding needs head_dim to be a multiple of 4, got {head_dim}")
    return theta ** (-4 * xp.arange(head_dim // 4) / head_dim)


def mixed_frequencies(num_heads: int, head_dim: int, angles: np.ndarray, theta: float = 10.0) -> np.ndarray:
    """(ω_x, ω_y) of every pair, (2, num_heads, head_dim/2), for one angle φ a head.

    Half of the pairs of a head look along (cos φ, sin φ), half at a right angle to it, each with all ω_i.

    >>> mixed_frequencies(1, 4, np.zeros(1)).round(6) + 0.0
    array([[[1., 0.]],
           [[0., 1.]]])
    """
    directions = angles[:, None] + np.array([0, np.pi / 2])  # (H, 2)
    along = np.stack([np.cos(directions), np.sin(directions)])[..., None] * frequencies(head_dim, theta)
    return along.reshape(2, num_heads, head_dim // 2)


class Rope(RelativePosition):
    """What both kinds share. A subclass gives ``angles``, (N, d/2) or (H, N, d/2)."""

    def angles(self, like: Tensor) -> Array | Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no angles()")

    def turn(self, x: Tensor) -> Tensor:
        angles = self.angles(x)
        return ops.rotate(x, angles if x.shape[2] == self.num_tokens else angles[..., : x.shape[2], :])


class AxialRope(Rope):
    """Pairs turn with the column or with the row, by fixed frequencies. No Parameters.

    Raises ValueError where head_dim is no multiple of 4.

    >>> rope = AxialRope(grid=(2, 3), prefix_tokens=1, num_heads=2, head_dim=4)
    >>> rope.turn(Tensor(np.ones((5, 2, 7, 4), np.float32))).shape
    (5, 2, 7, 4)
    """

    def __init__(self, grid: Grid, prefix_tokens: int, num_heads: int, head_dim: int, theta: float = 100.0):
        super().__init__(grid, prefix_tokens, num_heads, head_dim)
        frequencies(head_dim, theta)  # does it fit?
        self.theta = theta

    def angles(self, like: Tensor) -> Array:
        """(N, d/2), on the device and in the precision of ``like``, float32 at least."""
        xp = array_module(like.data)
        places = coordinates(self.grid, self.prefix_tokens, xp)
        angles = places[:, :, None] * frequencies(self.head_dim, self.theta, xp)  # (N, 2, d/4)
        return angles.reshape(len(places), -1).astype(like.dtype if like.dtype.itemsize == 8 else xp.float32)


class MixedRope(Rope):
    """Each pair turns along a learned direction: ``freqs`` (2, num_heads, head_dim/2).

    Alone it starts at the axial directions; ``nn.init`` draws an angle for each head.

    >>> rope = MixedRope(grid=(2, 3), prefix_tokens=1, num_heads=2, head_dim=4)
    >>> rope.turn(Tensor(np.ones((5, 2, 7, 4), np.float32))).shape
    (5, 2, 7, 4)
    """

    def __init__(self, grid: Grid, prefix_tokens: int, num_heads: int, head_dim: int, theta: float = 10.0):
        super().__init__(grid, prefix_tokens, num_heads, head_dim)
        self.theta = theta
        self.freqs = Parameter(mixed_frequencies(num_heads, head_dim, np.zeros(num_heads), theta).astype(np.float32))

    def angles(self, like: Tensor) -> Tensor:
        """(H, N, d/2), a Tensor of the graph: x ω_x + y ω_y."""
        places = coordinates(self.grid, self.prefix_tokens, array_module(self.freqs.data)).astype(self.freqs.dtype)
        angles = places @ self.freqs.reshape(2, -1)  # (N, H d/2)
        return angles.reshape(len(places), self.num_heads, -1).transpose(1, 0, 2)
