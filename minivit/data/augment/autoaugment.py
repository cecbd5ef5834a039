"""AutoAugment: pairs of operations that a search found to work, for CIFAR-10 or ImageNet."""

from dataclasses import dataclass

import numpy as np

from minivit.backend import Array
from minivit.data.augment.levels import posterize
from minivit.data.augment.ops import Operation, apply, draw, pick, signs
from minivit.data.augment.randaugment import FULL, searched

# A line is a sub-policy: twice an operation, its probability and its level of 0 … 10. From the paper's appendix.
POLICIES = {
    "cifar10": """
        invert 0.1 7, contrast 0.2 6
        rotate 0.7 2, translate_x 0.3 9
        sharpness 0.8 1, sharpness 0.9 3
        shear_y 0.5 8, translate_y 0.7 9
        autocontrast 0.5 8, equalize 0.9 2
        shear_y 0.2 7, posterize 0.3 7
        saturation 0.4 3, brightness 0.6 7
        sharpness 0.3 9, brightness 0.7 9
        equalize 0.6 5, equalize 0.5 1
        contrast 0.6 7, sharpness 0.6 5
        saturation 0.7 7, translate_x 0.5 8
        equalize 0.3 7, autocontrast 0.4 8
        translate_y 0.4 3, sharpness 0.2 6
        brightness 0.9 6, saturation 0.2 8
        solarize 0.5 2, invert 0.0 3
        equalize 0.2 0, autocontrast 0.6 0
        equalize 0.2 8, equalize 0.6 4
        saturation 0.9 9, equalize 0.6 6
        autocontrast 0.8 4, solarize 0.2 8
        brightness 0.1 3, saturation 0.7 0
        solarize 0.4 5, autocontrast 0.9 3
        translate_y 0.9 9, translate_y 0.7 9
        autocontrast 0.9 2, solarize 0.8 3
        equalize 0.8 8, invert 0.1 3
        translate_y 0.7 9, autocontrast 0.9 1
    """,
    "imagenet": """
        posterize 0.4 8, rotate 0.6 9
        solarize 0.6 5, autocontrast 0.6 5
        equalize 0.8 8, equalize 0.6 3
        posterize 0.6 7, posterize 0.6 6
        equalize 0.4 7, solarize 0.2 4
        equalize 0.4 4, rotate 0.8 8
        solarize 0.6 3, equalize 0.6 7
        posterize 0.8 5, equalize 1.0 2
        rotate 0.2 3, solarize 0.6 8
        equalize 0.6 8, posterize 0.4 6
        rotate 0.8 8, saturation 0.4 0
        rotate 0.4 9, equalize 0.6 2
        equalize 0.0 7, equalize 0.8 8
        invert 0.6 4, equalize 1.0 8
        saturation 0.6 4, contrast 1.0 8
        rotate 0.8 8, saturation 1.0 2
        saturation 0.8 8, solarize 0.8 7
        sharpness 0.4 7, invert 0.6 8
        shear_x 0.6 5, equalize 1.0 9
        saturation 0.4 0, equalize 0.6 3
        equalize 0.4 7, solarize 0.2 4
        solarize 0.6 5, autocontrast 0.6 5
        invert 0.6 4, equalize 1.0 8
        saturation 0.6 4, contrast 1.0 8
        equalize 0.8 8, equalize 0.6 3
    """,
}


def sub_policies(name: str) -> list[list[tuple[str, float, int]]]:
    """The 25 sub-policies of a policy, two steps each: operation, probability, level.

    >>> sub_policies("cifar10")[0]
    [('invert', 0.1, 7), ('contrast', 0.2, 6)]
    """
    lines = POLICIES[name].strip().splitlines()
    steps = [[step.split() for step in line.split(",")] for line in lines]
    return [[(operation, float(p), int(level)) for operation, p, level in pair] for pair in steps]


def ranges(fill: int = 128, translate: float = 150 / 331) -> dict[str, Operation]:
    """The operations of the search, with 4 to 8 bits left by posterize.

    >>> kept = ranges()["posterize"](np.full((1, 1, 1, 1), 255, np.uint8), np.array([0.0]))
    >>> kept.item()
    240
    """
    return searched(fill, translate) | {"posterize": lambda x, s: posterize(x, 4 + np.floor(4 * abs(s)))}


@dataclass(frozen=True)
class AutoAugment:
    """One of the 25 sub-policies for each image: two operations, each with its probability and level.

    Cubuk, Zoph, Mané, Vasudevan and Le, "AutoAugment: Learning augmentation strategies from data" (CVPR 2019), with
    its ranges: shear ±0.3, translation ±150 of 331 pixels (``translate``, a share of the side), rotation ±30 degrees,
    posterize to 4 … 8 bits, solarize from 0 … 256, blends by 0.1 … 1.9; level 0 is the lower end, 10 the upper.
    Published programs differ from the paper, and from each other, in the direction of posterize and solarize. ``fill``
    is the level outside of a warped image.

    Raises ValueError for a policy other than "cifar10" and "imagenet".

    >>> images = np.zeros((2, 3, 32, 32), np.uint8)
    >>> AutoAugment("cifar10")(images, samples=np.array([7, 8]), seed=0, epoch=0).shape
    (2, 3, 32, 32)
    """

    policy: str = "imagenet"
    translate: float = 150 / 331
    fill: int = 128

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")

    def __call__(self, images: Array, samples: Array, seed: int, epoch: int) -> Array:
        operations = ranges(self.fill, self.translate)
        names = list(operations)
        pairs = sub_policies(self.policy)
        which, *numbers = draw(samples, (5,), seed, "autoaugment", epoch).T
        chosen = pick(which, len(pairs))
        for step in range(2):
            done, direction = numbers[2 * step : 2 * step + 2]
            number = np.array([names.index(pair[step][0]) for pair in pairs])
            p, level = np.array([pair[step][1:] for pair in pairs]).T
            choice = np.where(done < p[chosen], number[chosen], -1)
            images = apply(images, list(operations.values()), choice, signs(direction) * level[chosen] / FULL)
        return images
