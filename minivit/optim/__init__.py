"""Optimizers, over flat parameters."""

from minivit.optim.adamw import AdamW
from minivit.optim.clip import clip_grad_norm, norm_and_scale
from minivit.optim.ema import EMA
from minivit.optim.lars import LARS
from minivit.optim.optimizer import Optimizer
from minivit.optim.parameters import FlatParameters, layer_decay_groups, weight_decay_groups
from minivit.optim.schedule import warmup_cosine
from minivit.optim.sgd import SGD

__all__ = [
    "EMA", "LARS", "SGD", "AdamW", "FlatParameters", "Optimizer", "clip_grad_norm", "layer_decay_groups",
    "norm_and_scale", "warmup_cosine", "weight_decay_groups",
]  # fmt: skip
