"""The same network in PyTorch, with the same parameter names, for minivit to be compared with."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_resnet import TorchResNet

from minivit.models import ResNet, VisionTransformer
from minivit.optim import weight_decay_groups
from minivit.training import available_cores


class TorchViT(nn.Module):
    """A copy of a plain minivit VisionTransformer: class token, learned positions, exact GELU."""

    def __init__(self, model: VisionTransformer):
        super().__init__()
        state = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
        width, channels, height, breadth = state["patch_embed.proj.weight"].shape
        heads, hidden = model.blocks[0].attn.num_heads, len(state["blocks.0.mlp.fc1.bias"])
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, width, (height, breadth), (height, breadth))})
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(state["pos_embed"].shape))
        self.blocks = nn.Sequential(*(TorchBlock(width, heads, hidden, model.norm.eps) for _ in model.blocks))
        self.norm = nn.LayerNorm(width, model.norm.eps)
        self.head = nn.Linear(width, len(state["head.bias"]))
        self.load_state_dict(state)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)  # (B, N, D)
        z = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(z))[:, 0])


class TorchBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = z.shape
        qkv = self.attn["qkv"](self.norm1(z)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(*qkv)  # (B, H, N, d)
        z = z + self.attn["proj"](heads.transpose(1, 2).reshape(batch, tokens, width))
        return z + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(z))))


class TorchContender:
    """What ``contenders.Minivit`` does, ``micro_batch`` images at a time, on all cores that this process may use."""

    def __init__(self, model: VisionTransformer | ResNet, micro_batch: int, compiled: bool = False):
        torch.set_num_threads(available_cores())
        self.model = TorchResNet(model) if isinstance(model, ResNet) else TorchViT(model)
        self.micro_batch = micro_batch
        own = dict(self.model.named_parameters())
        groups = weight_decay_groups(model, weight_decay=0.05)
        groups = [group | {"params": [own[name] for name, _ in group["params"] if name in own]} for group in groups]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3)
        self.forward = torch.compile(self.model) if compiled else self.model

    def training(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.optimizer.zero_grad()
        self.model.train()
        x, y = torch.from_numpy(images), torch.from_numpy(labels)
        for x_piece, y_piece in zip(x.split(self.micro_batch), y.split(self.micro_batch)):
            (F.cross_entropy(self.forward(x_piece), y_piece) * (len(y_piece) / len(y))).backward()
        self.optimizer.step()

    def inference(self, images: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        self.model.eval()
        with torch.inference_mode():
            pieces = torch.from_numpy(images).split(self.micro_batch)
            return torch.cat([self.forward(piece) for piece in pieces]).numpy()

    def gradients(self) -> dict[str, np.ndarray]:
        """Of the last step, by parameter name."""
        return {name: p.grad.numpy() for name, p in self.model.named_parameters()}


class TorchOnGpu:
    """A training step as PyTorch's users make it on a GPU, in bf16 by autocast or with products in TF32; fused AdamW.

    The network is timm's where that is installed, with the weights of ``model``, which was made with ``options``.
    ``exact``: in float64, for comparisons.
    """

    def __init__(
        self, model: VisionTransformer, options: dict, precision: str, compiled: bool = False, exact: bool = False,
        device: str = "cuda",
    ):  # fmt: skip
        self.device, self.half = device, precision == "bf16" and not exact
        self.model = timm_twin(model, options).to(device, torch.float64 if exact else torch.float32)
        self.forward = torch.compile(self.model, dynamic=False) if compiled else self.model
        own = dict(self.model.named_parameters())
        groups = weight_decay_groups(model, weight_decay=0.05)
        groups = [group | {"params": [own[name] for name, _ in group["params"]]} for group in groups]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
        torch.set_float32_matmul_precision("high")  # TF32; float64 is not changed by it

    def batch(self, images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """On the device, in the type of the weights."""
        x = torch.from_numpy(images).to(self.device, next(self.model.parameters()).dtype)
        return x, torch.from_numpy(labels).to(self.device)

    def backward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The logits; gradients are where PyTorch puts them."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            logits = self.forward(images)
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        return logits

    def training(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.backward(images, labels)
        self.optimizer.step()

    def seen(self, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Logits and gradients of a batch, by name, in float64."""
        found = {"logits": self.backward(*self.batch(images, labels))}
        found |= {name: p.grad for name, p in self.model.named_parameters()}
        return {name: x.detach().double().cpu().numpy() for name, x in found.items()}


def timm_twin(model: VisionTransformer, options: dict) -> nn.Module:
    """timm's network of these arguments, or ``TorchViT``, with the weights of ``model``."""
    try:
        from timm.models.vision_transformer import VisionTransformer as Timm
    except (ImportError, RuntimeError):  # or it does not go with the torchvision that is installed
        return TorchViT(model)
    network = Timm(**{name: value for name, value in options.items() if name not in ("weight_init", "norm_eps")})
    network.load_state_dict({name: torch.from_numpy(array) for name, array in model.state_dict().items()})
    return network


def release(compiled: bool = False) -> None:
    """Give memory that PyTorch keeps for later back to the GPU, and with ``compiled`` forget what was compiled."""
    if compiled:
        torch._dynamo.reset()
    torch.cuda.empty_cache()


def load(compiler: bool) -> None:
    """Have all imported that PyTorch imports when it first computes, so that it does not count as memory of a step."""
    x = torch.zeros(1, requires_grad=True)
    (torch.compile(torch.exp) if compiler else torch.exp)(x).backward()
    torch.optim.AdamW([x]).step()
