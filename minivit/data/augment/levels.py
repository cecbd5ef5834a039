"""Point operations: each pixel's new level is a function of its old one, the same all over an image.

Those of Pillow's ``ImageOps``. Some functions are fixed, some come from a number for each image, some from the image's
own histogram. Images are uint8, (B, C, H, W); a channel is treated like another.
"""

from minivit.backend import Array, array_module

LEVELS = 256


def invert(images: Array) -> Array:
    """The negative: 255 − level.

    >>> import numpy as np
    >>> invert(np.array([[[[0, 100]]]], np.uint8))[0, 0]
    array([[255, 155]], dtype=uint8)
    """
    return 255 - images


def posterize(images: Array, bits: Array) -> Array:
    """Keep the ``bits`` (B,) highest of a level's eight bits, 0 (all black) to 8 (the image as it is).

    >>> import numpy as np
    >>> posterize(np.array([[[[0, 100, 255]]]], np.uint8), np.array([2]))[0, 0]
    array([[  0,  64, 192]], dtype=uint8)
    """
    xp = array_module(images)
    mask = 256 - 2 ** (8 - xp.asarray(bits, dtype=xp.int64))
    return images & mask.astype(xp.uint8).reshape(-1, 1, 1, 1)


def solarize(images: Array, threshold: Array) -> Array:
    """Invert the levels from ``threshold`` (B,) on; 256 leaves the image as it is, 0 inverts it.

    >>> import numpy as np
    >>> solarize(np.array([[[[100, 128, 255]]]], np.uint8), np.array([128]))[0, 0]
    array([[100, 127,   0]], dtype=uint8)
    """
    xp = array_module(images)
    bright = images >= xp.asarray(threshold, dtype=xp.float32).reshape(-1, 1, 1, 1)
    return images ^ (bright * xp.uint8(255))  # 255 − x flips the bits of x


def solarize_add(images: Array, amount: Array, threshold: int = 128) -> Array:
    """Brighten the levels below ``threshold`` by ``amount`` (B,) of 0 … 255, up to 255.

    >>> import numpy as np
    >>> solarize_add(np.array([[[[0, 100, 128]]]], np.uint8), np.array([50]))[0, 0]
    array([[ 50, 150, 128]], dtype=uint8)
    """
    xp = array_module(images)
    amount = xp.asarray(amount).astype(xp.uint8).reshape(-1, 1, 1, 1)
    return images + xp.minimum(amount, 255 - images) * (images < threshold)


def autocontrast(images: Array) -> Array:
    """Stretch the levels of each channel so that its darkest becomes 0 and its brightest 255.

    >>> import numpy as np
    >>> autocontrast(np.array([[[[100, 110, 120]]]], np.uint8))[0, 0]
    array([[  0, 127, 255]], dtype=uint8)
    """
    xp = array_module(images)
    low, high = (extreme.astype(xp.float64) for extreme in (images.min((2, 3)), images.max((2, 3))))  # (B, C)
    flat = high <= low
    scale = 255 / xp.where(flat, 1.0, high - low)
    scale, offset = xp.where(flat, 1.0, scale), xp.where(flat, 0.0, -low * scale)
    table = xp.arange(LEVELS) * scale[:, :, None] + offset[:, :, None]
    return look_up(images, xp.clip(table, 0, 255))


def equalize(images: Array) -> Array:
    """Spread the levels of each channel so that all ranges of them are about equally frequent.

    A level becomes the number of pixels darker than it, in units of ``step``: a 255th of the pixels darker than the
    brightest, cut to a whole number. Channels with too few pixels for one step stay as they are.

    >>> import numpy as np
    >>> dark = (np.arange(1024).reshape(1, 1, 32, 32) // 16).astype(np.uint8)    # levels 0 … 63
    >>> equalize(dark)[0, 0, ::10, 0]
    array([  0, 107, 213, 255], dtype=uint8)
    """
    xp = array_module(images)
    frequency = histogram(images)
    below = xp.cumsum(frequency, axis=2) - frequency  # (B, C, 256), pixels darker than each level
    pixels = images.shape[2] * images.shape[3]
    step = xp.where(below < pixels, below, 0).max(2, keepdims=True) // 255  # levels that no pixel reaches have them all
    table = (below + step // 2) // xp.maximum(step, 1)
    return look_up(images, xp.where(step > 0, xp.minimum(table, 255), xp.arange(LEVELS)))


def histogram(images: Array) -> Array:
    """How many pixels of each channel have each level: (B, C, 256).

    >>> import numpy as np
    >>> histogram(np.array([[[[0, 0, 3]]]], np.uint8))[0, 0, :4]
    array([2, 0, 0, 1])
    """
    xp = array_module(images)
    counts = xp.bincount(_places(images).ravel(), minlength=images.shape[0] * images.shape[1] * LEVELS)
    return counts.reshape(*images.shape[:2], LEVELS)


def look_up(images: Array, table: Array) -> Array:
    """Replace each level by its entry in the channel's ``table`` (B, C, 256), cut to whole levels.

    >>> import numpy as np
    >>> look_up(np.array([[[[0, 2]]]], np.uint8), 255 - np.arange(256).reshape(1, 1, 256))[0, 0]
    array([[255, 253]], dtype=uint8)
    """
    return table.astype("uint8").ravel().take(_places(images))


def _places(images: Array) -> Array:
    """Where a pixel's level stands in tables (B, C, 256), laid out flat."""
    xp = array_module(images)
    batch, channels = images.shape[:2]
    return images + xp.arange(batch * channels).reshape(batch, channels, 1, 1) * LEVELS
