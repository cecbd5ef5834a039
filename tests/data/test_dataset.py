import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.data.dataset import Dataset, channel_statistics


def random_images(seed, shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def dataset(images, **fields):
    return Dataset("set", images, np.arange(len(images)) % 2, ["even", "odd"], **fields)


@given(st.integers(0, 2**32), st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
def test_statistics_are_those_of_the_pixels(seed, n, channels, height, width):
    images = random_images(seed, (n, channels, height, width))
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), atol=1e-12)
    expected = (images / 255).std((0, 2, 3))
    np.testing.assert_allclose(std, np.where(expected > 0, expected, 1), rtol=1e-6)


def test_statistics_of_more_images_than_one_piece():
    images = random_images(0, (2500, 1, 2, 2))
    np.testing.assert_allclose(channel_statistics(images), [[(images / 255).mean()], [(images / 255).std()]])


def test_a_normalised_training_set_has_mean_0_and_std_1_in_each_channel():
    train = dataset(random_images(0, (50, 3, 8, 8)) // np.array([1, 2, 5], np.uint8)[:, None, None])
    x = train.normalise(train.images)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 2, 3)), 1, atol=1e-5)


def test_normalise_is_the_formula_with_given_constants():
    data = dataset(random_images(1, (2, 2, 3, 3)), mean=(0.5, 0.25), std=(0.5, 2.0))
    expected = (data.images / 255 - np.array([0.5, 0.25])[:, None, None]) / np.array([0.5, 2.0])[:, None, None]
    np.testing.assert_allclose(data.normalise(data.images), expected, atol=1e-6)


def test_a_constant_channel_normalises_to_zero():
    data = dataset(np.full((3, 1, 2, 2), 7, np.uint8))
    np.testing.assert_allclose(data.normalise(data.images), 0, atol=1e-6)


def test_a_test_set_takes_the_statistics_of_its_training_set():
    train, test = dataset(random_images(0, (9, 3, 4, 4))), dataset(random_images(1, (5, 3, 4, 4)))
    like = test.normalised_like(train)
    assert (like.mean, like.std) == (train.mean, train.std) != (test.mean, test.std)
    assert like.images is test.images


def test_a_subset_keeps_images_labels_extra_labels_and_statistics_together():
    data = dataset(random_images(0, (6, 1, 2, 2)), extra={"colour": np.arange(6) * 10})
    part = data.subset([4, 1])
    np.testing.assert_array_equal(part.images, data.images[[4, 1]])
    np.testing.assert_array_equal(part.labels, [0, 1])
    np.testing.assert_array_equal(part.extra["colour"], [40, 10])
    assert (part.mean, part.std) == (data.mean, data.std)


def test_moving_to_the_cpu_keeps_everything():
    data = dataset(random_images(0, (6, 1, 2, 2)), extra={"colour": np.arange(6)})
    moved = data.to("cpu")
    assert moved.images is data.images and moved.extra["colour"] is data.extra["colour"]


IMAGES, LABELS = np.zeros((2, 3, 4, 4), np.uint8), np.array([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "extra", "error", "sentence"),
    [
        (IMAGES.astype(np.float32), LABELS, {}, TypeError, "uint8 .* got float32"),
        (IMAGES[0], LABELS, {}, TypeError, r"\(n, C, H, W\), got uint8 of shape \(3, 4, 4\)"),
        (IMAGES, LABELS.astype(float), {}, TypeError, "integers, got float64"),
        (IMAGES, np.array([0]), {}, ValueError, r"labels of set must have shape \(2,\), got \(1,\)"),
        (IMAGES, LABELS, {"colour": np.array([1, 2, 3])}, ValueError, "colour of set must have shape"),
        (IMAGES, np.array([0, 2]), {}, ValueError, "0 … 1 .* got 0 … 2"),
        (IMAGES, np.array([-1, 0]), {}, ValueError, "got -1 … 0"),
    ],
)
def test_arrays_that_do_not_fit_get_a_sentence(images, labels, extra, error, sentence):
    with pytest.raises(error, match=sentence):
        Dataset("set", images, labels, ["a", "b"], extra=extra)
