"""Shifted patch tokenisation, SPT (Lee, Lee and Song, "Vision Transformer for Small-Size Datasets", 2021,
arXiv:2112.13492, section 3.1).

    image (B, C, H, W) ──and four shifted copies──▶ (B, 5C, H, W) ──cut──▶ (B, N, 5·C·P·Q) ──LN──Linear──▶ (B, N, D)

A patch sees only itself; a convolution of a CNN's first layers would see its neighbourhood. So each token is given its
neighbours too: the image is moved by half a patch to the upper left, upper right, lower left and lower right (zeros
come in), and the five are stacked as channels before the cut.
"""

import math

from minivit import ops
from minivit.autograd import Tensor
from minivit.nn.module import as_tensor
from minivit.nn.normalization import LayerNorm
from minivit.nn.patch_embed import PatchEmbed, PatchProjection
from minivit.ops.shape import Size

DIRECTIONS = {
    "diagonal": ((-1, -1), (-1, 1), (1, -1), (1, 1)),  # the paper's
    "straight": ((0, 1), (0, -1), (1, 0), (-1, 0)),  # another implementation's, by one pixel
}


class ShiftedPatchEmbed(PatchEmbed):
    """Images (B, in_chans, H, W) → tokens (B, N, embed_dim) that know of their surroundings.

    ``shift`` in pixels, by default half of a patch's smaller side; ``directions`` "diagonal", as in the paper, or
    "straight". Raises ValueError as ``PatchEmbed`` does, and for other directions.

    >>> ShiftedPatchEmbed(img_size=32, patch_size=8, embed_dim=6)(np.zeros((5, 3, 32, 32), np.float32)).shape
    (5, 16, 6)
    """

    def __init__(
        self, img_size: int | Size = 224, patch_size: int | Size = 16, in_chans: int = 3, embed_dim: int = 768,
        bias: bool = True, shift: int | None = None, directions: str = "diagonal", norm_eps: float = 1e-6,
    ):  # fmt: skip
        super().__init__(img_size, patch_size, in_chans, embed_dim, bias)
        if directions not in DIRECTIONS:
            raise ValueError(f"directions must be one of {', '.join(DIRECTIONS)}, got {directions!r}")
        self.shift = min(self.patch_size) // 2 if shift is None else shift
        self.directions = directions
        self.norm = LayerNorm(5 * in_chans * math.prod(self.patch_size), norm_eps)
        self.proj = PatchProjection(5 * in_chans, embed_dim, self.patch_size, bias)

    def tokens(self, images: Tensor) -> Tensor:
        images = as_tensor(images)
        moved = [ops.shift(images, self.shift * y, self.shift * x) for y, x in DIRECTIONS[self.directions]]
        return self.proj(self.norm(ops.patchify(ops.concatenate(images, *moved, axis=1), self.patch_size)))
