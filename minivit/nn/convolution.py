"""Convolution and pooling layers."""

import math

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.nn import init
from minivit.nn.module import Module
from minivit.ops.shape import Size, pair


class Conv2d(Module):
    """Convolution of images (B, in_channels, H, W) → (B, out_channels, rows, columns): see ``ops.conv2d``.

    ``weight`` (out_channels, in_channels/groups, kh, kw), ``bias`` (out_channels,), with PyTorch's names and initial
    values. ``kernel_size``, ``stride`` and ``padding`` are one number, or a pair for rows and columns. Raises
    ValueError where ``groups`` does not divide the channels.

    >>> Conv2d(3, 8, kernel_size=3, stride=2, padding=1)(Tensor(np.ones((5, 3, 32, 32), np.float32))).shape
    (5, 8, 16, 16)
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | Size, stride: int | Size = 1,
        padding: int | Size = 0, groups: int = 1, bias: bool = True,
    ):  # fmt: skip
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(f"groups {groups} must divide in_channels {in_channels} and out_channels {out_channels}")
        self.stride, self.padding, self.groups = pair(stride), pair(padding), groups
        shape = out_channels, in_channels // groups, *pair(kernel_size)
        fan_in = math.prod(shape[1:])
        self.weight = Parameter(init.default(shape, fan_in))
        self.bias = Parameter(init.default((out_channels,), fan_in)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.groups)

    def flops(self, inputs: tuple, output: Tensor) -> int:
        return 2 * output.size * math.prod(self.weight.shape[1:])

    def extra_repr(self) -> str:
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"stride={self.stride}, padding={self.padding}{groups}"


class MaxPool2d(Module):
    """The largest pixel in each window of (B, C, H, W); ``stride`` is by default the window's: see ``ops.max_pool2d``.

    >>> MaxPool2d(2)(Tensor([[[[1.0, 3.0], [2.0, 0.0]]]])).numpy()
    array([[[[3.]]]], dtype=float32)
    """

    def __init__(self, kernel_size: int | Size, stride: int | Size | None = None, padding: int | Size = 0):
        self.kernel_size, self.padding = pair(kernel_size), pair(padding)
        self.stride = self.kernel_size if stride is None else pair(stride)

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(Module):
    """The mean of each window of (B, C, H, W); ``stride`` is by default the window's: see ``ops.avg_pool2d``.

    The mean of a whole image needs no layer: ``x.mean((2, 3))``.

    >>> AvgPool2d(2)(Tensor([[[[1.0, 3.0], [2.0, 0.0]]]])).numpy()
    array([[[[1.5]]]], dtype=float32)
    """

    def __init__(
        self, kernel_size: int | Size, stride: int | Size | None = None, padding: int | Size = 0,
        count_include_pad: bool = True,
    ):  # fmt: skip
        self.kernel_size, self.padding = pair(kernel_size), pair(padding)
        self.stride = self.kernel_size if stride is None else pair(stride)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return ops.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.count_include_pad)

    def extra_repr(self) -> str:
        counted = "" if self.count_include_pad else ", count_include_pad=False"
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}{counted}"
