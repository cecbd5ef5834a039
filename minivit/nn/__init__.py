"""Layers, under the names the field gives them."""

from minivit.nn import init
from minivit.nn.attention import Attention
from minivit.nn.batch_norm import BatchNorm1d, BatchNorm2d
from minivit.nn.block import Block
from minivit.nn.convolution import AvgPool2d, Conv2d, MaxPool2d
from minivit.nn.device import check_device, on_device_of
from minivit.nn.dropout import Dropout, DropPath
from minivit.nn.linear import Linear
from minivit.nn.lsa import LocalitySelfAttention
from minivit.nn.mlp import Mlp
from minivit.nn.module import Module, evaluating, frozen, observe, unobserved
from minivit.nn.normalization import Identity, LayerNorm, LayerScale
from minivit.nn.patch_embed import PatchEmbed
from minivit.nn.position import (
    absolute_table,
    relative_position,
    resize_pos_embed,
    resize_rel_pos_bias_table,
    sincos_2d,
)
from minivit.nn.recompute import checkpoint
from minivit.nn.rela import GatedRMSNorm, RectifiedAttention
from minivit.nn.spt import ShiftedPatchEmbed
from minivit.nn.summary import summary
from minivit.nn.token import prepend_tokens

__all__ = [
    "Attention", "AvgPool2d", "BatchNorm1d", "BatchNorm2d", "Block", "Conv2d", "DropPath", "Dropout", "GatedRMSNorm",
    "Identity", "LayerNorm", "LayerScale", "Linear", "LocalitySelfAttention", "MaxPool2d", "Mlp", "Module",
    "PatchEmbed", "RectifiedAttention", "ShiftedPatchEmbed", "absolute_table", "check_device", "checkpoint",
    "evaluating", "frozen", "init", "observe", "on_device_of", "prepend_tokens", "relative_position",
    "resize_pos_embed", "resize_rel_pos_bias_table", "sincos_2d", "summary", "unobserved",
]  # fmt: skip
