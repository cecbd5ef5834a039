"""Random horizontal flip: the mirror image, for classes that do not care about left and right."""

from dataclasses import dataclass

from minivit.backend import Array, array_module
from minivit.random import key, uniform


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror each image with probability ``p``. Wrong for digits and letters.

    Raises ValueError where ``p`` is no probability.

    >>> import numpy as np
    >>> image = np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3)
    >>> RandomHorizontalFlip(p=1)(image, samples=np.array([7]), seed=0, epoch=0)[0, 0]
    array([[2, 1, 0],
           [5, 4, 3]], dtype=uint8)
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be a probability between 0 and 1, got {self.p}")

    def __call__(self, images: Array, samples: Array, seed: int, epoch: int) -> Array:
        xp = array_module(images)
        flipped = uniform(key(seed, "flip", epoch), samples, xp=xp) < self.p  # (B,)
        return xp.where(flipped[:, None, None, None], images[..., ::-1], images)
