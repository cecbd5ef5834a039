"""Colour, levels and filters against Pillow, and against what is known without it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from minivit.backend import to_device
from minivit.data.augment import color, filters, levels
from tests.data.pillow import assert_close, batches, by_pillow

seeds = st.integers(0, 2**32)


def by_hue(image, turn):
    """torchvision's ``adjust_hue``: the byte of the hue goes round."""
    if image.mode == "L":
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.array(int(turn * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def add_below(image, amount):
    return image.point(
        [min(255, level + int(amount)) if level < 128 else level for level in range(256)] * len(image.mode)
    )


# Ours, Pillow's, the range of amounts, and by how many levels they may differ: 1 where floats are cut to whole levels,
# as a compiler may round a product and a sum in one step; 0 where numbers are whole or looked up.
CASES = {
    "brightness": (color.brightness, lambda x, f: ImageEnhance.Brightness(x).enhance(f), (0, 3), 1),
    "contrast": (color.contrast, lambda x, f: ImageEnhance.Contrast(x).enhance(f), (0, 3), 1),
    "saturation": (color.saturation, lambda x, f: ImageEnhance.Color(x).enhance(f), (0, 3), 1),
    "sharpness": (filters.sharpness, lambda x, f: ImageEnhance.Sharpness(x).enhance(f), (0, 3), 1),
    "smooth": (lambda x, _: filters.smooth(x), lambda x, _: x.filter(ImageFilter.SMOOTH), (0, 0), 0),
    "gaussian_blur": (filters.gaussian_blur, lambda x, r: x.filter(ImageFilter.GaussianBlur(r)), (0, 9), 1),
    "hue": (color.hue, by_hue, (-0.5, 0.5), 1),
    "grayscale": (lambda x, _: color.grayscale(x), lambda x, _: x.convert("L").convert(x.mode), (0, 0), 0),
    "invert": (lambda x, _: levels.invert(x), lambda x, _: ImageOps.invert(x), (0, 0), 0),
    "posterize": (lambda x, b: levels.posterize(x, b // 1), lambda x, b: ImageOps.posterize(x, int(b)), (1, 9), 0),
    "solarize": (
        lambda x, t: levels.solarize(x, t // 0.5 / 2),
        lambda x, t: ImageOps.solarize(x, t // 0.5 / 2),
        (0, 257),
        0,
    ),
    "solarize_add": (levels.solarize_add, add_below, (0, 256), 0),
    "autocontrast": (lambda x, _: levels.autocontrast(x), lambda x, _: ImageOps.autocontrast(x), (0, 0), 0),
    "equalize": (lambda x, _: levels.equalize(x), lambda x, _: ImageOps.equalize(x), (0, 0), 0),
}
CHANNELS_APART = ["brightness", "sharpness", "smooth", "gaussian_blur", *list(CASES)[8:]]


def drawn(low, high, count, seed):
    return np.random.default_rng(seed).uniform(low, high, count)


@pytest.mark.parametrize("name", CASES)
@given(images=batches(), seed=seeds)
def test_operations_are_pillows(name, images, seed):
    ours, theirs, amounts, tolerance = CASES[name]
    amounts = drawn(*amounts, len(images), seed)
    assert_close(ours(images, amounts), by_pillow(theirs, images, amounts), tolerance)


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "contrast", "sharpness", "gaussian_blur"])
def test_operations_are_pillows_on_larger_images(name):
    """Where histograms have more pixels than levels, and blurs an inside."""
    ours, theirs, amounts, tolerance = CASES[name]
    y, x = np.mgrid[:48, :64]
    images = np.stack([x + y, 2 * x + 3 * y, 60 + x * y // 99, 128 + 0 * x] * 3).reshape(4, 3, 48, 64).astype(np.uint8)
    amounts = drawn(*amounts, len(images), seed=0)
    assert_close(ours(images, amounts), by_pillow(theirs, images, amounts), tolerance)


@pytest.mark.parametrize("name", CASES)
@given(images=batches(channels=(1, 2, 3, 4)), seed=seeds)
def test_operations_are_the_same_on_a_gpu(gpu, name, images, seed):
    ours, _, amounts, tolerance = CASES[name]
    amounts = drawn(*amounts, len(images), seed)
    assert_close(to_device(ours(to_device(images, "cuda"), amounts), "cpu"), ours(images, amounts), tolerance)


@pytest.mark.parametrize("name", CHANNELS_APART)
@given(images=batches(channels=(2, 4)), seed=seeds)
def test_other_channels_are_treated_one_by_one(name, images, seed):
    ours, _, amounts, _ = CASES[name]
    amounts = drawn(*amounts, len(images), seed)
    apart = np.concatenate([ours(images[:, c : c + 1], amounts) for c in range(images.shape[1])], axis=1)
    np.testing.assert_array_equal(ours(images, amounts), apart)


@given(batches(channels=(1, 2, 4)), seeds)
def test_images_without_three_channels_have_no_colour(images, seed):
    amounts = drawn(0, 2, len(images), seed)
    for name in ("saturation", "hue", "grayscale"):
        np.testing.assert_array_equal(CASES[name][0](images, amounts), images)
    whole = images.reshape(len(images), 1, images.shape[1], -1)  # one channel of all the pixels
    expected = color.contrast(whole, amounts).reshape(images.shape)
    np.testing.assert_array_equal(color.contrast(images, amounts), expected)


@given(batches())
def test_neutral_amounts_leave_the_image(images):
    ones, zeros, eights, full = (np.full(len(images), amount) for amount in (1.0, 0.0, 8, 256))
    for blend in (color.brightness, color.contrast, color.saturation, filters.sharpness):
        np.testing.assert_array_equal(blend(images, ones), images)
    np.testing.assert_array_equal(filters.gaussian_blur(images, zeros), images)
    np.testing.assert_array_equal(levels.posterize(images, eights), images)
    np.testing.assert_array_equal(levels.solarize(images, full), images)
    np.testing.assert_array_equal(levels.posterize(images, eights - 8), np.zeros_like(images))
    np.testing.assert_array_equal(levels.invert(levels.invert(images)), images)


def test_every_colour_comes_back_from_a_full_turn():
    """Two halves of a circle in bytes are 127 + 128 steps of 256: −½ and ½ together are none."""
    colours = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8)
    there = color.hue(colours, np.array([0.5]))
    back = color.hue(there, np.array([-0.5]))
    assert abs(back.astype(int) - colours).mean() < 2  # a hue has 256 values only
    assert abs(there.astype(int) - colours).mean() > 20
    assert (there.max(1) == colours.max(1)).all()


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 7.0])
def test_a_blur_has_the_variance_it_is_asked_for(sigma):
    """The box weights, three times: the variance of a sum is the sum of the variances."""
    weights = filters.box_weights(np.array([sigma]))[0] / filters.ONE
    box = np.concatenate([weights[:0:-1], weights])
    distances = np.arange(len(box)) - len(box) // 2
    assert abs(box.sum() - 1) < 1e-6
    assert abs(3 * (box * distances**2).sum() - sigma**2) < 1e-4 * sigma**2
