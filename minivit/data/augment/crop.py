"""Random crop with padding: the picture moved by up to ``padding`` pixels in each direction."""

from dataclasses import dataclass

from minivit.backend import Array, array_module
from minivit.random import key, uniform


@dataclass(frozen=True)
class RandomCrop:
    """Pad by ``padding`` pixels on every side, then cut out the original size at a place drawn for each image.

    All (2·padding + 1)² places are equally likely. ``mode`` fills the border: ``"constant"`` with zeros (black,
    before normalisation), ``"reflect"`` with the picture's mirror image. Four pixels on CIFAR, as in He et al., "Deep
    Residual Learning for Image Recognition" (CVPR 2016), section 4.2.

    Raises ValueError for a negative padding, another mode, or a reflection wider than the image.

    >>> import numpy as np
    >>> image = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)
    >>> RandomCrop(1)(image, samples=np.array([7]), seed=0, epoch=0)[0, 0]
    array([[0, 0, 1],
           [0, 3, 4],
           [0, 6, 7]], dtype=uint8)
    """

    padding: int = 4
    mode: str = "constant"

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be 0 or more pixels, got {self.padding}")
        if self.mode not in ("constant", "reflect"):
            raise ValueError(f"mode must be 'constant' or 'reflect', got {self.mode!r}")

    def __call__(self, images: Array, samples: Array, seed: int, epoch: int) -> Array:
        xp = array_module(images)
        height, width = images.shape[2:]
        if self.mode == "reflect" and self.padding >= min(height, width):
            raise ValueError(f"padding {self.padding} cannot be reflected from images of {height}×{width} pixels")
        border = (self.padding, self.padding)
        padded = xp.pad(images, ((0, 0), (0, 0), border, border), mode=self.mode)

        places = uniform(key(seed, "crop", epoch), samples, (2,), xp) * (2 * self.padding + 1)
        top, left = places.astype(xp.int64).T  # (B,) each
        windows = xp.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        return windows[xp.arange(len(images)), :, top, left]  # windows: (B, C, 2·padding + 1 twice, H, W)
