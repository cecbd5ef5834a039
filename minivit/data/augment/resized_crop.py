"""Random resized crop: a part of the picture, stretched to the whole size."""

import math
from dataclasses import dataclass

import numpy as np

from minivit.backend import Array, array_module
from minivit.data.augment.boxes import Boxes, check_range, draw_boxes
from minivit.data.augment.ops import draw
from minivit.interpolation import KERNELS, REACH, resampling_weights

TRIES = 10
BLOCK = 32  # new pixels computed at a time: their weights have few zeros


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut a box out of each image, and resize it to ``size`` (that of the images where it is None).

    The box has a share of the area that is uniform in ``scale``, and a width/height that is log-uniform in ``ratio``.
    Where ten tries give none that fits, it is the largest in the middle whose shape lies in ``ratio``. Szegedy et al.,
    "Going Deeper with Convolutions" (CVPR 2015), section 6; for pretraining, MAE takes a ``scale`` from 0.2 and bicubic
    interpolation.

    ``interpolation``: "bilinear" or "bicubic", with antialiasing, and rounded to bytes after the columns and after the
    rows: what Pillow gives. Takes uint8 images only.

    Raises ValueError for ranges that are none, another interpolation or an impossible size.

    >>> image = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    >>> RandomResizedCrop(scale=(0.25, 0.25), ratio=(1, 1))(image, samples=np.array([7]), seed=0, epoch=0)[0, 0]
    array([[ 9,  9, 10, 10],
           [10, 10, 11, 11],
           [12, 12, 13, 13],
           [13, 13, 14, 14]], dtype=uint8)
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    size: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        check_range("scale", self.scale, top=1)
        check_range("ratio", self.ratio)
        if self.interpolation not in KERNELS:
            raise ValueError(f"interpolation must be one of {', '.join(KERNELS)}, got {self.interpolation!r}")
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if self.size is not None and not (len(sides) == 2 and min(sides) >= 1):
            raise ValueError(f"size must be pixels a side, or (height, width), got {self.size}")

    def __call__(self, images: Array, samples: np.ndarray, seed: int, epoch: int) -> Array:
        if images.dtype != np.uint8:
            raise TypeError(f"RandomResizedCrop takes images of uint8, before they are normalised, got {images.dtype}")
        boxes = self.boxes(samples, images.shape[2:], seed, epoch)
        size = images.shape[2:] if self.size is None else self.size
        return resized(images, boxes, (size, size) if isinstance(size, int) else size, self.interpolation)

    def boxes(self, samples: np.ndarray, size: tuple[int, int], seed: int, epoch: int) -> Boxes:
        """What is cut out of the images of these ``samples``, each of ``size`` (height, width)."""
        numbers = draw(samples, (TRIES, 4), seed, "resized crop", epoch)
        boxes, found = draw_boxes(numbers, size, size, self.scale, self.ratio)
        height = min(size[0], round(size[1] / self.ratio[0]))
        width = min(size[1], round(size[0] * self.ratio[1]))
        middle = Boxes((size[0] - height) // 2, (size[1] - width) // 2, height, width)
        return Boxes(*(np.where(found, drawn, instead) for drawn, instead in zip(boxes, middle)))


def resized(images: Array, boxes: Boxes, size: tuple[int, int], interpolation: str = "bilinear") -> Array:
    """The box of each image, at another size: uint8 (B, C, H, W) → (B, C, *size).

    >>> image = np.array([[[[0, 100, 200]]]], np.uint8)
    >>> resized(image, Boxes(*np.array([[0], [1], [1], [2]])), (1, 4))
    array([[[[100, 125, 175, 200]]]], dtype=uint8)
    """
    columns = _resample_and_transpose(images, boxes.left, boxes.width, size[1], interpolation)  # (B, C, new W, H)
    return _resample_and_transpose(columns, boxes.top, boxes.height, size[0], interpolation)  # (B, C, new H, new W)


def _resample_and_transpose(x: Array, start: np.ndarray, length: np.ndarray, new: int, kernel: str) -> Array:
    """(B, C, m, old) → (B, C, new, m): a stretch of the last axis, another one for each image, as ``new`` pixels.

    A new pixel sees few old ones, and so does a block of them: of the matrix (new, old) only the part around the
    diagonal is computed, and multiplied with a window of x.
    """
    xp = array_module(x)
    old, count = x.shape[-1], len(x)
    reach = REACH[kernel] * np.maximum(length / new, 1)
    parts = []
    for begin in range(0, new, BLOCK):
        end = min(begin + BLOCK, new)
        window = min(old, math.ceil((end - begin) * old / new + 2 * REACH[kernel] * max(old / new, 1)) + 1)
        first = np.floor(start + begin * length / new - reach).clip(0, old - window).astype(np.int64)  # (B,)
        starts, lengths, firsts = xp.asarray(np.stack([start, length, first]), xp.float32)[:, :, None, None]
        old_pixels = firsts + xp.arange(window, dtype=xp.float32)  # (B, 1, window)
        new_pixels = xp.arange(begin, end, dtype=xp.float32)[:, None]
        weights = resampling_weights(new_pixels, old_pixels, starts, lengths, new, kernel)  # (B, end − begin, window)
        seen = x
        if window < old:
            windows = xp.lib.stride_tricks.sliding_window_view(x, window, axis=-1)  # (B, C, m, places, window)
            seen = windows[xp.arange(count), :, :, xp.asarray(first)]
        parts.append(_to_bytes(weights[:, None] @ seen.astype(xp.float32).swapaxes(-1, -2)))
    return xp.concatenate(parts, axis=2)


def _to_bytes(x: Array) -> Array:
    """Rounded, ½ upwards, and held within 0 … 255. Writes to ``x``."""
    x += 0.5
    return x.clip(0, 255, out=x).astype(np.uint8)
