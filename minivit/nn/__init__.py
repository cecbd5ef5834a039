"""Layers, under the names the field gives them."""

from minivit.nn import init
from minivit.nn.attention import Attention
from minivit.nn.block import Block
from minivit.nn.dropout import Dropout, DropPath
from minivit.nn.linear import Linear
from minivit.nn.mlp import Mlp
from minivit.nn.module import Module, evaluating, observe, unobserved
from minivit.nn.normalization import Identity, LayerNorm, LayerScale
from minivit.nn.patch_embed import PatchEmbed, to_patches
from minivit.nn.position import sincos_2d
from minivit.nn.recompute import checkpoint
from minivit.nn.summary import summary
from minivit.nn.token import prepend_tokens

__all__ = [
    "Attention", "Block", "DropPath", "Dropout", "Identity", "LayerNorm", "LayerScale", "Linear", "Mlp", "Module",
    "PatchEmbed", "checkpoint", "evaluating", "init", "observe", "prepend_tokens", "sincos_2d", "summary", "to_patches",
    "unobserved",
]  # fmt: skip
