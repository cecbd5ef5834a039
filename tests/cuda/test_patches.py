"""Cutting moves numbers: the kernels have to agree to the last bit."""

import numpy as np
import pytest

from minivit import ops
from minivit.cuda import patches
from minivit.cuda.patches import patchify, patchify_bytes
from minivit.cuda.precision import precision
from minivit.data import Dataset
from tests.compare import errors, exact, numbers

CUTS = [
    ((2, 3, 8, 16), (4, 8)),
    ((3, 1, 12, 8), (3, 4)),
    ((1, 4, 6, 9), (2, 3)),
    ((2, 3, 28, 28), (14, 14)),
    ((2, 2, 40, 64), (8, 16)),
]


@pytest.mark.parametrize("shape, patch_size", CUTS, ids=str)
def test_images_are_cut_and_put_together(xp, dtype, shape, patch_size):
    assert errors(patchify, xp, (numbers(0, *shape, dtype=dtype),), patch_size=patch_size) == [0, 0]


def test_patches_have_the_type_of_the_products_that_read_them(xp):
    x = numbers(0, 2, 3, 8, 8)
    with precision("bf16"):
        value, pullback = patchify(xp.asarray(x), (4, 4))
    right = ops.patchify.raw(x, (4, 4))[0].astype("bfloat16")
    assert (value.dtype, pullback(value).dtype) == (right.dtype, np.float32)
    np.testing.assert_array_equal(exact(value), exact(right))
    np.testing.assert_array_equal(exact(pullback(value)), exact(x.astype("bfloat16")))


@pytest.mark.parametrize("shape, patch_size", CUTS, ids=str)
def test_bytes_are_normalised_as_the_data_set_does_it(xp, shape, patch_size):
    images = np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)
    data = Dataset("noise", images, np.zeros(len(images), int), ["noise"])
    right, _ = ops.patchify.raw(data.normalise(images), patch_size)
    found = patchify_bytes(xp.asarray(images), patch_size, data.mean, data.std)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(exact(found), right)
    half = patchify_bytes(xp.asarray(images), patch_size, data.mean, data.std, np.dtype("bfloat16"))
    np.testing.assert_array_equal(exact(half), exact(right.astype("bfloat16")))


def test_images_of_any_layout(xp):
    x = numbers(0, 2, 8, 8, 3)
    found, _ = patchify(xp.asarray(x).transpose(0, 3, 1, 2), (4, 4))
    np.testing.assert_array_equal(exact(found), ops.patchify.raw(x.transpose(0, 3, 1, 2), (4, 4))[0])


def test_what_the_kernel_does_not_know_is_left_to_the_formula(xp, monkeypatch):
    monkeypatch.setattr(patches, "launch", None)  # would raise
    for x in numbers(0, 2, 1, 4, 4, dtype="float64"), numbers(0, 0, 1, 4, 4):
        np.testing.assert_array_equal(exact(patchify(xp.asarray(x), (2, 2))[0]), ops.patchify.raw(x, (2, 2))[0])
    with pytest.raises(ValueError, match=r"patch_size \(3, 2\) must divide the image size \(4, 4\)"):
        patchify(xp.asarray(numbers(0, 2, 1, 4, 4)), (3, 2))
    with pytest.raises(ValueError, match=r"patch_size \(2, 3\) must divide the image size \(4, 4\)"):
        patchify_bytes(xp.asarray(np.zeros((1, 1, 4, 4), np.uint8)), (2, 3), [0.5], [0.5])
