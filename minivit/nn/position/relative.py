"""Positions inside attention: what a query makes of a key may depend on where the key is, seen from the query.

A table that is added to the tokens tells each where it is. A *relative* position embedding acts in every attention
layer instead, on pairs of tokens. All that the field uses enter one formula, at four places:

    A = softmax((turn(q) turn(k)ᵀ + scores(q)) / √d + bias)
    y = A v + values(A)

    turn      q and k are rotated by their places: rotary embedding                  rope.py
    bias      a learned number for each displacement and head                        bias_table.py, t5.py
    scores    a learned vector for each distance, compared with the query            shaw.py
    values    a learned vector for each distance, averaged by A like the values      shaw.py

An attention layer asks for all four, and most answer that they do nothing there.
"""

import copy

import numpy as np

from minivit.autograd import Parameter, Tensor
from minivit.backend import to_device
from minivit.nn.module import Module

Grid = tuple[int, int]


class RelativePosition(Module):
    """Base of all: a grid of H × W patches after ``prefix_tokens`` (class token and registers), N tokens together.

    As it stands it does nothing. A subclass overrides what it does (and says with ``reads_weights`` that it needs A for
    ``values``, which the fused ops do not give, and with ``vectors`` how many learned vectors each query or its weights
    are multiplied with), and ``resized_table`` where a table of its depends on the grid. Tables start at zero;
    ``nn.init`` draws them.

    >>> plain = RelativePosition(grid=(2, 3), prefix_tokens=1, num_heads=2, head_dim=4)
    >>> plain.num_tokens, plain.bias() is None
    (7, True)
    """

    reads_weights = False
    vectors = 0

    def __init__(self, grid: Grid, prefix_tokens: int, num_heads: int, head_dim: int):
        self.grid = tuple(grid)
        self.prefix_tokens = prefix_tokens
        self.num_heads = num_heads
        self.head_dim = head_dim

    @property
    def num_tokens(self) -> int:
        """N, prefix tokens and patches."""
        return self.prefix_tokens + self.grid[0] * self.grid[1]

    def turn(self, x: Tensor) -> Tensor:
        """Queries or keys (B, H, n, d), of which row i is token i (n may be less than N) → the same shape."""
        return x

    def bias(self, queries: int | None = None) -> Tensor | None:
        """(H, n, N), added to the scaled scores of the first n = ``queries`` tokens (default all); None for nothing."""
        return None

    def scores(self, q: Tensor) -> Tensor | None:
        """From queries (B, H, n, d): (B, H, n, N), added to q kᵀ before it is scaled; None for nothing."""
        return None

    def values(self, weights: Tensor) -> Tensor | None:
        """From attention weights A (B, H, n, N): (B, H, n, d), added to A v; None for nothing."""
        return None

    def resized(self, grid: Grid) -> "RelativePosition":
        """The same embedding for another grid, with Parameters of its own: for images of another size.

        What depends on the distance alone stays as it is; tables of the grid are resampled.
        """
        new = copy.copy(self)
        new.grid = tuple(grid)
        for name, parameter in self.named_parameters():
            table = self.resized_table(name, to_device(parameter.data, "cpu"), new.grid)
            setattr(new, name, Parameter(to_device(np.array(table), parameter.device)))
        return new

    def resized_table(self, name: str, table: np.ndarray, grid: Grid) -> np.ndarray:
        """The table ``name`` for another grid."""
        return table

    def extra_repr(self) -> str:
        return f"grid={self.grid}, prefix_tokens={self.prefix_tokens}"
