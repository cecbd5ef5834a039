"""Pillow's images, for comparison: pictures as arrays, and what Pillow makes of each of them."""

import numpy as np
from hypothesis import strategies as st
from PIL import Image


@st.composite
def batches(draw, channels=(1, 3), square=False):
    """Noise (B, C, H, W) in few or many levels, dark or bright; read-only."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    shape = (draw(st.integers(1, 4)), draw(st.sampled_from(channels)), height, height if square else width)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low, high = sorted(rng.integers(0, 256, 2))
    low, high = draw(st.sampled_from([(0, 255), (low, high)]))
    images = rng.integers(low, high + 1, shape, dtype=np.uint8)
    images.flags.writeable = False
    return images


def by_pillow(function, images, amounts):
    """``function(image of Pillow, amount)`` for each image of a batch."""
    return np.stack([from_pillow(function(to_pillow(x), amount)) for x, amount in zip(images, amounts.tolist())])


def to_pillow(image):
    """(1, H, W) → mode L, (3, H, W) → mode RGB."""
    return Image.fromarray(image[0].copy() if len(image) == 1 else np.moveaxis(image, 0, -1).copy())


def from_pillow(image):
    levels = np.asarray(image)
    return levels[None] if levels.ndim == 2 else np.moveaxis(levels, -1, 0)


def assert_close(result, expected, levels):
    """uint8 images of equal shape, nowhere more than so many levels apart."""
    assert (result.dtype, result.shape) == (np.uint8, expected.shape)
    difference = abs(result.astype(int) - expected)
    assert difference.max(initial=0) <= levels, f"{difference.max()} levels apart"
