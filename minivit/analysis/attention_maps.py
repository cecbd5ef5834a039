"""What a Vision Transformer looks at: its attention weights, read while it runs."""

import numpy as np

from minivit.backend import Array, to_device
from minivit.nn import Attention, Module, evaluating, observe


def attention_maps(model: Module, images: Array) -> list[np.ndarray]:
    """The attention weights of every layer, from first to last, for images (B, C, H, W): arrays (B, H, N, N).

    Row n of a map says how token n divides its attention over all tokens; rows sum to 1. The model is in evaluation
    mode meanwhile, and its layers on their path of small ops, where the weights exist as such. Raises ValueError for a
    model without attention.

    >>> from minivit.models import create_model
    >>> maps = attention_maps(create_model("vit_nano_patch7_28"), np.zeros((2, 1, 28, 28), np.float32))
    >>> len(maps), maps[-1].shape, float(maps[-1].sum(-1).max().round(4))
    (4, (2, 4, 17, 17), 1.0)
    """
    layers = [module for _, module in model.named_modules() if isinstance(module, Attention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no attention layer")
    weights = {id(layer.attn_drop): None for layer in layers}

    def keep(module, inputs, output):
        if id(module) in weights:
            weights[id(module)] = to_device(output.data, "cpu")

    fused = [layer.fused_attn for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        with evaluating(model), observe(keep):
            getattr(model, "forward_features", model)(images)  # the whole model asks its last block for less
    finally:
        for layer, value in zip(layers, fused):
            layer.fused_attn = value
    return list(weights.values())


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
