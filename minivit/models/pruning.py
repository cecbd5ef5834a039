"""Taking heads out of a trained network: a smaller and faster one, in which the other heads work as before.

The output of an attention layer is a sum over its heads. With the columns of ``proj`` cut into H blocks of d,

    proj(O) = Σ_h O_h W_hᵀ + b,

so a head is gone when its block of columns is, and with them the rows of ``qkv`` that made its q, k and v. The result
is that of the whole network with the head's output set to 0. (Michel, Levy and Neubig, "Are Sixteen Heads Really Better
than One?", NeurIPS 2019, arXiv:1905.10650, take out the least important ones, without training again.)

All else is per channel of a token or of a head, and stays: LayerNorm, LayerScale, the MLP, the norms of q and k and the
temperature, which a layer's heads share. Two things are not. Relative positions may have a table for each head. And
rectified attention normalises the outputs of all heads together, by the mean of their squares: over the H′ heads that
are left it is H/H′ times as large, which a factor √(H/H′) in the weight of that norm makes up for.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minivit.autograd import Parameter
from minivit.backend import Array, array_module
from minivit.nn import Attention, Module
from minivit.nn.heads import attention_layers, outlet

PER_HEAD = {"relative_position_bias_table", "relative_attention_bias", "freqs"}  # of nn/position: (…, H, …)


def prune_heads(model: Module, heads: Mapping[int, Sequence[int]]) -> Module:
    """A copy of ``model`` without these heads: ``{layer: [head, …]}``, layers and heads numbered from 0.

    The heads that remain are numbered anew, in the same order. Each layer keeps one head or more: without any it would
    add the same vector to all tokens of all images, and should rather be left out as a layer. Make an optimizer for the
    copy only afterwards. To build the network again, as for loading its weights, see ``head_arguments``.

    Raises ValueError for layers and heads that are not there, and where no head would remain.

    >>> from minivit.models import create_model
    >>> model = create_model("vit_nano_patch7_28")
    >>> pruned = prune_heads(model, {0: [1, 2], 3: [0]})
    >>> [block.attn.num_heads for block in pruned.blocks], model.num_parameters() - pruned.num_parameters()
    ([2, 4, 4, 3], 12432)
    """
    pruned = copy.deepcopy(model)
    layers = attention_layers(pruned)
    for number, removed in heads.items():
        if not 0 <= number < len(layers):
            raise ValueError(f"there is no attention layer {number}: {type(model).__name__} has 0 … {len(layers) - 1}")
        count = layers[number].num_heads
        if absent := set(removed) - set(range(count)):
            raise ValueError(f"layer {number} has no head {min(absent)}: its heads are 0 … {count - 1}")
        kept = [head for head in range(count) if head not in removed]
        if not kept:
            raise ValueError(f"layer {number} would lose all of its {count} heads: it must keep at least one")
        _keep_heads(layers[number], kept)
    return pruned


def _keep_heads(layer: Attention, kept: list[int]) -> None:
    heads, width = layer.num_heads, layer.proj.weight.shape[1]
    dim = width // heads

    def keep(x: Array, parts: int) -> Array:
        """Of the first axis, which is (part, head, channel), the blocks of the heads in ``kept``."""
        blocks = x.reshape(parts, heads, dim, -1)
        blocks = array_module(x).stack([blocks[:, head] for head in kept], axis=1)
        return blocks.reshape(parts * len(kept) * dim, *x.shape[1:])

    _replace(layer.qkv.weight, keep(layer.qkv.weight.data, parts=3))
    if layer.qkv.bias is not None:
        _replace(layer.qkv.bias, keep(layer.qkv.bias.data, parts=3))
    _replace(layer.proj.weight, keep(layer.proj.weight.data.T, parts=1).T)
    if outlet(layer) == "norm":  # see nn/rela.py
        _replace(layer.norm.weight, keep(layer.norm.weight.data, parts=1) * math.sqrt(heads / len(kept)))
        _replace(layer.norm.gate, keep(layer.norm.gate.data, parts=1))
    layer.num_heads = len(kept)
    if layer.rel_pos is not None:
        layer.rel_pos.num_heads = len(kept)
        for name, table in layer.rel_pos.named_parameters():
            if name in PER_HEAD:
                _replace(table, array_module(table.data).stack([table.data[:, head] for head in kept], axis=1))


def _replace(parameter: Parameter, data: Array) -> None:
    parameter.data = array_module(data).ascontiguousarray(data)
    parameter.grad = None


def head_arguments(model: Module) -> dict[str, Any]:
    """The arguments of ``VisionTransformer`` that tell a pruned network from the whole one: plain numbers, as for JSON.

    ``num_heads``, for each block, and ``head_dim``, which is no longer ``embed_dim / num_heads``. A checkpoint whose
    ``meta`` has them among its "arguments" is loaded as any other.

    >>> from minivit.models import create_model
    >>> head_arguments(prune_heads(create_model("vit_nano_patch7_28"), {0: [1, 2]}))
    {'num_heads': [2, 4, 4, 4], 'head_dim': 16}
    """
    layers = attention_layers(model)
    return {
        "num_heads": [layer.num_heads for layer in layers],
        "head_dim": layers[0].proj.weight.shape[1] // layers[0].num_heads,
    }


def lowest_heads(scores: Sequence[np.ndarray], count: int) -> dict[int, list[int]]:
    """The ``count`` heads of the lowest scores, given as one array a layer: what ``prune_heads`` takes.

    The last head of a layer is passed over. Of equal scores the earlier layer and head goes first. Raises ValueError
    where there are not so many heads to remove.

    >>> lowest_heads([np.array([0.1, 0.2]), np.array([0.5, 0.3])], count=2)  # 0.2 is the last of its layer
    {0: [0], 1: [1]}
    """
    removable = sum(len(layer) - 1 for layer in scores)
    if not 0 <= count <= removable:
        raise ValueError(f"count must lie in 0 … {removable}, as each layer keeps a head; got {count}")
    ranked = sorted((float(score), i, head) for i, layer in enumerate(scores) for head, score in enumerate(layer))
    removed: dict[int, list[int]] = {}
    for _, i, head in ranked:
        if sum(map(len, removed.values())) == count:
            break
        if len(removed.get(i, [])) < len(scores[i]) - 1:
            removed.setdefault(i, []).append(head)
    return {i: sorted(heads) for i, heads in sorted(removed.items())}
