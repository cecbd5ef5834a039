"""Learned tables for images of another size: a table is a small image, and is resampled like one.

Resampling one axis is a linear map, so it is written as a matrix of (new, old) weights, and an image is resampled by
one product for its rows and one for its columns. Pixel i of n covers [i, i + 1) of a length n; pixel i of the new axis
has its centre at c = (i + ½) old/new on the old one (``align_corners=False``). It takes from old pixel j, at distance
t = j + ½ − c, with the weight of Keys' cubic convolution kernel (1981, doi:10.1109/TASSP.1981.1163711):

    w(t) = (a + 2)|t|³ − (a + 3)|t|² + 1            |t| < 1
           a|t|³ − 5a|t|² + 8a|t| − 4a          1 ≤ |t| < 2

A cubic has four coefficients, and each piece has four conditions: w(0) = 1 and w(1) = w(2) = 0, so that old pixels keep
their values, and the slopes 0 at t = 0 and t = 2 and a at t = 1, so that the curve has no corners. That leaves a: with
a = −½ parabolas are met exactly.

A smaller axis skips pixels, and what varies faster than the new pixels can show would appear as something slower.
*Antialiasing* widens the kernel by old/new, so that every old pixel has its share. As in PyTorch: with antialiasing
a = −½, the axis ends where it ends, and weights are divided by their sum; without, a = −¾ and the last pixels are
repeated outwards.
"""

import numpy as np

from minivit.nn.position.relative import Grid


def keys_cubic(t: np.ndarray, a: float) -> np.ndarray:
    """The kernel w(t) above.

    >>> keys_cubic(np.array([0.0, 0.5, 1.5, 2.0]), a=-0.5)
    array([ 1.    ,  0.5625, -0.0625,  0.    ])
    """
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))


def resize_matrix(old: int, new: int, antialias: bool = True) -> np.ndarray:
    """(new, old): an axis of length ``new`` is this matrix times one of length ``old``; each row sums to 1.

    >>> resize_matrix(2, 4).round(3)
    array([[ 1.088, -0.088],
           [ 0.793,  0.207],
           [ 0.207,  0.793],
           [-0.088,  1.088]])
    """
    centre = (np.arange(new)[:, None] + 0.5) * (old / new) - 0.5  # counted from the centre of old pixel 0
    if antialias:
        weights = keys_cubic((np.arange(old) - centre) / max(old / new, 1.0), a=-0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    taps = np.floor(centre).astype(int) + np.arange(-1, 3)  # (new, 4)
    weights = keys_cubic(taps - centre, a=-0.75)
    inside = taps.clip(0, old - 1)[:, :, None] == np.arange(old)
    return (weights[:, :, None] * inside).sum(axis=1)


def resize_grid(table: np.ndarray, new: Grid, antialias: bool = True) -> np.ndarray:
    """(h, w, channels) → (*new, channels), in the dtype of the table.

    >>> resize_grid(np.ones((2, 3, 5)), (4, 4)).shape
    (4, 4, 5)
    """
    h, w, channels = table.shape
    rows = resize_matrix(h, new[0], antialias) @ table.reshape(h, w * channels)
    both = resize_matrix(w, new[1], antialias) @ rows.reshape(new[0], w, channels)
    return both.astype(table.dtype)


def resize_pos_embed(
    table: np.ndarray, old_grid: Grid, new_grid: Grid, prefix_tokens: int = 0, antialias: bool = True
) -> np.ndarray:
    """A learned table (1, prefix_tokens + h w, D) for another grid; rows of prefix tokens stay as they are.

    Raises ValueError where the table is not of ``old_grid``.

    >>> resize_pos_embed(np.ones((1, 1 + 4, 8)), (2, 2), (3, 5), prefix_tokens=1).shape
    (1, 16, 8)
    """
    expected = (1, prefix_tokens + old_grid[0] * old_grid[1], table.shape[-1])
    if table.shape != expected:
        raise ValueError(
            f"a position table for a grid {tuple(old_grid)} and {prefix_tokens} prefix tokens has shape {expected}, "
            f"got {table.shape}"
        )
    prefix, patches = table[0, :prefix_tokens], table[0, prefix_tokens:]
    resized = resize_grid(patches.reshape(*old_grid, -1), new_grid, antialias)
    return np.concatenate([prefix, resized.reshape(-1, table.shape[-1])])[None]


def resize_rel_pos_bias_table(table: np.ndarray, old_grid: Grid, new_grid: Grid, antialias: bool = True) -> np.ndarray:
    """A relative bias table ((2h − 1)(2w − 1) [+ 3], heads) for another grid; the three extra rows stay as they are.

    Displacements −(h − 1) … h − 1 are the pixels of an axis; displacement 0 stays in the middle.
    Raises ValueError where the table is not of ``old_grid``.

    >>> resize_rel_pos_bias_table(np.ones((9 + 3, 4)), (2, 2), (3, 3)).shape
    (28, 4)
    """
    old, new = (tuple(2 * side - 1 for side in grid) for grid in (old_grid, new_grid))
    count = old[0] * old[1]
    if table.ndim != 2 or len(table) not in (count, count + 3):
        raise ValueError(
            f"a bias table for a grid {tuple(old_grid)} has shape ({count} or {count + 3}, heads), got {table.shape}"
        )
    resized = resize_grid(table[:count].reshape(*old, -1), new, antialias)
    return np.concatenate([resized.reshape(-1, table.shape[1]), table[count:]])
