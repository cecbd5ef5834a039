"""The networks, ops and optimizers that minivit is compared with: timm's, transformers', the book's and PyTorch's.

Needs torch, timm and transformers; only ``make_golden.py`` imports this file.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.golden import cases

try:
    import torchvision  # noqa: F401  (timm imports it)
except RuntimeError:  # built for another PyTorch: its two operators are missing, and nothing here calls them
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
import timm.models.vision_transformer
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from transformers import ViTConfig, ViTForImageClassification

ACTIVATIONS = {"gelu": nn.GELU, "gelu_tanh": functools.partial(nn.GELU, approximate="tanh"), "relu": nn.ReLU}


class Reference:
    """A network whose parameters go by timm's names: ``names`` maps each to the module's own.

    Several own names mean one fused parameter: their values lie one after another along the first axis.
    """

    def __init__(self, module: nn.Module, names: dict[str, tuple[str, ...]]):
        self.module = module.eval()
        self.names = names
        self.own = dict(module.named_parameters())
        assert sorted(self.own) == sorted(name for parts in names.values() for name in parts)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: value.shape for name, value in self._fused(lambda p: p.detach()).items()}

    def values(self) -> dict[str, np.ndarray]:
        return self._fused(lambda p: p.detach())

    def gradients(self) -> dict[str, np.ndarray]:
        return self._fused(lambda p: p.grad)

    def load(self, weights: dict[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, parts in self.names.items():
                for part, value in zip(parts, np.split(weights[name], len(parts))):
                    self.own[part].copy_(torch.from_numpy(value))

    def _fused(self, read) -> dict[str, np.ndarray]:
        return {n: np.concatenate([read(self.own[part]).numpy() for part in parts]) for n, parts in self.names.items()}


def build(case: cases.ModelCase) -> Reference:
    """The reference network of a case, with weights of its own."""
    return {"timm": timm_network, "transformers": transformers_network, "book": book_network}[case.reference](case)


def timm_network(case: cases.ModelCase) -> Reference:
    if case.name:
        module = timm.create_model(case.name, pretrained=False, **case.config)
    else:
        config = dict(case.config)
        activation = ACTIVATIONS[config.pop("act", "gelu")]
        norm = functools.partial(nn.LayerNorm, eps=config.pop("norm_eps", 1e-6))
        module = timm.models.vision_transformer.VisionTransformer(**config, norm_layer=norm, act_layer=activation)
    return Reference(module, {name: (name,) for name, _ in module.named_parameters()})


def transformers_network(case: cases.ModelCase) -> Reference:
    config = case.config
    module = ViTForImageClassification(
        ViTConfig(
            hidden_size=config["embed_dim"],
            num_hidden_layers=config["depth"],
            num_attention_heads=config["num_heads"],
            intermediate_size=int(config["embed_dim"] * config["mlp_ratio"]),
            layer_norm_eps=config["norm_eps"],
            image_size=config["img_size"],
            patch_size=config["patch_size"],
            qkv_bias=config.get("qkv_bias", True),
            num_labels=config["num_classes"],
            attn_implementation="sdpa",  # "eager" takes the softmax in float32, whatever the input
        )
    )
    names = {
        "cls_token": ("vit.embeddings.cls_token",),
        "pos_embed": ("vit.embeddings.position_embeddings",),
        **pair("patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
        **pair("norm", "vit.layernorm"),
        **pair("head", "classifier"),
    }
    for i in range(config["depth"]):
        names |= transformers_block(f"blocks.{i}", f"vit.layers.{i}")
        if not config.get("qkv_bias", True):
            del names[f"blocks.{i}.attn.qkv.bias"]
    return Reference(module, names)


def book_network(case: cases.ModelCase) -> Reference:
    if case.name:
        module = BookNetwork(size=32, patch=16, classes=10, width=384, depth=7, heads=8, hidden=4 * 384)
    else:
        c = case.config
        hidden = int(c["embed_dim"] * c["mlp_ratio"])
        sizes = (c["img_size"], c["patch_size"], c["num_classes"], c["embed_dim"], c["depth"], c["num_heads"], hidden)
        module = BookNetwork(*sizes)
    names = {
        "cls_token": ("first",),
        "pos_embed": ("positions",),
        **pair("patch_embed.proj", "embed"),
        **pair("norm", "head_norm"),
        **pair("head", "head"),
    }
    for i in range(len(module.layers)):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        names |= {
            **pair(f"{ours}.norm1", f"{theirs}.before_attention"),
            f"{ours}.attn.qkv.weight": tuple(f"{theirs}.{x}.weight" for x in ("query", "key", "value")),
            **pair(f"{ours}.attn.proj", f"{theirs}.output"),
            **pair(f"{ours}.norm2", f"{theirs}.before_mlp"),
            **pair(f"{ours}.mlp.fc1", f"{theirs}.widen"),
            **pair(f"{ours}.mlp.fc2", f"{theirs}.narrow"),
        }
    return Reference(module, names)


def transformers_block(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    """transformers' names of a block's parameters."""
    return {
        **pair(f"{ours}.norm1", f"{theirs}.layernorm_before"),
        **pair(f"{ours}.attn.qkv", *(f"{theirs}.attention.{x}_proj" for x in "qkv")),
        **pair(f"{ours}.attn.proj", f"{theirs}.attention.o_proj"),
        **pair(f"{ours}.norm2", f"{theirs}.layernorm_after"),
        **pair(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1"),
        **pair(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2"),
    }


def pair(name: str, *own: str) -> dict[str, tuple[str, ...]]:
    return {f"{name}.{kind}": tuple(f"{part}.{kind}" for part in own) for kind in ("weight", "bias")}


class BookNetwork(nn.Module):
    """The network of chapter 2 of the book, from its equations: the class token is encoded, normalised, classified."""

    def __init__(self, size: int, patch: int, classes: int, width: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.layers = nn.ModuleList(BookLayer(width, heads, hidden) for _ in range(depth))
        self.head_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        patches = self.embed(x).flatten(2).mT  # (B, N - 1, D)
        z = torch.cat([self.first.expand(len(x), -1, -1), patches], 1) + self.positions
        for layer in self.layers:
            z = layer(z)
        return self.head(self.head_norm(z[:, 0]))


class BookLayer(nn.Module):
    """z' = MSA(LN(z)) + z; z = MLP(LN(z')) + z', one head after another, nothing fused."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.before_mlp = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, z):
        x = self.before_attention(z)
        per_head = (layer(x).chunk(self.heads, -1) for layer in (self.query, self.key, self.value))
        outs = [(q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v for q, k, v in zip(*per_head)]  # each (B, N, d)
        z = self.output(torch.cat(outs, -1)) + z
        return self.narrow(F.gelu(self.widen(self.before_mlp(z)))) + z


OPS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "softmax": lambda x, axis=-1: F.softmax(x, dim=axis),
    "log_softmax": lambda x, axis=-1: F.log_softmax(x, dim=axis),
    "linear": F.linear,
    "mlp": lambda x, w1, b1, w2, b2: F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2),
    "layer_norm": lambda x, weight, bias, eps: F.layer_norm(x, x.shape[-1:], weight, bias, eps),
    "scaled_dot_product_attention": F.scaled_dot_product_attention,
    "cross_entropy": F.cross_entropy,
    "mse_loss": F.mse_loss,
    "conv2d": F.conv2d,
    "max_pool2d": F.max_pool2d,
    "avg_pool2d": F.avg_pool2d,
}


def optimizer(case: cases.OptimizerCase, model: nn.Module) -> torch.optim.Optimizer:
    """PyTorch's optimizer, over timm's two groups: what weight decay shrinks, and what it does not."""
    options = dict(case.options)
    decay = options.pop("weight_decay", 0.0)
    groups = param_groups_weight_decay(model, decay, no_weight_decay_list={"pos_embed", "cls_token"})
    return getattr(torch.optim, case.optimizer)(groups, **options)


def initialized(preset: str) -> Reference:
    """A network with fresh weights: timm's, in the preset that it knows by another name, or the book's."""
    config = cases.init_config(preset)
    if preset == "book":
        return book_network(cases.ModelCase("book", config=config))
    return timm_network(cases.ModelCase("timm", config=config | {"weight_init": "" if preset == "timm" else preset}))


def warmup_cosine(total_steps: int, warmup_steps: int, base_lr: float, final_lr: float, start_lr: float) -> np.ndarray:
    """timm's learning rate at each step, and at one step more."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base_lr)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=total_steps - warmup_steps,
        lr_min=final_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=start_lr,
        warmup_prefix=True,
    )
    rates = []
    for step in range(total_steps + 1):
        scheduler.step(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return np.array(rates)
