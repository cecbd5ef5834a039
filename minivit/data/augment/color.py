"""Colour and light: blends of an image with a plainer version of itself, and turns of its hue.

The blends are those of Pillow's ``ImageEnhance``: plain + factor · (image − plain), with the fraction cut off and the
ends clipped. A factor of 0 gives the plainer version (black, grey, without colour), 1 the image, more than 1 goes the
other way. Images are uint8, (B, C, H, W); factors (B,).

Red, green and blue are the three channels of images that have three. Images of other channel counts have no colour:
``grayscale``, ``saturation`` and ``hue`` give them back as they are, and their light is the mean over all channels.
"""

from minivit.backend import Array, array_module


def luma(images: Array) -> Array:
    """Brightness as the eye weighs it: 0.299 R + 0.587 G + 0.114 B, rounded; (B, 3, H, W) → (B, 1, H, W).

    The weights of ITU-R BT.601 as 16-bit fractions, as in Pillow's ``convert("L")``.

    >>> import numpy as np
    >>> luma(np.array([255, 0, 0], np.uint8).reshape(1, 3, 1, 1)).item()
    76
    """
    red, green, blue = (images[:, c : c + 1].astype("uint32") for c in range(3))
    red *= 19595
    green *= 38470
    blue *= 7471
    return ((red + green + blue + 0x8000) >> 16).astype("uint8")


def blend(plain: Array | float, images: Array, factor: Array) -> Array:
    """plain + factor · (images − plain), cut to whole levels in 0 … 255; ``factor`` (B,).

    >>> import numpy as np
    >>> blend(100, np.array([[[[90, 110, 255]]]], np.uint8), np.array([1.25]))[0, 0]
    array([[ 87, 112, 255]], dtype=uint8)
    """
    xp = array_module(images)
    mixed = images.astype(xp.float32)
    mixed -= plain
    mixed *= xp.asarray(factor, dtype=xp.float32).reshape(-1, 1, 1, 1)
    mixed += plain
    return xp.clip(mixed, 0, 255, out=mixed).astype(xp.uint8)


def brightness(images: Array, factor: Array) -> Array:
    """Towards black (below 1) or brighter (above 1).

    >>> import numpy as np
    >>> brightness(np.array([[[[10, 201]]]], np.uint8), np.array([0.5]))[0, 0]
    array([[  5, 100]], dtype=uint8)
    """
    return blend(0.0, images, factor)


def contrast(images: Array, factor: Array) -> Array:
    """Towards the image's mean luma (below 1) or away from it (above 1).

    >>> import numpy as np
    >>> contrast(np.array([[[[100, 200]]]], np.uint8), np.array([0.5]))[0, 0]
    array([[125, 175]], dtype=uint8)
    """
    xp = array_module(images)
    light = luma(images) if images.shape[1] == 3 else images
    mean = xp.floor(light.mean((1, 2, 3), dtype=xp.float64, keepdims=True) + 0.5)
    return blend(mean.astype(xp.float32), images, factor)


def saturation(images: Array, factor: Array) -> Array:
    """Towards the image without its colours (below 1) or more colourful (above 1): Pillow's ``Color``.

    >>> import numpy as np
    >>> saturation(np.array([255, 0, 0], np.uint8).reshape(1, 3, 1, 1), np.array([0.5])).ravel()
    array([165,  38,  38], dtype=uint8)
    """
    return blend(luma(images), images, factor) if images.shape[1] == 3 else images


def grayscale(images: Array) -> Array:
    """The luma in all three channels.

    >>> import numpy as np
    >>> grayscale(np.array([255, 0, 0], np.uint8).reshape(1, 3, 1, 1)).ravel()
    array([76, 76, 76], dtype=uint8)
    """
    return luma(images).repeat(3, axis=1) if images.shape[1] == 3 else images


def hue(images: Array, turn: Array) -> Array:
    """Move each colour along the colour circle by ``turn`` (B,) of it, −½ … ½; lightness and saturation stay.

    By way of Pillow's 8-bit hue, saturation and value, as in torchvision's ``adjust_hue``.

    >>> import numpy as np
    >>> hue(np.array([255, 0, 0], np.uint8).reshape(1, 3, 1, 1), np.array([1 / 3])).ravel()   # red becomes green
    array([  0, 255,   0], dtype=uint8)
    """
    if images.shape[1] != 3:
        return images
    xp = array_module(images)
    steps = xp.trunc(xp.asarray(turn, dtype=xp.float64) * 255).astype(xp.int64)
    h, s, v = _to_hsv(images)
    return _from_hsv(h + steps.astype(xp.uint8).reshape(-1, 1, 1), s, v)  # bytes go round in a circle too


def _to_hsv(images: Array) -> tuple[Array, Array, Array]:
    """Hue (uint8), saturation and value, whole numbers in 0 … 255: (B, H, W) each.

    The circle of hues has six equal parts: red, yellow, green, cyan, blue, magenta, red. In each of them the largest
    channel (the value) and the smallest stay what they are, and the third moves from one to the other. A grey has no
    place on the circle: hue and saturation 0. Numbers are rounded where Pillow rounds them, which matters as they are
    cut to whole ones then: the hue of pure green is 85 by way of float32, and 84.99… by float64 alone.
    """
    xp = array_module(images)
    channels = images.astype(xp.float32)
    v, low = channels.max(1), channels.min(1)
    spread = xp.maximum(v - low, 1)
    red, green, blue = (((v - channels[:, c]) / spread).astype(xp.float64) for c in range(3))  # 0: the largest, 1: …
    sixths = xp.where(red == 0, blue - green, xp.where(green == 0, 2 + red - blue, 4 + green - red))
    turns = _single(sixths) / 6 + 1
    h = _single(turns - xp.floor(turns)) * 255
    s = _single((v - low) / xp.maximum(v, 1)) * 255
    return h.astype(xp.uint8), xp.floor(s), v


def _from_hsv(h: Array, s: Array, v: Array) -> Array:
    """The inverse: a channel is the value less a share of the saturation, which rises, stays and falls with the hue."""
    xp = array_module(h)
    hues = xp.arange(256) * (6 / 255)  # in sixths of the circle
    channels = []
    for rise in (1, 3, 5):  # where the share of red, green and blue begins to rise
        k = (hues + 6 - rise) % 6
        share = xp.clip(xp.minimum(k, 4 - k), 0, 1).take(h)
        channels.append(xp.floor(v * (1 - s / 255 * share) + 0.5))
    return xp.stack(channels, axis=1).astype(xp.uint8)


def _single(x: Array) -> Array:
    """Rounded to float32, for arithmetic in float64: what C makes of a ``float``."""
    return x.astype("float32").astype("float64")
