"""A learned number for each *range* of distances (T5: Raffel et al., 2019, arXiv:1910.10683, section 2.1).

    A = softmax(q kᵀ/√d + B),   B[h, i, j] = table[bucket(j − i), h]

The sequence is one line: prefix tokens, then the patches row by row. Half of the buckets are for keys before the query,
half for keys after it. Of each half, the first half of the buckets holds one distance each, 0, 1, 2, …; the others
hold ranges that grow geometrically up to ``max_distance``, and the last takes all that is further. With 32 buckets and
128 a bucket begins at

    0 1 2 3 4 5 6 7   8 12 16 23 32 46 64 91.

Near neighbours are told apart, far ones only roughly; and as no distance is unknown, the same table serves any length.
T5 shares one table among its layers, and does not divide by √d; here each layer has its own, and the scores are scaled.
"""

from types import ModuleType

import numpy as np

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.backend import Array, array_module
from minivit.nn.position.relative import Grid, RelativePosition


def bucket_starts(num_buckets: int = 32, max_distance: int = 128) -> list[int]:
    """The smallest distance of each bucket of one direction, num_buckets / 2 numbers.

    With e = num_buckets/4, bucket e + m begins at e (max_distance/e)^(m/e), rounded up: in whole numbers, the first
    s with s^e e^m ≥ e^e max_distance^m, so that no rounding of a logarithm can move it.
    Raises ValueError where num_buckets is no multiple of 4, or max_distance is not larger than a quarter of it.

    >>> bucket_starts()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    """
    exact, rest = divmod(num_buckets, 4)
    if rest or not 0 < exact < max_distance:
        raise ValueError(
            f"num_buckets must be a multiple of 4, and max_distance larger than a quarter of it, got {num_buckets} "
            f"and {max_distance}"
        )
    starts = list(range(exact))
    for m in range(exact):
        start = starts[-1]
        while start**exact * exact**m < exact**exact * max_distance**m:
            start += 1
        starts.append(start)
    return starts


def buckets(distances: Array, num_buckets: int = 32, max_distance: int = 128) -> Array:
    """The bucket of each distance key − query, integers like ``distances``; keys after the query are in the upper half.

    >>> buckets(np.array([-200, -9, -1, 0, 1, 9, 200]))
    array([15,  8,  1,  0, 17, 24, 31])
    """
    bucket = (distances > 0) * (num_buckets // 2)
    for start in bucket_starts(num_buckets, max_distance)[1:]:
        bucket = bucket + (abs(distances) >= start)
    return bucket


class T5Bias(RelativePosition):
    """``relative_attention_bias`` (num_buckets, num_heads).

    >>> T5Bias(grid=(2, 3), prefix_tokens=1, num_heads=4, head_dim=8).bias().shape
    (4, 7, 7)
    """

    def __init__(
        self, grid: Grid, prefix_tokens: int, num_heads: int, head_dim: int, num_buckets: int = 32,
        max_distance: int = 128,
    ):  # fmt: skip
        super().__init__(grid, prefix_tokens, num_heads, head_dim)
        bucket_starts(num_buckets, max_distance)  # do they go together?
        self.max_distance = max_distance
        self.relative_attention_bias = Parameter(np.zeros((num_buckets, num_heads), np.float32))

    def bias(self, queries: int | None = None) -> Tensor:
        table = self.relative_attention_bias
        chosen = self.membership(array_module(table.data)).astype(table.dtype)
        bias = ops.relative_bias(chosen @ table, (1, self.num_tokens))
        return bias if queries is None else bias[:, :queries]

    def membership(self, xp: ModuleType = np) -> Array:
        """(2N − 1, num_buckets): for query − key = −(N − 1) … N − 1, which bucket is it in? One True a row."""
        num_buckets, n = len(self.relative_attention_bias), self.num_tokens
        bucket = buckets(xp.arange(n - 1, -n, -1), num_buckets, self.max_distance)
        return bucket[:, None] == xp.arange(num_buckets)
