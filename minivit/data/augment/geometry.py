"""Warps: shear, translate and rotate, one amount for each image of a batch.

A warp is told backwards. Each pixel of the result asks where in the image its centre comes from, a straight-line
(affine) function of its own place, and takes the colour found there, between four pixels. Nothing is left empty that
way, as it would be if the image's pixels were sent to where they go.

Coordinates and arithmetic are those of Pillow (``Image.transform`` with ``AFFINE`` and ``BILINEAR``, ``Image.rotate``):
x to the right, y down, the centre of the first pixel at (½, ½). Images are uint8, (B, C, H, W).
"""

import math

from minivit.backend import Array, array_module

Coefficient = float | Array  # one number for all images, or one for each: (B,)


def affine(images: Array, matrix: tuple[Coefficient, ...], fill: int = 128) -> Array:
    """Warp a batch: the result at (x, y) is the image at (a·x + b·y + c, d·x + e·y + f), ``matrix`` (a, b, c, d, e, f).

    The colour is interpolated between the four pixels around that place, first along x, then along y, and its fraction
    cut off; beyond the centres of the outermost pixels their colour goes on; outside of the image all is ``fill``.

    Raises ValueError for a ``fill`` that is no level of 0 … 255.

    >>> import numpy as np
    >>> image = np.array([[[[0, 100, 200]]]], np.uint8)
    >>> affine(image, (1, 0, 0.5, 0, 1, 0))[0, 0]
    array([[ 50, 150, 128]], dtype=uint8)
    """
    if not 0 <= fill <= 255:
        raise ValueError(f"fill must be a level of 0 … 255, got {fill}")
    xp = array_module(images)
    batch, channels, height, width = images.shape
    a, b, c, d, e, f = (xp.asarray(value, dtype=xp.float64).reshape(-1, 1, 1) for value in matrix)
    x, y = xp.arange(width) + 0.5, (xp.arange(height) + 0.5)[:, None]
    from_x, from_y = a * x + b * y + c, d * x + e * y + f  # (B, H, W)
    inside = (0 <= from_x) & (from_x < width) & (0 <= from_y) & (from_y < height)

    # With a border of one pixel the outermost ones have neighbours too, so that there are always four.
    column, row = xp.clip(from_x + 0.5, 0, width), xp.clip(from_y + 0.5, 0, height)
    left, top = xp.floor(column), xp.floor(row)
    right_share, lower_share = (column - left).astype(xp.float32), (row - top).astype(xp.float32)
    border, line = ((0, 0), (1, 1), (1, 1)), width + 2
    start = xp.arange(batch)[:, None, None] * ((height + 2) * line)
    at = (top * line + left).astype(xp.int64) + start  # (B, H, W), where the upper left of the four lies in memory

    result = xp.empty(images.shape, xp.uint8)
    for channel in range(channels):  # the four are the same in all
        pixels = xp.pad(images[:, channel], border, mode="edge").astype(xp.float32).ravel()
        upper = _between(pixels.take(at), pixels[1:].take(at), right_share)
        lower = _between(pixels[line:].take(at), pixels[line + 1 :].take(at), right_share)
        result[:, channel] = xp.where(inside, _between(upper, lower, lower_share), fill)
    return result


def _between(a: Array, b: Array, share: Array) -> Array:
    """a + (b − a)·share, written over b."""
    b -= a
    b *= share
    b += a
    return b


def shear_x(images: Array, slope: Array, fill: int = 128) -> Array:
    """Shift each row by ``slope`` (B,) times its distance from the upper edge: to the left where it is positive.

    >>> import numpy as np
    >>> shear_x(np.array([[[[1, 2, 3], [1, 2, 3]]]], np.uint8), np.array([1.0]), fill=0)[0, 0]  # by 1/2 and by 3/2
    array([[1, 2, 0],
           [2, 0, 0]], dtype=uint8)
    """
    return affine(images, (1, slope, 0, 0, 1, 0), fill)


def shear_y(images: Array, slope: Array, fill: int = 128) -> Array:
    """Shift each column by ``slope`` (B,) times its distance from the left edge: upwards where it is positive."""
    return affine(images, (1, 0, 0, slope, 1, 0), fill)


def translate_x(images: Array, share: Array, fill: int = 128) -> Array:
    """Move to the left by ``share`` (B,) of the width; negative shares move to the right.

    >>> import numpy as np
    >>> translate_x(np.array([[[[1, 2, 3, 4]]]], np.uint8), np.array([0.25]), fill=0)[0, 0]
    array([[2, 3, 4, 0]], dtype=uint8)
    """
    return affine(images, (1, 0, share * images.shape[3], 0, 1, 0), fill)


def translate_y(images: Array, share: Array, fill: int = 128) -> Array:
    """Move upwards by ``share`` (B,) of the height; negative shares move down."""
    return affine(images, (1, 0, 0, 0, 1, share * images.shape[2]), fill)


def rotate(images: Array, degrees: Array, fill: int = 128) -> Array:
    """Turn counterclockwise about the centre by ``degrees`` (B,).

    >>> import numpy as np
    >>> rotate(np.array([[[[1, 2], [3, 4]]]], np.uint8), np.array([90.0]))[0, 0]
    array([[2, 4],
           [1, 3]], dtype=uint8)
    """
    xp = array_module(images)
    height, width = images.shape[2:]
    angle = xp.asarray(degrees, dtype=xp.float64) * (-math.pi / 180)
    cos, sin = xp.round(xp.cos(angle), 15), xp.round(xp.sin(angle), 15)  # a right angle's cosine is 0, not 6e-17
    x, y = width / 2, height / 2
    return affine(images, (cos, sin, x - (cos * x + sin * y), -sin, cos, y - (cos * y - sin * x)), fill)
