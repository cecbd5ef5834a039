"""Filters: each pixel becomes a weighted mean of its neighbourhood. Sharpness and Gaussian blur, as in Pillow.

Images are uint8, (B, C, H, W); every channel is filtered by itself.
"""

import numpy as np

from minivit.backend import Array, array_module, to_device
from minivit.data.augment.color import blend

ONE = 2**24  # the weight 1


def smooth(images: Array) -> Array:
    """The mean of 3 × 3 pixels, the middle one counted five times; the outermost pixels stay as they are.

    >>> import numpy as np
    >>> smooth(np.array([[[[0, 0, 0], [0, 130, 0], [0, 0, 0]]]], np.uint8))[0, 0, 1]
    array([ 0, 50,  0], dtype=uint8)
    """
    xp = array_module(images)
    levels = images.astype(xp.uint16)
    total = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    total = total[..., :-2] + total[..., 1:-1] + total[..., 2:] + 4 * levels[:, :, 1:-1, 1:-1]  # of 13 pixels
    result = images.copy()
    result[:, :, 1:-1, 1:-1] = (total + 6) // 13
    return result


def sharpness(images: Array, factor: Array) -> Array:
    """Towards the smoothed image (``factor`` (B,) below 1) or away from it (above 1).

    >>> import numpy as np
    >>> sharpness(np.array([[[[0, 0, 0], [0, 130, 0], [0, 0, 0]]]], np.uint8), np.array([1.5]))[0, 0, 1]
    array([  0, 170,   0], dtype=uint8)
    """
    return blend(smooth(images), images, factor)


def gaussian_blur(images: Array, sigma: Array) -> Array:
    """Blur with a standard deviation of ``sigma`` (B,) pixels; the outermost pixels go on beyond the image.

    Three box means in a row come near the bell curve. A box has 2 r + 1 pixels of one weight and one more at each end
    of a smaller weight, so that its variance is exactly σ²/3: Gwosdek, Grewenig, Bruhn and Weickert, "Theoretical
    foundations of Gaussian convolution by extended box filtering" (SSVM 2011). Integer arithmetic as in Pillow:
    weights are multiples of 2⁻²⁴, and each box rounds to whole levels.

    >>> import numpy as np
    >>> gaussian_blur(np.array([[[[0, 0, 0, 255, 0, 0, 0]]]], np.uint8), np.array([1.0]))[0, 0]
    array([[  1,  14,  61, 104,  61,  14,   1]], dtype=uint8)
    """
    xp = array_module(images)
    weights = xp.asarray(box_weights(to_device(sigma, "cpu")))  # on the host: Python has to know how many there are
    for axis in (3, 2):
        for _ in range(3):
            images = _box(images, weights, axis)
    return images


def box_weights(sigma: np.ndarray) -> np.ndarray:
    """Weights at distance 0, 1, 2, … of boxes with variance σ²/3, in units of 2⁻²⁴: (B,) → (B, distances), uint32.

    >>> box_weights(np.array([0.0, 2.0])) / 2**24
    array([[1.        , 0.        , 0.        ],
           [0.26666665, 0.26666665, 0.10000002]])
    """
    variance = np.asarray(sigma, dtype=np.float64) ** 2 / 3
    r = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)  # without the ends, a box of 2 r + 1 has too small a variance
    end = (2 * r + 1) * (r * (r + 1) - 3 * variance) / (6 * (variance - (r + 1) ** 2))  # so much of a whole pixel
    whole = np.floor(ONE / (2 * (r + end) + 1))
    ends = (ONE - (2 * r + 1) * whole) // 2
    distance = np.arange(r.max(initial=0) + 2)
    r, whole, ends = r[:, None], whole[:, None], ends[:, None]
    return np.where(distance <= r, whole, np.where(distance == r + 1, ends, 0)).astype(np.uint32)


def _box(images: Array, weights: Array, axis: int) -> Array:
    """A weighted mean along ``axis``, rounded; ``weights`` (B, distances)."""
    xp = array_module(images)
    size, reach = images.shape[axis], weights.shape[1] - 1
    places = xp.clip(xp.arange(-reach, size + reach), 0, size - 1)
    levels = xp.moveaxis(images.take(places, axis).astype(xp.uint32), axis, 0)  # (size + 2·reach, …)
    weights = weights.T[:, :, None, None]  # (distances, B, 1, 1)
    total = levels[reach : reach + size] * weights[0]
    for d in range(1, reach + 1):
        pair = levels[reach - d : reach - d + size] + levels[reach + d : reach + d + size]
        pair *= weights[d]
        total += pair
    total += ONE // 2
    total >>= 24
    return xp.moveaxis(total.astype(xp.uint8), 0, axis)
