"""Random erasing: a rectangle of the picture is hidden, so that no single part of it may decide."""

from dataclasses import dataclass

import numpy as np

from minivit.backend import Array, array_module
from minivit.data.augment.boxes import check_range, draw_boxes
from minivit.data.augment.ops import draw
from minivit.random import generator

MODES = ("const", "rand", "pixel")


@dataclass(frozen=True)
class RandomErasing:
    """Overwrite a box with probability ``p``: a share of the image in ``area``, height/width in ``aspect`` … 1/aspect.

    Acts on normalised images, where 0 is the mean of the training set. ``mode`` says what is put there: ``"const"``
    zeros, ``"rand"`` one number of N(0, 1) for each channel, ``"pixel"`` one for each channel of each pixel. A box must
    leave a row and a column; after ``tries`` that do not, the image stays whole. Zhong et al., "Random Erasing Data
    Augmentation" (AAAI 2020, arXiv:1708.04896); these defaults are those of DeiT.

    Raises ValueError where ``p`` is no probability, for ranges that are none and another mode; TypeError for images of
    bytes.

    >>> image = np.ones((1, 1, 4, 4), np.float32)
    >>> RandomErasing(p=1, area=(0.2, 0.4), mode="const")(image, samples=np.array([7]), seed=0, epoch=0)[0, 0]
    array([[1., 1., 1., 1.],
           [1., 1., 0., 0.],
           [1., 1., 0., 0.],
           [1., 1., 1., 1.]], dtype=float32)
    """

    stage = "floats"

    p: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: float = 0.3
    mode: str = "pixel"
    tries: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be a probability between 0 and 1, got {self.p}")
        check_range("area", self.area, top=1)
        if not 0 < self.aspect <= 1:
            raise ValueError(f"aspect must lie in (0, 1], got {self.aspect}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.tries < 1:
            raise ValueError(f"tries must be at least 1, got {self.tries}")

    def __call__(self, images: Array, samples: np.ndarray, seed: int, epoch: int) -> Array:
        if images.dtype.kind != "f":
            raise TypeError(f"RandomErasing takes normalised images of floats, got {images.dtype}")
        xp, channels, height, width = array_module(images), *images.shape[1:]
        chosen = np.flatnonzero(draw(samples, (), seed, "erasing", epoch) < self.p)
        numbers = draw(samples[chosen], (self.tries, 4), seed, "erased box", epoch)
        ratio = (self.aspect, 1 / self.aspect)
        boxes, found = draw_boxes(numbers, (height, width), (height - 1, width - 1), self.area, ratio)
        images = images.copy()
        for i, top, left, h, w in np.stack([chosen, *boxes], axis=1)[found].tolist():
            box = images[i, :, top : top + h, left : left + w]
            if self.mode == "const":
                box[...] = 0
            else:
                shape = (channels, h, w) if self.mode == "pixel" else (channels, 1, 1)
                noise = generator(seed, "erased pixels", epoch, int(samples[i])).standard_normal(shape, np.float32)
                box[...] = xp.asarray(noise)
        return images
