"""What a Vision Transformer looks at: its attention weights, read while it runs."""

import numpy as np

from minivit.backend import Array, to_device
from minivit.nn import Module, check_device, evaluating, on_device_of
from minivit.nn.heads import Heads, observe_heads


def attention_maps(model: Module, images: Array) -> list[np.ndarray]:
    """The attention weights of every layer, from first to last, for images (B, C, H, W): arrays (B, H, N, N).

    Row n of a map says how token n divides its attention over all tokens; rows sum to 1. The model is in evaluation
    mode meanwhile, and its layers on their path of small ops, where the weights exist as such. From a GPU the maps are
    copied to the host.

    Raises ValueError for a model without attention, TypeError for images on another device than the model.

    >>> from minivit.models import create_model
    >>> maps = attention_maps(create_model("vit_nano_patch7_28"), np.zeros((2, 1, 28, 28), np.float32))
    >>> len(maps), maps[-1].shape, float(maps[-1].sum(-1).max().round(4))
    (4, (2, 4, 17, 17), 1.0)
    """
    maps: list[np.ndarray] = []

    def keep(layer: int, heads: Heads) -> None:
        maps.append(to_device(heads.weights.data, "cpu"))

    check_device(model, images=images)
    with on_device_of(model), evaluating(model), observe_heads(model, keep, weights=True):
        getattr(model, "forward_features", model)(images)  # the whole model asks its last block for less
    return maps


def class_attention(model: Module, images: Array) -> np.ndarray:
    """How the class token of the last block divides its attention over the patches: (B, H, grid height, grid width).

    The attention on prefix tokens is left out, so a map need not sum to 1; a network without a class token gives the
    mean over its patch tokens' rows.

    >>> from minivit.models import create_model
    >>> class_attention(create_model("vit_nano_patch7_28"), np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 4, 4, 4)
    """
    last = attention_maps(model, images)[-1]
    prefix = model.num_prefix_tokens
    rows = last[:, :, 0] if model.cls_token is not None else last[:, :, prefix:].mean(axis=2)
    return rows[:, :, prefix:].reshape(*rows.shape[:2], *model.patch_embed.grid_size)
