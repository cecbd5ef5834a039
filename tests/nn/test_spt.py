"""Shifted patch tokenisation: what a token is made of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.nn import ShiftedPatchEmbed
from minivit.ops import patchify
from tests.strategies import generators


def moved(images, down, right):
    """By way of a wide frame."""
    h, w = images.shape[2:]
    framed = np.pad(images, [(0, 0), (0, 0), (9, 9), (9, 9)])
    return framed[:, :, 9 - down : 9 - down + h, 9 - right : 9 - right + w]


@given(generators, st.integers(0, 5), st.sampled_from(["diagonal", "straight"]))
def test_a_token_is_the_normalised_patch_of_the_image_and_its_four_shifted_copies(rng, shift, directions):
    layer = ShiftedPatchEmbed((4, 8), (2, 4), 2, 3, shift=shift, directions=directions)
    images = rng.standard_normal((2, 2, 4, 8)).astype(np.float32)
    if directions == "diagonal":
        places = [(-shift, -shift), (-shift, shift), (shift, -shift), (shift, shift)]
    else:
        places = [(0, shift), (0, -shift), (shift, 0), (-shift, 0)]
    stacked = np.concatenate([images, *(moved(images, *place) for place in places)], axis=1)
    x = patchify(Tensor(stacked), (2, 4)).data
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.norm.eps)
    expected = x @ layer.proj.weight.data.reshape(3, -1).T + layer.proj.bias.data
    np.testing.assert_allclose(layer(images).data, expected, rtol=1e-4, atol=1e-5)


def test_a_token_sees_half_a_patch_around_its_own_and_no_further():
    layer = ShiftedPatchEmbed(24, 8, 1, 4)
    images = Tensor(np.zeros((1, 1, 24, 24), np.float32) + np.random.default_rng(0).random((24, 24), np.float32), True)
    layer(images)[:, 4].sum().backward()  # the patch in the middle, rows and columns 8 … 15
    seen = np.argwhere(abs(images.grad[0, 0]) > 0)
    assert seen.min(0).tolist() == [4, 4]
    assert seen.max(0).tolist() == [19, 19]


def test_other_directions_get_a_sentence():
    with pytest.raises(ValueError, match="directions must be one of diagonal, straight, got 'up'"):
        ShiftedPatchEmbed(8, 4, directions="up")
