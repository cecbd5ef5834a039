"""What policies are made of: draw for each image on the host, then do to each what was drawn for it.

A policy has a list of operations, functions of images and of a strength for each of them. A batch is sorted by
operation, so images that get the same one get it together. Strengths lie in [−1, 1]: the size says how much, and the
sign, where an operation has two directions, which way.
"""

from collections.abc import Callable, Sequence

import numpy as np

from minivit.backend import Array, array_module, to_device
from minivit.data.augment.color import brightness, contrast, saturation
from minivit.data.augment.filters import sharpness
from minivit.data.augment.geometry import rotate, shear_x, shear_y, translate_x, translate_y
from minivit.data.augment.levels import autocontrast, equalize, invert
from minivit.random import key, uniform

Operation = Callable[[Array, np.ndarray], Array]  # (n, C, H, W) uint8 and strengths (n,) → (n, C, H, W) uint8

PIECE = 2**18  # bytes of images at a time: what an operation makes of them, floats and indices, fits a CPU's cache

FIXED: dict[str, Operation] = {  # those without a strength
    "autocontrast": lambda x, s: autocontrast(x),
    "equalize": lambda x, s: equalize(x),
    "invert": lambda x, s: invert(x),
}


def warps(slope: float, translate: float, degrees: float, fill: int) -> dict[str, Operation]:
    """The five warps, which reach these amounts at the strengths −1 and 1; ``translate`` is a share of the side."""
    return {
        "shear_x": lambda x, s: shear_x(x, slope * s, fill),
        "shear_y": lambda x, s: shear_y(x, slope * s, fill),
        "translate_x": lambda x, s: translate_x(x, translate * s, fill),
        "translate_y": lambda x, s: translate_y(x, translate * s, fill),
        "rotate": lambda x, s: rotate(x, degrees * s, fill),
    }


def blends(factor: Callable[[np.ndarray], np.ndarray]) -> dict[str, Operation]:
    """The four blends with a plainer image, by ``factor`` of the strength."""
    return {
        "brightness": lambda x, s: brightness(x, factor(s)),
        "contrast": lambda x, s: contrast(x, factor(s)),
        "saturation": lambda x, s: saturation(x, factor(s)),
        "sharpness": lambda x, s: sharpness(x, factor(s)),
    }


def draw(samples: Array, shape: tuple[int, ...], seed: int, *names: object) -> np.ndarray:
    """Numbers in [0, 1) for each sample, (B, *shape), from the stream (seed, *names).

    In NumPy wherever the images are: Python has to know them, and so the choices are the same on every device.

    >>> draw(np.array([7, 8]), (2,), 0, "policy").shape
    (2, 2)
    """
    return uniform(key(seed, *names), to_device(samples, "cpu"), shape)


def signs(numbers: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) to −1 and 1, equally likely.

    >>> signs(np.array([0.2, 0.7]))
    array([-1,  1])
    """
    return 2 * pick(numbers, 2) - 1


def pick(numbers: np.ndarray, count: int) -> np.ndarray:
    """Numbers in [0, 1) to 0, 1, …, count − 1, all equally likely.

    >>> pick(np.array([0.0, 0.49, 0.51, 0.99]), 2)
    array([0, 0, 1, 1])
    """
    return (numbers * count).astype(np.int64)


def apply(images: Array, operations: Sequence[Operation], choice: np.ndarray, strength: np.ndarray) -> Array:
    """Do ``operations[choice[i]]`` with ``strength[i]`` to image i; a choice of −1 leaves it as it is.

    Raises ValueError for images that are not uint8 of shape (B, C, H, W).

    >>> darker, brighter = (lambda x, s: x - 10), (lambda x, s: x + s.astype(np.uint8)[:, None, None, None])
    >>> grey = np.full((3, 1, 1, 1), 100, np.uint8)
    >>> apply(grey, [darker, brighter], np.array([1, -1, 0]), np.array([5, 5, 5])).ravel()
    array([105, 100,  90], dtype=uint8)
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 of shape (B, C, H, W), got {images.dtype} of shape {images.shape}")
    xp = array_module(images)
    result = images.copy()
    for number, operation in enumerate(operations):
        chosen = np.flatnonzero(choice == number)
        for piece in _pieces(chosen, images):
            at = xp.asarray(piece)
            result[at] = operation(images[at], strength[piece])
    return result


def _pieces(chosen: np.ndarray, images: Array) -> list[np.ndarray]:
    """``chosen`` in parts that a CPU's cache holds; on a GPU in one."""
    size = PIECE * len(images) // max(1, images.nbytes) if isinstance(images, np.ndarray) else len(chosen)
    size = max(1, size)
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]
