"""What both sides of the parity tests agree on: the cases, and the numbers that go in.

A golden file holds only what a reference computed: outputs and gradients. What goes in (weights, images, labels) is
drawn anew on both sides, each array from a stream of its own, named by case and array. So the files stay small, and
PyTorch is needed to write them (``make_golden.py``), not to read them.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minivit.random import generator

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ModelCase:
    """A network to compare: ``config`` are VisionTransformer's arguments (timm's), on top of those of ``name``.

    ``entries``: how many entries of each gradient are stored, chosen by key; None stores all of them.
    """

    reference: str  # "timm", "transformers" or "book"
    name: str | None = None
    config: dict = field(default_factory=dict)
    batch: int = 3
    entries: int | None = None

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the images."""
        size = self.config["img_size"]
        return self.batch, self.config.get("in_chans", 3), *(size if isinstance(size, tuple) else (size, size))


_SMALL = dict(img_size=(8, 12), patch_size=4, num_classes=5, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)

MODELS = {
    "timm_plain": ModelCase(
        "timm",
        config=_SMALL | dict(img_size=(24, 32), patch_size=(4, 8), in_chans=2, embed_dim=32, num_heads=4),
    ),
    "timm_registers": ModelCase(
        "timm",
        config=_SMALL | dict(global_pool="avg", qk_norm=True, init_values=0.1, reg_tokens=2, no_embed_class=True),
    ),
    "timm_no_class_token": ModelCase(
        "timm", config=_SMALL | dict(class_token=False, global_pool="avg", fc_norm=False, qkv_bias=False)
    ),
    "timm_pre_norm": ModelCase(
        "timm", config=_SMALL | dict(pre_norm=True, global_pool="avgmax", act="gelu_tanh", norm_eps=1e-5)
    ),
    "timm_no_positions": ModelCase(
        "timm",
        config=_SMALL | dict(pos_embed="none", reg_tokens=1, global_pool="max", final_norm=False, act="relu"),
    ),
    "timm_all_tokens": ModelCase("timm", config=_SMALL | dict(global_pool="", embed_dim=8, mlp_ratio=4.0)),
    "timm_vit_tiny": ModelCase("timm", name="vit_tiny_patch16_224", config=dict(img_size=224), batch=1, entries=64),
    "transformers": ModelCase("transformers", config=_SMALL | dict(norm_eps=1e-12, num_heads=4)),
    "transformers_no_bias": ModelCase("transformers", config=_SMALL | dict(norm_eps=1e-12, qkv_bias=False, depth=1)),
    "book_small": ModelCase("book", config=_SMALL | dict(img_size=8, qkv_bias=False, norm_eps=1e-5)),
    "book": ModelCase("book", name="vit_book", config=dict(img_size=32), batch=2, entries=64),
}


@dataclass(frozen=True)
class OpCase:
    """One call of one op: the shapes of its Tensors, its options, and for losses the kind of target."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    options: dict = field(default_factory=dict)
    target: str | None = None  # "labels" or "distribution"


OPS = {
    "relu": OpCase("relu", ((5, 7),)),
    "gelu": OpCase("gelu", ((40, 10),)),
    "gelu_tanh": OpCase("gelu", ((40, 10),), {"approximate": "tanh"}),
    "softmax": OpCase("softmax", ((3, 4, 5),)),
    "softmax_axis": OpCase("softmax", ((3, 4, 5),), {"axis": 1}),
    "log_softmax": OpCase("log_softmax", ((3, 4, 5),)),
    "linear": OpCase("linear", ((2, 3, 5), (4, 5), (4,))),
    "linear_no_bias": OpCase("linear", ((6, 5), (4, 5))),
    "mlp": OpCase("mlp", ((2, 3, 5), (7, 5), (7,), (4, 7), (4,))),
    "layer_norm": OpCase("layer_norm", ((2, 3, 8), (8,), (8,)), {"eps": 1e-5}),
    "attention": OpCase("scaled_dot_product_attention", ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4))),
    "attention_scale": OpCase("scaled_dot_product_attention", ((1, 2, 3, 4),) * 3, {"scale": 0.7}),
    "cross_entropy": OpCase("cross_entropy", ((6, 5),), target="labels"),
    "cross_entropy_none": OpCase("cross_entropy", ((6, 5),), {"reduction": "none"}, target="labels"),
    "cross_entropy_smooth": OpCase("cross_entropy", ((6, 5),), {"label_smoothing": 0.1}, target="labels"),
    "cross_entropy_soft": OpCase("cross_entropy", ((6, 5),), {"reduction": "sum"}, target="distribution"),
    "cross_entropy_soft_smooth": OpCase("cross_entropy", ((6, 5),), {"label_smoothing": 0.2}, target="distribution"),
    "mse_loss": OpCase("mse_loss", ((3, 4), (3, 4))),
    "conv2d": OpCase("conv2d", ((2, 3, 5, 6), (4, 3, 3, 3), (4,)), {"padding": 1}),
    "conv2d_stride": OpCase("conv2d", ((2, 2, 6, 7), (3, 2, 3, 2)), {"stride": (2, 3), "padding": (1, 0)}),
    "conv2d_groups": OpCase("conv2d", ((2, 4, 5, 5), (6, 2, 3, 3), (6,)), {"stride": 2, "padding": 1, "groups": 2}),
    "conv2d_depthwise": OpCase("conv2d", ((1, 3, 4, 4), (3, 1, 2, 2)), {"groups": 3}),
    "conv2d_1x1": OpCase("conv2d", ((2, 3, 3, 4), (2, 3, 1, 1), (2,)), {"stride": 2}),
    "conv2d_wide_padding": OpCase("conv2d", ((1, 2, 2, 3), (2, 2, 2, 1)), {"padding": 3}),
    "max_pool2d": OpCase("max_pool2d", ((2, 2, 5, 6),), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "max_pool2d_pair": OpCase("max_pool2d", ((1, 2, 5, 6),), {"kernel_size": (2, 3)}),
    "avg_pool2d": OpCase("avg_pool2d", ((2, 2, 5, 6),), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "avg_pool2d_pixels": OpCase(
        "avg_pool2d", ((1, 2, 5, 6),), {"kernel_size": (3, 2), "padding": (1, 0), "count_include_pad": False}
    ),
}


@dataclass(frozen=True)
class OptimizerCase:
    """An optimizer with PyTorch's arguments; ``clip``: the largest global norm of the gradients."""

    optimizer: str  # "SGD" or "AdamW"
    options: dict
    clip: float | None = None


OPTIMIZERS = {
    "sgd": OptimizerCase("SGD", dict(lr=0.1)),
    "sgd_momentum": OptimizerCase("SGD", dict(lr=0.1, momentum=0.9, weight_decay=0.05)),
    "sgd_nesterov": OptimizerCase("SGD", dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05)),
    "adamw": OptimizerCase("AdamW", dict(lr=0.01, weight_decay=0.05)),
    "adamw_mae": OptimizerCase("AdamW", dict(lr=0.02, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.3)),
    "adamw_clip": OptimizerCase("AdamW", dict(lr=0.01, weight_decay=0.05), clip=5.5),
}
STEPS = 20
PROBLEM = {"pos_embed": (1, 2, 3), "fc1.weight": (3, 4), "fc1.bias": (3,), "fc2.weight": (2, 3), "fc2.bias": (2,)}
SCHEDULE = dict(total_steps=STEPS, warmup_steps=5, base_lr=0.01, final_lr=1e-4, start_lr=1e-5)
EMA_DECAY = 0.9

INIT_PRESETS = ("timm", "jax", "moco", "book")


def init_config(preset: str) -> dict:
    """The network whose initial values are compared: large enough for its statistics to tell distributions apart."""
    size = dict(img_size=16, patch_size=4, num_classes=48, embed_dim=48, depth=1, num_heads=4, mlp_ratio=4.0)
    return size | dict(qkv_bias=preset != "book", reg_tokens=0 if preset == "book" else 2)


def weights(case: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A value in float64 for every parameter: rows of matrices have length about 1, gains are about 1, biases small."""
    return {name: _weight(generator(0, "golden", case, name).standard_normal(s), name) for name, s in shapes.items()}


def _weight(normal: np.ndarray, name: str) -> np.ndarray:
    if normal.ndim == 3:  # tokens and positions
        return 0.5 * normal
    if normal.ndim > 1:
        return normal / np.sqrt(np.prod(normal.shape[1:]))
    return 0.2 * normal + (1.0 if name.endswith(("weight", "gamma")) else 0.0)


def images(case: str, shape: tuple[int, ...]) -> np.ndarray:
    """Images (B, C, H, W) of normal numbers, in float64."""
    return generator(0, "golden", case, "images").standard_normal(shape)


def labels(case: str, shape: tuple[int, ...], classes: int) -> np.ndarray:
    """Integer labels of ``shape``."""
    return generator(0, "golden", case, "labels").integers(classes, size=shape)


def stored(case: str, name: str, gradient: np.ndarray) -> np.ndarray:
    """The part of a gradient that goes into the file: all of it, or ``entries`` of it."""
    entries = MODELS[case].entries
    if entries is None:
        return gradient
    return gradient.ravel()[generator(0, "golden", case, "entries", name).integers(gradient.size, size=entries)]


def op_inputs(case: str) -> list[np.ndarray]:
    """The arrays of an OpCase, spread enough (±9) to reach the tails of GELU; then the target, if it takes one."""
    spec = OPS[case]
    arrays = [3 * generator(0, "golden", case, i).standard_normal(shape) for i, shape in enumerate(spec.shapes)]
    *batch, classes = spec.shapes[0]
    if spec.target == "labels":
        arrays.append(labels(case, tuple(batch), classes))
    elif spec.target == "distribution":
        arrays.append(generator(0, "golden", case, "target").dirichlet(np.ones(classes), size=tuple(batch)))
    return arrays


def cotangent(case: str, shape: tuple[int, ...]) -> np.ndarray:
    """The ∂L/∂y that starts the way back through an op."""
    return np.asarray(generator(0, "golden", case, "cotangent").standard_normal(shape))


def step_gradient(step: int, name: str, parameter: np.ndarray) -> np.ndarray:
    """The gradient that every optimizer is given: of ½‖p‖² plus noise, so that it depends on the way so far."""
    noise = generator(0, "golden", "step", step, name).standard_normal(parameter.shape)
    return parameter + noise.astype(parameter.dtype)


def statistics(values: np.ndarray) -> np.ndarray:
    """Mean, standard deviation and kurtosis of initial values; kurtosis is 3 for normal, 1.8 for uniform numbers."""
    values = values.astype(np.float64)
    mean, std = values.mean(), values.std()
    kurtosis = ((values - mean) ** 4).mean() / std**4 if std > 0 else 0.0
    return np.array([mean, std, kurtosis])


def load(case: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file."""
    with np.load(FOLDER / f"{case}.npz") as file:
        return dict(file)


def differences(case: str, made: dict[str, np.ndarray]) -> dict[str, float]:
    """Of each array, the largest difference from the golden file's, in units of its largest entry there.

    Raises KeyError where a name is on one side only, ValueError where shapes differ.
    """
    stored = load(case)
    if odd := stored.keys() ^ made.keys():
        raise KeyError(f"{case}: only on one side: {', '.join(sorted(odd))}")
    for name, value in stored.items():
        if value.shape != made[name].shape:
            raise ValueError(f"{case}: {name} has shape {made[name].shape}, the reference's {value.shape}")
    return {name: float(abs(made[name] - value).max() / abs(value).max()) for name, value in stored.items()}
