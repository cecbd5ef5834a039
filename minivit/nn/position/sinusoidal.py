"""Fixed tables of sines and cosines: a place is written like a number on a clock face with many hands.

**One axis** (Vaswani et al., 2017, arXiv:1706.03762, section 3.5). For token t = 0, 1, … and i = 0 … D/2 − 1

    P[t, 2i] = sin(t ω_i),   P[t, 2i + 1] = cos(t ω_i),   ω_i = 10000^(−2i/D).

Each pair is a point on the unit circle, a hand that turns by ω_i from one token to the next. So all rows have the
same length, ‖P_t‖² = D/2; their inner product P_t · P_s = Σ_i cos((t − s) ω_i) depends on the distance alone; and
k tokens further is a rotation that does not depend on t: P_{t+k} = R(k) P_t, which a linear layer can learn.
(Lecture notes in circulation print t twice in the cosine. With it the sine and the cosine are no longer of the
same angle, and none of the three holds: the tests look for that misprint.)

**Two axes.** Each half of the channels encodes one coordinate. Three tables are in use, and weights trained with one
do not fit another. With x for the column, y for the row, and j = 0 … D/4 − 1:

    name          ω_j                         channels
    mae           10000^(−j / (D/4))          sin x ω, cos x ω, sin y ω, cos y ω
    simple_vit    10000^(−j / (D/4 − 1))      sin x ω, cos x ω, sin y ω, cos y ω
    timm          10000^(−j / (D/4))          sin y ω, sin x ω, cos y ω, cos x ω

He et al., 2021 (arXiv:2111.06377), ``util/pos_embed.py``; Beyer et al., 2022 (arXiv:2205.01580); timm's
``build_sincos2d_pos_embed``.
"""

import numpy as np

Grid = tuple[int, int]


def sincos_1d(embed_dim: int, tokens: int) -> np.ndarray:
    """The table of one axis, (tokens, embed_dim). Raises ValueError where embed_dim is odd.

    >>> sincos_1d(4, 2).round(2)
    array([[0.  , 1.  , 0.  , 1.  ],
           [0.84, 0.54, 0.01, 1.  ]], dtype=float32)
    """
    if embed_dim % 2:
        raise ValueError(f"embed_dim must be even for a table of sines and cosines, got {embed_dim}")
    angles = np.arange(tokens)[:, None] * 10000.0 ** (-np.arange(0, embed_dim, 2) / embed_dim)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(tokens, embed_dim).astype(np.float32)


def sincos_2d(embed_dim: int, grid: Grid, prefix_tokens: int = 0, form: str = "mae") -> np.ndarray:
    """The table of two axes in one of the three forms above, (1, prefix_tokens + rows · columns, embed_dim).

    Rows for prefix tokens (class and registers) are zero. Raises ValueError for another form, and where embed_dim is
    not a multiple of 4 (or, for "simple_vit", is 4: it has no ω then).

    >>> sincos_2d(8, (2, 3), prefix_tokens=1).shape
    (1, 7, 8)
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    quarter, rest = divmod(embed_dim, 4)
    least = 2 if form == "simple_vit" else 1
    if rest or quarter < least:
        raise ValueError(
            f"embed_dim must be a multiple of 4 for a 2-D table of sines and cosines, at least {4 * least} for "
            f"{form!r}, got {embed_dim}"
        )
    omega = 10000.0 ** (-np.arange(quarter) / (quarter - 1 if form == "simple_vit" else quarter))
    y, x = (place.reshape(-1, 1) * omega for place in np.indices(grid))  # angles, (N, D/4)
    waves = [np.sin(y), np.sin(x), np.cos(y), np.cos(x)] if form == "timm" else [*_waves(x), *_waves(y)]
    return np.pad(np.concatenate(waves, axis=1), ((prefix_tokens, 0), (0, 0)))[None].astype(np.float32)


def absolute_table(name: str, embed_dim: int, grid: Grid, prefix_tokens: int = 0) -> np.ndarray:
    """A fixed table by name, (1, prefix_tokens + rows · columns, embed_dim), to be added to the tokens.

    "sincos_mae", "sincos_simple" and "sincos_timm" encode row and column of a patch, and are zero for prefix tokens;
    "sincos_1d" numbers the whole sequence, prefix tokens first, then the patches row by row.
    Raises ValueError for another name, and a width that does not fit.

    >>> absolute_table("sincos_1d", 8, (2, 3), prefix_tokens=1).shape
    (1, 7, 8)
    """
    if name not in ABSOLUTE:
        raise ValueError(f"name must be one of {', '.join(ABSOLUTE)}, got {name!r}")
    if name == "sincos_1d":
        return sincos_1d(embed_dim, prefix_tokens + grid[0] * grid[1])[None]
    return sincos_2d(embed_dim, grid, prefix_tokens, ABSOLUTE[name])


FORMS = ("mae", "simple_vit", "timm")
ABSOLUTE = {"sincos_1d": None, "sincos_mae": "mae", "sincos_simple": "simple_vit", "sincos_timm": "timm"}


def _waves(angles: np.ndarray) -> list[np.ndarray]:
    return [np.sin(angles), np.cos(angles)]
