"""Rectangles of a random area and shape inside an image, as crops and erasing need them.

What is drawn is a few numbers an image, so they are computed on the host, wherever the images lie.
"""

import math
from typing import NamedTuple

import numpy as np


class Boxes(NamedTuple):
    """A rectangle of pixels for each image: int64 (B,) each."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray


def draw_boxes(
    numbers: np.ndarray,
    size: tuple[int, int],
    largest: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Boxes, np.ndarray]:
    """From numbers in [0, 1), (B, tries, 4): for each image, of one ``size``, a box, and whether there is one (B,).

    A try has a share of the image's area, uniform in ``area``, and width/height, log-uniform in ``ratio``; it fails
    where that box, in whole pixels, is empty or exceeds the ``largest`` height and width. The first that does not fail
    is taken, and put anywhere with equal probability.

    >>> boxes, found = draw_boxes(np.full((1, 1, 4), 0.5), (8, 8), largest=(8, 8), area=(0.2, 0.3), ratio=(1, 1))
    >>> [int(side[0]) for side in boxes], found
    ([2, 2, 4, 4], array([ True]))
    """
    numbers = numbers.astype(np.float64)
    pixels = (area[0] + numbers[..., 0] * (area[1] - area[0])) * size[0] * size[1]
    aspect = np.exp(math.log(ratio[0]) + numbers[..., 1] * math.log(ratio[1] / ratio[0]))
    height, width = np.rint(np.sqrt(pixels / aspect)), np.rint(np.sqrt(pixels * aspect))
    fits = (0 < height) & (height <= largest[0]) & (0 < width) & (width <= largest[1])
    first = np.arange(len(numbers)), fits.argmax(1)
    height, width, (*_, down, across) = height[first], width[first], numbers[first].T
    top, left = down * (size[0] - height + 1), across * (size[1] - width + 1)
    return Boxes(*(side.astype(np.int64) for side in (top, left, height, width))), fits.any(1)


def check_range(name: str, pair: tuple[float, float], top: float = math.inf) -> None:
    """Raises ValueError where ``pair`` is not a range of positive numbers up to ``top``."""
    if not (len(pair) == 2 and 0 < pair[0] <= pair[1] <= top):
        bound = "" if top == math.inf else f" up to {top:g}"
        raise ValueError(f"{name} must be two positive numbers{bound}, the smaller one first, got {pair}")
