"""Locality self-attention and shifted patches of vit-pytorch, rectified attention by its formula: ``variants.npz``.

Needs torch, vit-pytorch and einops; only ``make_golden.py`` imports this file. Each array has the name of minivit's own
in ``variant_cases.py``, and is computed from the same numbers, in float64.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from tests.golden import (
    cases,
    reference,  # noqa: F401  (makes torchvision importable, which vit-pytorch imports)
    variant_cases,
)

from vit_pytorch.vit_for_small_dataset import LSA, SPT  # isort: skip

Arrays = dict[str, np.ndarray]
LSA_NAMES = {  # vit-pytorch's names of minivit's parameters
    "norm.weight": "norm.weight", "norm.bias": "norm.bias", "attn.qkv.weight": "to_qkv.weight",
    "attn.proj.weight": "to_out.0.weight", "attn.proj.bias": "to_out.0.bias", "attn.temperature": "temperature",
}  # fmt: skip
SPT_NAMES = {
    "norm.weight": "to_patch_tokens.1.weight", "norm.bias": "to_patch_tokens.1.bias",
    "proj.weight": "to_patch_tokens.2.weight", "proj.bias": "to_patch_tokens.2.bias",
}  # fmt: skip


def golden_variants() -> Arrays:
    """Outputs, and the gradients of the input and of all parameters."""
    width, channels = variant_cases.TOKENS_SHAPE[-1], variant_cases.IMAGES_SHAPE[1]
    lsa = LSA(width, heads=variant_cases.HEADS, dim_head=variant_cases.HEAD)
    spt = SPT(dim=variant_cases.WIDTH, patch_size=variant_cases.PATCH, channels=channels)
    layers = variant_cases.layers()
    return {
        **with_gradients("lsa", *layers["lsa"], own(lsa, LSA_NAMES)),
        **with_gradients("spt", *layers["spt"], own(spt, SPT_NAMES, ("norm.weight", "norm.bias", "proj.weight"))),
        **with_gradients("rela", *layers["rela"], rectified),
    }


def with_gradients(name: str, layer, shape: tuple[int, ...], function: Callable) -> Arrays:
    """Of ``function(x, weights)``, with the weights under minivit's names and in minivit's shapes."""
    x = torch.from_numpy(variant_cases.given(name, shape)).requires_grad_()
    weights = {n: torch.from_numpy(w).requires_grad_() for n, w in variant_cases.weights(name, layer).items()}
    y = function(x, weights)
    y.backward(torch.from_numpy(cases.cotangent(name, tuple(y.shape))))
    gradients = {f"{name}.{n}.grad": w.grad.numpy() for n, w in weights.items()}
    return {name: y.detach().numpy(), f"{name}.grad": x.grad.numpy()} | gradients


def own(module: nn.Module, names: dict[str, str], per_pixel: tuple[str, ...] = ()) -> Callable:
    """The module as a function of minivit's weights; ``per_pixel``: those with a number for each in a patch."""
    shapes = {name: p.shape for name, p in module.named_parameters()}
    assert sorted(shapes) == sorted(names.values())

    def function(x, weights):
        theirs = {names[n]: pixels_first(w) if n in per_pixel else w for n, w in weights.items()}
        return torch.func.functional_call(module, {n: w.reshape(shapes[n]) for n, w in theirs.items()}, (x,))

    return function


def pixels_first(weight: torch.Tensor) -> torch.Tensor:
    """From minivit's order of the numbers in a patch, (channel, row, column), to (row, column, channel)."""
    channels, patch = 5 * variant_cases.IMAGES_SHAPE[1], variant_cases.PATCH
    return weight.reshape(-1, channels, patch, patch).permute(0, 2, 3, 1)


def rectified(x: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Rectified linear attention as its authors' program has it, one head after another."""
    heads, width = variant_cases.HEADS, variant_cases.HEAD
    q, k, v = (x @ weights["qkv.weight"].T + weights["qkv.bias"]).chunk(3, -1)
    outputs = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[..., part] @ k[..., part].mT / math.sqrt(width)
        outputs.append(scores.clamp(min=0) @ v[..., part])
    o = torch.cat(outputs, -1)
    gate = torch.sigmoid(weights["norm.gate"] * o)
    o = weights["norm.weight"] * o * torch.rsqrt((o * o).mean(-1, keepdim=True) + 1e-6) * gate
    return o @ weights["proj.weight"].T + weights["proj.bias"]
