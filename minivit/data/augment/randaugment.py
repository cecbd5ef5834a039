"""RandAugment: a few operations, drawn from a list, all at about the same strength."""

import re
from dataclasses import dataclass

import numpy as np

from minivit.backend import Array
from minivit.data.augment.levels import posterize, solarize, solarize_add
from minivit.data.augment.ops import FIXED, Operation, apply, blends, draw, pick, signs, warps

FULL = 10  # the level of full strength


def increasing(fill: int = 128, translate: float = 0.45) -> dict[str, Operation]:
    """Fifteen operations that change the more, the more strength they get.

    >>> kept = increasing()["posterize"](np.full((1, 1, 1, 1), 255, np.uint8), np.array([0.9]))   # 4 − ⌊0.9·4⌋ bits
    >>> kept.item()
    128
    """
    return (
        FIXED
        | warps(slope=0.3, translate=translate, degrees=30, fill=fill)
        | blends(lambda s: 1 + 0.9 * s)
        | {
            "posterize": lambda x, s: posterize(x, np.maximum(4 - np.floor(4 * abs(s)), 1)),
            "solarize": lambda x, s: solarize(x, 256 - np.floor(256 * abs(s))),
            "solarize_add": lambda x, s: solarize_add(x, np.floor(110 * abs(s))),
        }
    )


def searched(fill: int = 128, translate: float = 0.45) -> dict[str, Operation]:
    """The same with the ranges that AutoAugment searched: from much change one way, over none, to much the other way.

    >>> darker = searched()["brightness"](np.full((1, 1, 1, 1), 100, np.uint8), np.array([0.0]))   # factors 0.1 … 1.9
    >>> darker.item()
    10
    """
    return (
        increasing(fill, translate)
        | blends(lambda s: 0.1 + 1.8 * abs(s))
        | {
            "posterize": lambda x, s: posterize(x, np.maximum(np.floor(4 * abs(s)), 1)),
            "solarize": lambda x, s: solarize(x, np.floor(256 * abs(s))),
        }
    )


@dataclass(frozen=True)
class RandAugment:
    """``num_ops`` operations one after another, each drawn from fifteen and done with probability ``p``.

    Each has a level of its own from N(``magnitude``, ``std``²), clipped to 0 … 10, where 10 means full strength: 30
    degrees, a shear of 0.3, ``translate`` of the side, a blend by 1 ± 0.9. With ``increasing=False`` a higher level is
    not always more change: see ``searched``. ``fill`` is the level outside of a warped image.

    Cubuk, Zoph, Shlens and Le, "RandAugment: Practical automated data augmentation with a reduced search space" (CVPRW
    2020), in timm's form, with which ViTs are trained; but warps are always bilinear, and posterize keeps at least one
    bit, where timm can leave an image black.

    Raises ValueError for settings that make no sense.

    >>> images = np.zeros((2, 3, 32, 32), np.uint8)
    >>> RandAugment()(images, samples=np.array([7, 8]), seed=0, epoch=0).shape
    (2, 3, 32, 32)
    """

    num_ops: int = 2
    magnitude: float = 9.0
    std: float = 0.5
    p: float = 0.5
    increasing: bool = True
    translate: float = 0.45
    fill: int = 128

    def __post_init__(self) -> None:
        if self.num_ops < 1:
            raise ValueError(f"num_ops must be at least 1, got {self.num_ops}")
        if not 0 <= self.magnitude <= FULL or not 0 <= self.std <= FULL:
            raise ValueError(f"magnitude and std must lie in 0 … {FULL}, got {self.magnitude} and {self.std}")
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be a probability between 0 and 1, got {self.p}")

    @classmethod
    def from_config(cls, config: str, translate: float = 0.45, fill: int = 128) -> "RandAugment":
        """From timm's words: m magnitude (without: 10), n num_ops, p, mstd std (without: 0), inc increasing (0 or 1).

        Raises ValueError for words that are not of this form.

        >>> RandAugment.from_config("rand-m9-mstd0.5-inc1") == RandAugment()
        True
        """
        words = {"m": "magnitude", "n": "num_ops", "p": "p", "mstd": "std", "inc": "increasing"}
        types = {"n": int, "inc": lambda number: number != "0"}
        settings: dict[str, object] = {"magnitude": 10.0, "std": 0.0, "increasing": False}
        if not re.fullmatch(r"rand(-(m|n|p|mstd|inc)\d+(\.\d+)?)*", config):
            raise ValueError(f"config must look like 'rand-m9-n2-p0.5-mstd0.5-inc1', got {config!r}")
        for word, number in re.findall(r"-([a-z]+)([\d.]+)", config):
            settings[words[word]] = types.get(word, float)(number)
        return cls(**settings, translate=translate, fill=fill)

    def __call__(self, images: Array, samples: Array, seed: int, epoch: int) -> Array:
        space = increasing if self.increasing else searched
        operations = list(space(self.fill, self.translate).values())
        numbers = draw(samples, (self.num_ops, 5), seed, "randaugment", epoch).astype(np.float64)
        for step in range(self.num_ops):
            which, done, direction, radius, angle = numbers[:, step].T
            normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller (1958)
            level = np.clip(self.magnitude + self.std * normal, 0, FULL)
            choice = np.where(done < self.p, pick(which, len(operations)), -1)
            images = apply(images, operations, choice, signs(direction) * level / FULL)
        return images
