"""facebookresearch/mae and transformers' ViTMAE: the arrays of ``mae.npz`` and ``mae_initialization.npz``.

Needs torch, timm and transformers, and the internet once; only ``make_golden.py`` imports this file. Each array has the
name of minivit's own in ``mae_cases.py``, and is computed from the same numbers.
"""

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from torch import nn

from tests.golden import cases, github, mae_cases, reference

from transformers import ViTMAEConfig, ViTMAEForPreTraining  # isort: skip

Arrays = dict[str, np.ndarray]
MAE = ("facebookresearch/mae", "efb2a8062c206524e35e47d04501ed4f544c0ae8")
FILES = (  # and what no longer runs, with today's NumPy and timm
    ("util/pos_embed.py", "a9e02a9a5e2587a42476bd827055b8f56ab3eaefef5e096d2fd8cadae5ddd099", {"np.float)": "float)"}),
    ("models_mae.py", "973c01f31fdf15febb5976baecd639b83a5cc011161af852e54ca68c6c2bafb4", {"qk_scale=None, ": ""}),
)


def golden_mae() -> Arrays:
    """Loss, prediction, mask and gradients of every case, and the tables of positions."""
    facebookresearch()
    table = sys.modules["util.pos_embed"].get_2d_sincos_pos_embed
    results = {
        name: table(width, mae_cases.GRID, cls_token=True).astype(np.float32)
        for name, width in mae_cases.TABLES.items()
    }
    for name, config in mae_cases.MODELS.items():
        make = transformers_network if name.startswith("transformers") else original_network
        results |= run(name, *make(config))
    return results


def golden_mae_initialization() -> Arrays:
    """Statistics of the original's initial weights, and how many numbers its named networks have."""
    original = facebookresearch()
    torch.manual_seed(0)
    model = original.MaskedAutoencoderViT(**mae_cases.INIT)
    results = {f"mae/{name}": cases.statistics(p.detach().numpy()) for name, p in model.named_parameters()}
    with torch.device("meta"):  # shapes, and no memory
        for name in mae_cases.NAMED:
            count = sum(p.numel() for p in getattr(original, name)().parameters())
            results[f"parameters/{name}"] = np.array(count)
    return results


def facebookresearch() -> ModuleType:
    """The module ``models_mae`` of facebookresearch/mae; in ``sys.modules`` is ``util.pos_embed`` too."""
    return [github.module(*MAE, *file) for file in FILES][-1]


def run(name: str, network: reference.Reference, forward: Callable) -> Arrays:
    """What ``forward(images, noise)`` of a network gives in float64: loss, prediction, mask."""
    network.module.double()
    network.load(cases.weights(name, network.shapes()))
    for parameter in network.module.parameters():
        parameter.requires_grad_()  # the tables too: they are left out below
    noise = torch.from_numpy(mae_cases.noise(name))
    loss, pred, mask = forward(torch.from_numpy(mae_cases.images(name)), noise)
    loss.backward()
    results = {"loss": np.array(loss.item()), "pred": pred.detach().numpy(), "mask": mask.numpy()}
    gradients = {n: g for n, g in network.gradients().items() if n not in mae_cases.FIXED}
    results |= {f"{n}.grad": mae_cases.entries(name, n, g) for n, g in gradients.items()}
    return {f"{name}.{key}": value for key, value in results.items()}


def original_network(config: dict) -> tuple[reference.Reference, Callable]:
    """facebookresearch/mae's network of these sizes, and how it is run with a given noise."""
    module = facebookresearch().MaskedAutoencoderViT(**config, norm_layer=functools.partial(nn.LayerNorm, eps=1e-6))
    network = reference.Reference(module, {name: (name,) for name, _ in module.named_parameters()})

    def forward(images, noise):
        with mock.patch.object(torch, "rand", lambda *shape, device: noise):
            return module(images, mask_ratio=mae_cases.RATIO)

    return network, forward


def transformers_network(config: dict) -> tuple[reference.Reference, Callable]:
    """transformers' network of these sizes, its parameters by minivit's names, and how it is run."""
    module = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=config["embed_dim"],
            num_hidden_layers=config["depth"],
            num_attention_heads=config["num_heads"],
            decoder_hidden_size=config["decoder_embed_dim"],
            decoder_num_hidden_layers=config["decoder_depth"],
            decoder_num_attention_heads=config["decoder_num_heads"],
            intermediate_size=int(config["embed_dim"] * config["mlp_ratio"]),
            decoder_intermediate_size=int(config["decoder_embed_dim"] * config["mlp_ratio"]),
            layer_norm_eps=config["norm_eps"],
            image_size=config["img_size"],
            patch_size=config["patch_size"],
            num_channels=config["in_chans"],
            mask_ratio=mae_cases.RATIO,
            norm_pix_loss=config.get("norm_pix_loss", False),
            attn_implementation="sdpa",  # "eager" takes the softmax in float32, whatever the input
        )
    )
    names = {
        "cls_token": ("vit.embeddings.cls_token",),
        "pos_embed": ("vit.embeddings.position_embeddings",),
        "mask_token": ("decoder.mask_token",),
        "decoder_pos_embed": ("decoder.decoder_pos_embed",),
        **reference.pair("patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
        **reference.pair("norm", "vit.layernorm"),
    }
    for part in ("decoder_embed", "decoder_norm", "decoder_pred"):
        names |= reference.pair(part, f"decoder.{part}")
    for i in range(config["depth"]):
        names |= reference.transformers_block(f"blocks.{i}", f"vit.layers.{i}")
    for i in range(config["decoder_depth"]):
        names |= reference.transformers_block(f"decoder_blocks.{i}", f"decoder.decoder_layers.{i}")

    def forward(images, noise):
        output = module(images, noise=noise)
        return output.loss, output.logits, output.mask

    return reference.Reference(module, names), forward
