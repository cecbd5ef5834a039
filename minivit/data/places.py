"""``places``: a generated data set in which nothing but place matters.

Every image shows the same two figures, a disc and a cross, somewhere. The label is the direction in which the cross
lies, seen from the disc: one of eight. What the figures look like says nothing, and neither does the place of one of
them; a network that does not know where its tokens are can only guess. Figures are as large in a large image as in a
small one, so the same question can be asked at a resolution on which a network was not trained.
"""

import math

import numpy as np

from minivit.data.dataset import Dataset
from minivit.data.shapes import cross, disc
from minivit.random import key, uniform

DIRECTIONS = ["east", "northeast", "north", "northwest", "west", "southwest", "south", "southeast"]
RADIUS = 3.0  # of a figure, in pixels


def places(n: int, seed: int = 0, size: int = 24, split: str = "train") -> Dataset:
    """``n`` grey images of ``size`` × ``size`` pixels; labels number ``DIRECTIONS``, extra["distance"] is in pixels.

    The direction and the distance (from three radii to 0.6 of the side) are drawn first, then the place of the pair, so
    that all of it is in the picture; brightness and noise vary. Image i depends on (seed, split, i) alone and has label
    i mod 8. Raises ValueError where ``n`` or ``size`` is too small.

    >>> data = places(8)
    >>> data, data.classes[data.labels[2]]
    (Dataset('places', 8 images of 1×24×24, 8 classes), 'north')
    """
    if n < 1 or size < 16:
        raise ValueError(f"n must be at least 1 and size at least 16 pixels, got n = {n} and size = {size}")
    stream, count = key(seed, "places", split), len(DIRECTIONS)
    images, distances = np.empty((n, 1, size, size), np.uint8), np.empty(n, np.int64)
    for start in range(0, n, 1024):
        samples = np.arange(start, min(start + 1024, n))
        turn, far, right, down, dark, pale = uniform(stream, samples, (6,)).T
        angle = 2 * math.pi * (samples % count + 0.8 * (turn - 0.5)) / count  # a gap between neighbouring directions
        distance = 3 * RADIUS + far * (0.6 * size - 3 * RADIUS)
        reach = np.stack([distance * np.cos(angle), -distance * np.sin(angle)])  # (2, n), to the right and down
        room = size - 2 * RADIUS - 2 - np.abs(reach)
        first = RADIUS + 1 + room * np.stack([right, down]) + np.maximum(-reach, 0)
        paper, ink = 0.15 + 0.2 * dark, 0.65 + 0.3 * pale
        cover = np.maximum(covered(disc, first, size), covered(cross, first + reach, size))
        image = paper[:, None, None] + cover * (ink - paper)[:, None, None]
        image += 0.06 * (uniform(key(seed, "places noise", split), samples, (size, size)) - 0.5)
        images[samples, 0] = np.clip(image, 0, 1) * 255 + 0.5
        distances[samples] = np.rint(distance)
    return Dataset("places", images, np.arange(n) % count, list(DIRECTIONS), extra={"distance": distances})


def covered(figure, centre: np.ndarray, size: int) -> np.ndarray:
    """The share of each pixel inside the figure around ``centre`` (2, n), in pixels from the left and the top."""
    pixel = np.arange(size, dtype=np.float32) + 0.5
    x = (pixel - centre[0][:, None])[:, None, :] / RADIUS
    y = (pixel - centre[1][:, None])[:, :, None] / RADIUS
    return np.clip(figure(x, -y) * RADIUS + 0.5, 0, 1)
