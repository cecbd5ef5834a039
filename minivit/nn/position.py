"""Where a token is: attention alone treats tokens as a set, so positions are added to them.

A Vision Transformer learns its table of positions: one vector for every place, a Parameter ``pos_embed`` of the model.
This file holds the fixed table that the masked autoencoder starts from.
"""

import numpy as np


def sincos_2d(embed_dim: int, grid: tuple[int, int], prefix_tokens: int = 0) -> np.ndarray:
    """The masked autoencoder's fixed table (He et al., 2021; ``util/pos_embed.py`` of facebookresearch/mae).

    The first half of the channels encodes the column, the second the row, each as [sin(t ω) | cos(t ω)] with
    ω_i = 10000^(−i / (D/4)), i = 0 … D/4 − 1; rows for prefix tokens are zero. → (1, prefix_tokens + rows · columns, D)
    Raises ValueError where D is not a multiple of 4.

    >>> sincos_2d(8, (2, 3), prefix_tokens=1).shape
    (1, 7, 8)
    """
    if embed_dim % 4:
        raise ValueError(f"embed_dim must be a multiple of 4 for a 2-D table of sines and cosines, got {embed_dim}")
    rows, columns = (axis.ravel() for axis in np.indices(grid))
    omega = 10000.0 ** (-np.arange(embed_dim // 4) / (embed_dim // 4))
    waves = [wave(place[:, None] * omega) for place in (columns, rows) for wave in (np.sin, np.cos)]
    table = np.concatenate(waves, axis=1)
    return np.pad(table, ((prefix_tokens, 0), (0, 0)))[None].astype(np.float32)
