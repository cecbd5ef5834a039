"""Warps against Pillow, and against what is known without it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minivit.backend import to_device
from minivit.data.augment import geometry
from minivit.data.augment.geometry import affine, rotate, shear_x, shear_y, translate_x, translate_y
from tests.data.pillow import assert_close, batches, by_pillow

seeds, fills = st.integers(0, 2**32), st.integers(0, 255)
NAMES = ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"]


def transform(image, matrix, fill):
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(fill,) * len(image.getbands())
    )


PILLOW = {
    "shear_x": lambda image, slope, fill: transform(image, (1, slope, 0, 0, 1, 0), fill),
    "shear_y": lambda image, slope, fill: transform(image, (1, 0, 0, slope, 1, 0), fill),
    "translate_x": lambda image, share, fill: transform(image, (1, 0, share * image.width, 0, 1, 0), fill),
    "translate_y": lambda image, share, fill: transform(image, (1, 0, 0, 0, 1, share * image.height), fill),
    "rotate": lambda image, turn, fill: image.rotate(
        360 * turn, Image.Resampling.BILINEAR, fillcolor=(fill,) * len(image.getbands())
    ),
}


@pytest.mark.parametrize("name", NAMES)
@given(images=batches(), fill=fills, seed=seeds)
def test_warps_are_pillows_up_to_one_level(name, images, fill, seed):
    """Both cut fractions off; Pillow interpolates in float64, so an all but whole level may fall to the other side."""
    amounts = np.random.default_rng(seed).uniform(-1, 1, len(images))
    result = getattr(geometry, name)(images, amounts * 360 if name == "rotate" else amounts, fill)
    expected = by_pillow(lambda image, amount: PILLOW[name](image, amount, fill), images, amounts)
    assert_close(result, expected, levels=1)


@given(batches(), seeds, fills, st.booleans())
def test_any_affine_map_is_pillows_up_to_one_level(images, seed, fill, halves):
    """With halves, pixels come from exactly between others and from exactly the edge."""
    rng = np.random.default_rng(seed)
    matrix = tuple((rng.integers(-4, 5, 6) / 2 if halves else rng.uniform(-2, 2, 6)).tolist())
    expected = by_pillow(lambda image, _: transform(image, matrix, fill), images, np.zeros(len(images)))
    assert_close(affine(images, matrix, fill), expected, levels=1)


@given(batches(), st.integers(-5, 5))
def test_a_right_angle_is_pillows(images, quarters):
    turns = np.full(len(images), quarters / 4)
    expected = by_pillow(lambda image, turn: PILLOW["rotate"](image, turn, 77), images, turns)
    np.testing.assert_array_equal(rotate(images, 360 * turns, fill=77), expected)


@pytest.mark.parametrize("name", NAMES)
@given(images=batches(channels=(1, 2, 3, 5)))
def test_an_amount_of_zero_leaves_the_image(name, images):
    np.testing.assert_array_equal(getattr(geometry, name)(images, np.zeros(len(images))), images)


@given(batches(channels=(1, 2, 3, 5), square=True), st.integers(-5, 5))
def test_a_right_angle_is_exact_on_squares(images, quarters):
    turned = rotate(images, np.full(len(images), 90.0 * quarters), fill=77)
    np.testing.assert_array_equal(turned, np.rot90(images, quarters, (2, 3)))


@given(batches(channels=(1, 2, 3)), st.integers(-14, 14), fills, st.booleans())
def test_translation_by_whole_pixels_is_a_slice(images, pixels, fill, vertical):
    move, size = (translate_y, images.shape[2]) if vertical else (translate_x, images.shape[3])
    images = images.swapaxes(2, 3) if vertical else images  # what moves is the last axis
    expected = np.full_like(images, fill)
    if pixels >= 0:
        expected[..., : max(0, size - pixels)] = images[..., pixels:]
    elif -pixels < size:
        expected[..., -pixels:] = images[..., :pixels]
    share = np.full(len(images), pixels / size)
    result = move(images.swapaxes(2, 3), share, fill).swapaxes(2, 3) if vertical else move(images, share, fill)
    np.testing.assert_array_equal(result, expected)


@given(batches(), seeds)
def test_shears_are_one_another_with_the_axes_exchanged(images, seed):
    slopes = np.random.default_rng(seed).uniform(-1, 1, len(images))
    np.testing.assert_array_equal(shear_y(images, slopes), shear_x(images.swapaxes(2, 3), slopes).swapaxes(2, 3))


@pytest.mark.parametrize("name", NAMES)
@given(images=batches(channels=(1, 3, 4)), seed=seeds)
def test_warps_are_the_same_on_a_gpu(gpu, name, images, seed):
    amounts = np.random.default_rng(seed).uniform(-1, 1, len(images)) * (180 if name == "rotate" else 1)
    result = getattr(geometry, name)(to_device(images, "cuda"), amounts)
    assert_close(to_device(result, "cpu"), getattr(geometry, name)(images, amounts), levels=1)
