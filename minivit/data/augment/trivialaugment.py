"""TrivialAugment: one operation at one strength, both drawn uniformly. Nothing to tune."""

from dataclasses import dataclass

import numpy as np

from minivit.backend import Array
from minivit.data.augment.levels import posterize, solarize
from minivit.data.augment.ops import FIXED, Operation, apply, blends, draw, pick, signs, warps

STRENGTHS = 31  # 0/30, 1/30, …, 30/30


def wide(fill: int = 128, translate: float = 32 / 224) -> dict[str, Operation]:
    """The paper's wide space: 14 operations, of which one does nothing.

    >>> len(wide())
    14
    """
    return (
        {"identity": lambda x, s: x, "autocontrast": FIXED["autocontrast"], "equalize": FIXED["equalize"]}
        | warps(slope=0.99, translate=translate, degrees=135, fill=fill)
        | blends(lambda s: 1 + 0.99 * s)
        | {
            "posterize": lambda x, s: posterize(x, 8 - np.rint(6 * abs(s))),
            "solarize": lambda x, s: solarize(x, 256 * (1 - abs(s))),
        }
    )


@dataclass(frozen=True)
class TrivialAugment:
    """One of 14 operations, at one of 31 strengths, for each image.

    Müller and Hutter, "TrivialAugment: Tuning-free yet state-of-the-art data augmentation" (ICCV 2021), wide space.
    ``translate`` is the largest translation as a share of the side: the paper moves by up to 32 pixels at every size, a
    seventh of 224, but all (``translate=1``) of CIFAR's 32. ``fill`` is the level outside of a warped image.

    >>> images = np.zeros((2, 3, 32, 32), np.uint8)
    >>> TrivialAugment()(images, samples=np.array([7, 8]), seed=0, epoch=0).shape
    (2, 3, 32, 32)
    """

    translate: float = 32 / 224
    fill: int = 128

    def __call__(self, images: Array, samples: Array, seed: int, epoch: int) -> Array:
        operations = list(wide(self.fill, self.translate).values())
        which, strength, direction = draw(samples, (3,), seed, "trivialaugment", epoch).T
        strength = signs(direction) * pick(strength, STRENGTHS) / (STRENGTHS - 1)
        return apply(images, operations, pick(which, len(operations)), strength)
