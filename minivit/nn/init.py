"""Initial weights: the distributions, and the five named presets of Vision Transformers.

A preset says how each kind of parameter starts. Every parameter draws from its own stream, keyed by (seed, "init", its
name), so adding a layer does not change the others.

| preset | class token | positions | patch projection | Linear weights | Linear biases | head |
| --- | --- | --- | --- | --- | --- | --- |
| ``timm`` | N(0, 1e-6) | truncated N(0, .02) | as PyTorch | truncated N(0, .02) | 0 | as Linear |
| ``jax`` | 0 | N(0, .02) | LeCun normal | Xavier uniform | 0, in the MLP N(0, 1e-6) | 0 |
| ``moco`` | N(0, 1e-6) | truncated N(0, .02) | as PyTorch | Xavier uniform, q, k, v each on its own | 0 | as Linear |
| ``mae`` | N(0, .02) | 2-D sine and cosine | Xavier uniform, flattened | Xavier uniform | 0 | as Linear |
| ``book`` | N(0, 1) | N(0, 1) | as PyTorch | as PyTorch | as PyTorch | as PyTorch |

"As PyTorch" is uniform in ±1/√fan_in, for weights and biases alike. Norms start at weight 1 and bias 0, LayerScale at
its ``init_values``. Register tokens start as the class token. In every preset tables of relative positions and the
distillation token are drawn from truncated N(0, .02) (in ``book`` that token too is N(0, 1)), the mask token from
N(0, .02), and the frequencies of a mixed rotary embedding get one random direction a head.
"""

import itertools
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from minivit.autograd import Parameter
from minivit.backend import to_device
from minivit.nn.module import Module
from minivit.nn.position import mixed_frequencies, sincos_2d
from minivit.random import generator

Shape = tuple[int, ...]


# --- distributions: (shape, generator) → float32 -------------------------------------------------------------------


def normal(shape: Shape, rng: np.random.Generator, std: float = 1.0) -> np.ndarray:
    """N(0, std²).

    >>> normal((2, 3), np.random.default_rng(0)).dtype
    dtype('float32')
    """
    return rng.standard_normal(shape, np.float32) * np.float32(std)


def trunc_normal(shape: Shape, rng: np.random.Generator, std: float = 0.02) -> np.ndarray:
    """N(0, std²) cut at ±2, as timm's ``trunc_normal_``: in absolute units, so at std 0.02 nothing is cut.

    >>> bool(abs(trunc_normal((1000,), np.random.default_rng(0), std=1.0)).max() <= 2)
    True
    """
    x = normal(shape, rng, std)
    while (outside := np.abs(x) > 2).any():
        x[outside] = normal((int(outside.sum()),), rng, std)
    return x


def uniform(shape: Shape, rng: np.random.Generator, bound: float) -> np.ndarray:
    """Uniform in [−bound, bound).

    >>> bool(abs(uniform((100,), np.random.default_rng(0), 0.5)).max() <= 0.5)
    True
    """
    return (rng.random(shape, np.float32) * 2 - 1) * np.float32(bound)


def fan_in_uniform(shape: Shape, rng: np.random.Generator, fan_in: int | None = None) -> np.ndarray:
    """PyTorch's default for Linear and convolution: uniform in ±1/√fan_in, fan_in the inputs of one output.

    >>> bool(abs(fan_in_uniform((5, 4), np.random.default_rng(0))).max() <= 0.5)
    True
    """
    return uniform(shape, rng, 1 / math.sqrt(fan_in or math.prod(shape[1:])))


def xavier_uniform(shape: Shape, rng: np.random.Generator, matrices: int = 1) -> np.ndarray:
    """Uniform in ±√(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010); ``matrices`` stacked ones count one by one.

    >>> bool(abs(xavier_uniform((3, 3), np.random.default_rng(0))).max() <= 1.0)
    True
    """
    fan_out, fan_in = shape[0] / matrices, math.prod(shape[1:])
    return uniform(shape, rng, math.sqrt(6 / (fan_in + fan_out)))


def lecun_normal(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Variance 1/fan_in, a normal distribution cut at two standard deviations (and widened to make up for it).

    >>> lecun_normal((3, 4), np.random.default_rng(0)).shape
    (3, 4)
    """
    return trunc_normal(shape, rng, std=1.0) * np.float32(math.sqrt(1 / math.prod(shape[1:])) / 0.87962566103423978)


def kaiming_normal(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """N(0, 2/fan_out), fan_out the outputs that one input of a convolution goes to: O·kh·kw of a weight (O, C, kh, kw).

    He et al., "Delving Deep into Rectifiers", 2015 (arXiv:1502.01852), eq. 14: through a convolution and a ReLU, which
    is 0 for half of its inputs, cotangents keep their variance on the way back. timm and torchvision start their
    residual networks so.

    >>> kaiming_normal((8, 3, 3, 3), np.random.default_rng(0)).shape
    (8, 3, 3, 3)
    """
    return normal(shape, rng, math.sqrt(2 / (shape[0] * math.prod(shape[2:]))))


# --- the presets ---------------------------------------------------------------------------------------------------


def init_weights(model: Module, preset: str = "timm", seed: int = 0) -> None:
    """Set every Parameter of a Vision Transformer as the preset says, in place. See the table above.

    Raises ValueError for an unknown preset; ``"skip"`` leaves all as it is.

    >>> from minivit.models import create_model
    >>> model = create_model("vit_nano_patch4_28", weight_init="skip")
    >>> init_weights(model, "jax")
    >>> float(abs(model.head.weight.data).max())
    0.0
    """
    if preset == "skip":
        return
    if preset not in PRESETS:
        raise ValueError(f"weight_init must be one of {', '.join(PRESETS)} or skip, got {preset!r}")
    for prefix, module in model.named_modules():
        kind = type(module).__name__
        for name, parameter in vars(module).items():
            fill = PRESETS[preset].get(_ROLES.get((kind, name), name))
            if fill is not None and isinstance(parameter, Parameter) and parameter.requires_grad:
                path = f"{prefix}.{name}" if prefix else name
                start = fill(module, path, parameter.shape, generator(seed, "init", path))
                parameter.data[...] = to_device(start, parameter.device)


_ROLES = {
    ("Linear", "weight"): "linear_weight",
    ("Linear", "bias"): "linear_bias",
    ("PatchProjection", "weight"): "patch_weight",
    ("PatchProjection", "bias"): "patch_bias",
    ("VisionTransformer", "reg_token"): "cls_token",
    ("SimMIM", "reg_token"): "cls_token",
    ("VisionTransformerDistilled", "reg_token"): "cls_token",
}


def _zeros(module, path, shape, rng):
    return np.zeros(shape, np.float32)


def _by(distribution, **options):
    return lambda module, path, shape, rng: distribution(shape, rng, **options)


def _as_pytorch(module, path, shape, rng):
    return fan_in_uniform(shape, rng, math.prod(module.weight.shape[1:]))


def _xavier_flat(module, path, shape, rng):
    return xavier_uniform((shape[0], math.prod(shape[1:])), rng).reshape(shape)


def _jax_weight(module, path, shape, rng):
    return _zeros(module, path, shape, rng) if path.startswith("head") else xavier_uniform(shape, rng)


def _jax_bias(module, path, shape, rng):
    return normal(shape, rng, 1e-6) if ".mlp." in path else _zeros(module, path, shape, rng)


def _moco_weight(module, path, shape, rng):
    return xavier_uniform(shape, rng, matrices=3 if ".qkv." in path else 1)


def _mae_positions(module, path, shape, rng):
    return sincos_2d(shape[-1], module.patch_embed.grid_size, prefix_tokens=shape[1] - module.patch_embed.num_patches)


def _mixed_frequencies(module, path, shape, rng):
    return mixed_frequencies(shape[1], module.head_dim, rng.uniform(0, 2 * math.pi, shape[1]), module.theta)


_everywhere = {
    "dist_token": _by(trunc_normal, std=0.02),
    "mask_token": _by(normal, std=0.02),
    "relative_position_bias_table": _by(trunc_normal, std=0.02),
    "relative_attention_bias": _by(trunc_normal, std=0.02),
    "relative_keys": _by(trunc_normal, std=0.02),
    "relative_values": _by(trunc_normal, std=0.02),
    "freqs": _mixed_frequencies,
}
_pytorch_patch = {"patch_weight": _as_pytorch, "patch_bias": _as_pytorch}
PRESETS = {
    "timm": _everywhere
    | _pytorch_patch
    | {
        "cls_token": _by(normal, std=1e-6),
        "pos_embed": _by(trunc_normal, std=0.02),
        "linear_weight": _by(trunc_normal, std=0.02),
        "linear_bias": _zeros,
    },
    "jax": _everywhere
    | {
        "cls_token": _zeros,
        "pos_embed": _by(normal, std=0.02),
        "patch_weight": _by(lecun_normal),
        "patch_bias": _zeros,
        "linear_weight": _jax_weight,
        "linear_bias": _jax_bias,
    },
    "moco": _everywhere
    | _pytorch_patch
    | {
        "cls_token": _by(normal, std=1e-6),
        "pos_embed": _by(trunc_normal, std=0.02),
        "linear_weight": _moco_weight,
        "linear_bias": _zeros,
    },
    "mae": _everywhere
    | {
        "cls_token": _by(normal, std=0.02),
        "pos_embed": _mae_positions,
        "patch_weight": _xavier_flat,
        "patch_bias": _as_pytorch,
        "linear_weight": _by(xavier_uniform),
        "linear_bias": _zeros,
    },
    "book": _everywhere
    | _pytorch_patch
    | {
        "cls_token": _by(normal),
        "dist_token": _by(normal),
        "pos_embed": _by(normal),
        "linear_weight": _as_pytorch,
        "linear_bias": _as_pytorch,
    },
}


# --- layers on their own -------------------------------------------------------------------------------------------


class _Construction(threading.local):
    deferred = False


_construction = _Construction()
_layers = itertools.count()


@contextmanager
def deferred() -> Iterator[None]:
    """Inside: new layers start at zero, at no cost; a model uses it while it builds, then calls ``init_weights``.

    >>> from minivit.nn import Linear
    >>> with deferred():
    ...     layer = Linear(2, 2)
    >>> float(abs(layer.weight.data).max())
    0.0
    """
    outer, _construction.deferred = _construction.deferred, True
    try:
        yield
    finally:
        _construction.deferred = outer


def default(shape: Shape, fan_in: int) -> np.ndarray:
    """PyTorch's default for a layer made on its own; the stream is the number of the layer in this process."""
    if _construction.deferred:
        return np.zeros(shape, np.float32)
    return fan_in_uniform(shape, generator(0, "layer", next(_layers)), fan_in)
