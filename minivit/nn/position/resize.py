"""Learned tables for images of another size: a table is a small image, and is resampled like one.

``minivit/interpolation.py`` says how an axis is resampled, and why. As in PyTorch: with antialiasing a = −½, the axis
ends where it ends, and weights are divided by their sum; without, a = −¾ and the last pixels are repeated outwards.
"""

import numpy as np

from minivit.interpolation import keys_cubic, resampling_weights
from minivit.nn.position.relative import Grid


def resize_matrix(old: int, new: int, antialias: bool = True) -> np.ndarray:
    """(new, old): an axis of length ``new`` is this matrix times one of length ``old``; each row sums to 1.

    >>> resize_matrix(2, 4).round(3)
    array([[ 1.088, -0.088],
           [ 0.793,  0.207],
           [ 0.207,  0.793],
           [-0.088,  1.088]])
    """
    if antialias:
        return resampling_weights(np.arange(new)[:, None], np.arange(old), 0, old, new, "bicubic")
    centre = (np.arange(new)[:, None] + 0.5) * (old / new) - 0.5  # counted from the centre of old pixel 0
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
