"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385).

    image ── stem: convolution, BatchNorm, ReLU (and max pooling) ──▶ C channels
    x ← ReLU(shortcut(x) + F(x)), F two or three convolutions, each with a BatchNorm: a block
    stages of blocks; the first block of each, but of the first stage, halves height and width, and has more channels
    logits = fc(mean over the pixels)

Two families. That of section 4.2, for images of 32 px, has a stem of 3 × 3, three stages of 16, 32 and 64 channels, and
shortcuts without parameters (option A); depth 6 n + 2 means n blocks a stage. That of section 4.1, for 224 px, has a
stem of 7 × 7 and a pooling, four stages, and a projection in the shortcuts that change the shape (option B).

Names of parameters are torchvision's, which are timm's too (``conv1``, ``bn1``, ``layer1.0.conv1``,
``layer2.0.downsample.0``, ``fc``), so their state dicts load as they are. Those of ``akamaster/pytorch_resnet_cifar10``
have ``linear`` in place of ``fc``, and "module." in front of all.
"""

from collections.abc import Sequence

from minivit import ops
from minivit.autograd import Tensor
from minivit.backend import array_module
from minivit.nn import BatchNorm2d, Conv2d, Dropout, DropPath, Identity, Linear, Module, checkpoint, init
from minivit.nn.module import as_tensor
from minivit.random import generator


class ZeroPadding(Module):
    """Every ``stride``-th pixel, and zeros for the channels that are missing, half of them on either side.

    (B, C, H, W) → (B, ``channels``, ⌈H / stride⌉, ⌈W / stride⌉): the shortcut without parameters, option A.

    >>> ZeroPadding(4, stride=2)(Tensor(np.ones((1, 2, 5, 5)))).numpy()[0, :, 0, 0]
    array([0., 1., 1., 0.])
    """

    def __init__(self, channels: int, stride: int):
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        batch, channels, *size = x.shape
        before = (self.channels - channels) // 2
        counts = before, self.channels - channels - before
        zeros = [array_module(x.data).zeros((batch, count, *size), x.dtype) for count in counts]
        return ops.concatenate(zeros[0], x, zeros[1], axis=1)


class ResidualBlock(Module):
    """ReLU(shortcut(x) + F(x)); the shortcut is a list of layers, ``downsample``, empty where x can pass as it is."""

    expansion = 1  # channels that come out, over ``channels``
    last_norm = ""  # of F, by name

    def __init__(self, shortcut: list[Module], drop_path: float):
        self.downsample = shortcut
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.drop_path(self.residual(x))
        for layer in self.downsample:
            x = layer(x)
        return ops.relu(x + residual)

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no residual()")


class BasicBlock(ResidualBlock):
    """F = BN conv3×3 ReLU BN conv3×3, the ``stride`` at the first."""

    last_norm = "bn2"

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: list[Module], drop_path: float = 0.0):
        self.conv1 = Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        super().__init__(shortcut, drop_path)

    def residual(self, x: Tensor) -> Tensor:
        x = ops.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(ResidualBlock):
    """F = BN conv1×1 ReLU BN conv3×3 ReLU BN conv1×1: down to ``channels``, and up to four times as many.

    The stride is at the 3 × 3 convolution, as torchvision and timm have it; the paper has it at the first 1 × 1.
    """

    expansion = 4
    last_norm = "bn3"

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: list[Module], drop_path: float = 0.0):
        self.conv1 = Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.conv3 = Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = BatchNorm2d(4 * channels)
        super().__init__(shortcut, drop_path)

    def residual(self, x: Tensor) -> Tensor:
        x = ops.relu(self.bn1(self.conv1(x)))
        x = ops.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
STEMS = ("3x3", "7x7")
SHORTCUTS = ("A", "B")


class ResNet(Module):
    """Images (B, in_chans, H, W) of any size → logits (B, num_classes).

    - ``block`` "basic" or "bottleneck"; ``layers`` how many blocks in each stage, and ``channels`` how wide they are.
    - ``stem`` "3x3", or "7x7" with stride 2 and a max pooling; ``shortcut`` "A" zero padding, or "B" a projection
      (1 × 1 convolution and BatchNorm), where a block changes the shape.
    - ``drop_path_rate`` grows linearly from 0 in the first block to this in the last, ``drop_rate`` is before ``fc``.
    - ``num_classes=0`` leaves ``fc`` out. ``img_size`` is noted only: what the network was made for.
    - ``weight_init`` "kaiming" (see ``init_weights``), drawn from ``seed``, or "skip". With ``zero_init_last`` the last
      BatchNorm of each block starts at weight 0, so that the block starts as its shortcut (Goyal et al., 2017,
      arXiv:1706.02677, section 5.1).

    In training a batch has to have more than one value a channel, and is normalised as a whole: see ``nn/batch_norm``.
    Raises ValueError for arguments that do not go together.

    >>> from minivit.models.resnet import ResNet
    >>> model = ResNet("basic", layers=(1, 1), channels=(8, 16), stem="3x3", shortcut="A", num_classes=10)
    >>> model(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """

    def __init__(
        self, block: str = "basic", layers: Sequence[int] = (2, 2, 2, 2), channels: Sequence[int] = (64, 128, 256, 512),
        stem: str = "7x7", shortcut: str = "B", img_size: int | tuple[int, int] = 224, in_chans: int = 3,
        num_classes: int = 1000, drop_rate: float = 0.0, drop_path_rate: float = 0.0, zero_init_last: bool = False,
        weight_init: str = "kaiming", seed: int = 0,
    ):  # fmt: skip
        for name, value, known in [
            ("block", block, BLOCKS), ("stem", stem, STEMS), ("shortcut", shortcut, SHORTCUTS),
            ("weight_init", weight_init, ("kaiming", "skip")),
        ]:  # fmt: skip
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if len(layers) != len(channels) or min(layers, default=0) < 1:
            raise ValueError(f"layers and channels need a number for each stage, got {layers} and {channels}")
        self.img_size, self.stem = img_size, stem
        self.grad_checkpointing = False
        self.num_features = channels[-1] * BLOCKS[block].expansion
        with init.deferred():
            size, stride = (7, 2) if stem == "7x7" else (3, 1)
            self.conv1 = Conv2d(in_chans, channels[0], size, stride, padding=size // 2, bias=False)
            self.bn1 = BatchNorm2d(channels[0])
            self.stages = [f"layer{i + 1}" for i in range(len(layers))]
            width, rates = channels[0], _rising(drop_path_rate, layers)
            for i, name in enumerate(self.stages):
                blocks = []
                for rate in rates[i]:
                    stride = 2 if i and not blocks else 1
                    out = channels[i] * BLOCKS[block].expansion
                    passed = [] if stride == 1 and width == out else _shortcut(shortcut, width, out, stride)
                    blocks.append(BLOCKS[block](width, channels[i], stride, passed, rate))
                    width = out
                setattr(self, name, blocks)
            self.head_drop = Dropout(drop_rate)
            self.fc = Linear(width, num_classes) if num_classes else Identity()
        if weight_init != "skip":
            init_weights(self, seed, zero_init_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → feature maps (B, num_features, h, w) of the last stage."""
        x = ops.relu(self.bn1(self.conv1(as_tensor(images))))
        if self.stem == "7x7":
            x = ops.max_pool2d(x, 3, stride=2, padding=1)
        for name in self.stages:
            for block in getattr(self, name):
                x = checkpoint(block, x) if self.grad_checkpointing and self.training else block(x)
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        """Feature maps (B, num_features, h, w) → logits (B, num_classes)."""
        return self.fc(self.head_drop(x.mean(axis=(2, 3))))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """While training, let blocks keep only their inputs, and compute the rest again on the way back.

        See ``nn/recompute.py``. Outputs, gradients and running estimates stay the same.
        """
        self.grad_checkpointing = enable


def init_weights(model: ResNet, seed: int = 0, zero_init_last: bool = False) -> None:
    """Set the weights, in place: convolutions normal, of variance 2 / fan_out (He et al., 2015, arXiv:1502.01852, eq.
    14), ``fc`` as PyTorch's; a BatchNorm starts at weight 1 and bias 0. Each draws from the stream of its name.

    >>> model = ResNet("basic", (1,), (8,), stem="3x3", num_classes=2, weight_init="skip")
    >>> init_weights(model, zero_init_last=True)
    >>> float(abs(model.layer1[0].bn2.weight.data).max())
    0.0
    """
    for name, module in model.named_modules():
        rng = generator(seed, "init", f"{name}.weight")
        if isinstance(module, Conv2d):
            module.weight.data[...] = init.kaiming_normal(module.weight.shape, rng)
        elif isinstance(module, Linear):
            inputs = module.weight.shape[1]
            module.weight.data[...] = init.fan_in_uniform(module.weight.shape, rng, inputs)
            module.bias.data[...] = init.fan_in_uniform(
                module.bias.shape, generator(seed, "init", f"{name}.bias"), inputs
            )
        elif isinstance(module, ResidualBlock) and zero_init_last:
            getattr(module, module.last_norm).weight.data[...] = 0


def _shortcut(option: str, in_channels: int, channels: int, stride: int) -> list[Module]:
    if option == "A":
        return [ZeroPadding(channels, stride)]
    return [Conv2d(in_channels, channels, 1, stride, bias=False), BatchNorm2d(channels)]


def _rising(rate: float, layers: Sequence[int]) -> list[list[float]]:
    """For each stage the rates of its blocks."""
    last, starts = max(sum(layers) - 1, 1), [sum(layers[:i]) for i in range(len(layers))]
    return [[rate * (start + i) / last for i in range(count)] for start, count in zip(starts, layers)]


def _cifar(depth: int) -> dict:
    blocks = (depth - 2) // 6
    return dict(
        block="basic",
        layers=(blocks,) * 3,
        channels=(16, 32, 64),
        stem="3x3",
        shortcut="A",
        img_size=32,
        num_classes=10,
    )


CONFIGURATIONS = {f"resnet{depth}": _cifar(depth) for depth in (8, 20, 32, 44, 56, 110)} | {
    "resnet18": dict(block="basic", layers=(2, 2, 2, 2)),
    "resnet34": dict(block="basic", layers=(3, 4, 6, 3)),
    "resnet50": dict(block="bottleneck", layers=(3, 4, 6, 3)),
}
