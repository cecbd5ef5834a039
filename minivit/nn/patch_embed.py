"""From an image to tokens: cut into patches, flatten, project.

    image (B, C, H, W) ──cut──▶ (B, N, C·P·Q) ──Linear──▶ (B, N, D),   N = (H/P) (W/Q) patches, row by row

A convolution with kernel and stride (P, Q) computes the same numbers, which is why the weight has its shape,
(D, C, P, Q): flattened, its order (channel, row, column) is the order inside a flattened patch.
"""

import math

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.nn import init
from minivit.nn.module import Module, as_tensor
from minivit.ops.shape import Size, pair


class PatchProjection(Module):
    """The Linear of the patch embedding, its weight in the shape of the convolution: (D, C, P, Q)."""

    def __init__(self, in_chans: int, embed_dim: int, patch_size: Size, bias: bool = True):
        fan_in = in_chans * math.prod(patch_size)
        self.weight = Parameter(init.default((embed_dim, in_chans, *patch_size), fan_in))
        self.bias = Parameter(init.default((embed_dim,), fan_in)) if bias else None

    def forward(self, patches: Tensor) -> Tensor:
        return ops.linear(patches, self.weight.reshape(len(self.weight), -1), self.bias)

    def flops(self, inputs: tuple, output: Tensor) -> int:
        return 2 * output.size * math.prod(self.weight.shape[1:])


class PatchEmbed(Module):
    """Images (B, in_chans, H, W) → tokens (B, N, embed_dim); any number of channels, images and patches need not be
    square.

    Dosovitskiy et al., 2020 (arXiv:2010.11929), eq. 1. ``grid_size`` is (H/P, W/Q), ``num_patches`` its product.
    Raises ValueError for images of another shape and patches that do not divide them, TypeError for images that are
    not floating point or of another precision than the weights.

    >>> PatchEmbed(img_size=(24, 32), patch_size=8, in_chans=1, embed_dim=6)(np.zeros((5, 1, 24, 32), np.float32)).shape
    (5, 12, 6)
    """

    def __init__(
        self, img_size: int | Size = 224, patch_size: int | Size = 16, in_chans: int = 3, embed_dim: int = 768,
        bias: bool = True,
    ):  # fmt: skip
        self.patch_size = pair(patch_size)
        self.in_chans = in_chans
        self.set_input_size(img_size)
        self.proj = PatchProjection(in_chans, embed_dim, self.patch_size, bias)

    def set_input_size(self, img_size: int | Size) -> None:
        """Take images of this size: no weight depends on it. Raises ValueError where patches do not divide it."""
        (h, w), (p, q) = pair(img_size), self.patch_size
        if min(p, q) < 1 or h % p or w % q:
            raise ValueError(f"patch_size {self.patch_size} must divide img_size {(h, w)}")
        self.img_size = (h, w)
        self.grid_size = (h // p, w // q)
        self.num_patches = math.prod(self.grid_size)

    def forward(self, images: Tensor) -> Tensor:
        expected = (self.in_chans, *self.img_size)
        if len(images.shape) != 4 or images.shape[1:] != expected:
            raise ValueError(f"images must have shape (B, {', '.join(map(str, expected))}), got {images.shape}")
        if images.dtype != self.proj.weight.dtype:
            raise TypeError(
                f"images are {images.dtype}, the weights {self.proj.weight.dtype}: normalise them to that type"
            )
        return self.tokens(images)

    def tokens(self, images: Tensor) -> Tensor:
        """What images of the right shape become."""
        return self.proj(ops.patchify(as_tensor(images), self.patch_size))

    def extra_repr(self) -> str:
        return f"img_size={self.img_size}, patch_size={self.patch_size}"
