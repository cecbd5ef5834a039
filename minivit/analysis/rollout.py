"""Attention rollout: what the tokens behind the last layer were made of (Abnar and Zuidema, "Quantifying Attention Flow
in Transformers", ACL 2020, arXiv:2005.00928, section 3).

A map of the last layer says which tokens of that layer are looked at, but those have each looked at others before. With
the residual connection, half of a token is taken to be itself, and half what its heads, on average, looked at:

    a_l = (mean_h A_l + I) / 2, its rows divided by their sums
    R = a_L a_{L−1} … a_1

Row n of R says how much of token n came from which token of the input. This is a model of the network, not the network:
values, norms and MLPs play no part in it, and neither does the answer; for that see ``relevance.py``.
"""

from collections.abc import Sequence

import numpy as np

from minivit.analysis.attention_maps import attention_maps
from minivit.backend import Array
from minivit.nn import Module

OVER_HEADS = {"mean": np.mean, "min": np.min, "max": np.max}


def rollout(maps: Sequence[np.ndarray], heads: str = "mean") -> np.ndarray:
    """R = a_L … a_1 of the attention weights of all layers, first to last, (B, H, N, N) each → (B, N, N).

    Rows of R sum to 1, also where those of A do not (rectified attention). ``heads``: "mean" over the heads of a layer,
    as in the paper, or "min" (only what all heads look at) or "max". ``maps`` as ``attention_maps`` returns them.

    Raises ValueError for no maps, for maps of other shapes, and for another ``heads``.

    >>> swap = np.array([[[[0.0, 1.0], [1.0, 0.0]]]])  # each of two tokens looks at the other
    >>> rollout([swap])
    array([[[0.5, 0.5],
            [0.5, 0.5]]])
    """
    if heads not in OVER_HEADS:
        raise ValueError(f"heads must be one of {', '.join(OVER_HEADS)}, got {heads!r}")
    shapes = [a.shape for a in maps]
    square = all(len(shape) == 4 and shape[2] == shape[3] for shape in shapes)
    if not square or len({shape[::2] for shape in shapes}) != 1:
        raise ValueError(f"maps must be arrays (B, H, N, N), one a layer, of one B and N, got shapes {shapes}")
    identity = result = np.eye(shapes[0][-1], dtype=maps[0].dtype)
    for a in maps:
        a = OVER_HEADS[heads](a, axis=1) + identity
        result = a / a.sum(-1, keepdims=True) @ result
    return result


def class_rollout(model: Module, images: Array, heads: str = "mean") -> np.ndarray:
    """How much of the class token comes from which patch of images (B, C, H, W): (B, grid height, grid width).

    The class token's row of ``rollout``. What comes from prefix tokens (class, distillation and register tokens) is
    left out, so a map need not sum to 1. A network without a class token gives the mean over its patch tokens' rows.
    Raises ValueError for a model without attention.

    >>> from minivit.models import create_model
    >>> class_rollout(create_model("vit_nano_patch7_28"), np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 4, 4)
    """
    rolled, prefix = rollout(attention_maps(model, images), heads), model.num_prefix_tokens
    rows = rolled[:, 0] if model.cls_token is not None else rolled[:, prefix:].mean(axis=1)
    return rows[:, prefix:].reshape(-1, *model.patch_embed.grid_size)
