"""3-Augment: grey, solarised or blurred, and a little colour jitter."""

from dataclasses import dataclass

import numpy as np

from minivit.backend import Array
from minivit.data.augment.color import grayscale
from minivit.data.augment.filters import gaussian_blur
from minivit.data.augment.jitter import ColorJitter, GaussianBlur
from minivit.data.augment.levels import solarize
from minivit.data.augment.ops import apply, draw, pick


@dataclass(frozen=True)
class ThreeAugment:
    """One of three for each image: without colour, solarised at 128, or blurred; then ``ColorJitter(j, j, j)``.

    Touvron, Cord and Jégou, "DeiT III: Revenge of the ViT" (ECCV 2022), where it is all that there is besides crops and
    flips. ``sigma``, the range of the blur, is in parts of the height, as in ``GaussianBlur``.

    Raises ValueError for a negative jitter, or where ``sigma`` is no range.

    >>> images = np.zeros((2, 3, 32, 32), np.uint8)
    >>> ThreeAugment()(images, samples=np.array([7, 8]), seed=0, epoch=0).shape
    (2, 3, 32, 32)
    """

    jitter: float = 0.3
    sigma: tuple[float, float] = (0.1 / 224, 2 / 224)

    def __post_init__(self) -> None:
        if self.jitter < 0:
            raise ValueError(f"jitter must be 0 or more, got {self.jitter}")
        GaussianBlur(sigma=self.sigma)  # says what is wrong with it

    def __call__(self, images: Array, samples: Array, seed: int, epoch: int) -> Array:
        low, high = self.sigma
        operations = (
            lambda x, s: grayscale(x),
            lambda x, s: solarize(x, np.full(len(x), 128)),
            lambda x, s: gaussian_blur(x, (low + (high - low) * s) * x.shape[2]),
        )
        which, strength = draw(samples, (2,), seed, "three_augment", epoch).T
        images = apply(images, operations, pick(which, 3), strength)
        return ColorJitter(self.jitter, self.jitter, self.jitter)(images, samples, seed, epoch)
