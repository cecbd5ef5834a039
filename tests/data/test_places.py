"""``places``: two figures, and nothing but their places to go by."""

import numpy as np
import pytest

from minivit.data.places import DIRECTIONS, RADIUS, places


def centres(image):
    """The middles of the disc and of the cross, (x, y): of two heaps of bright pixels, the cross is the smaller one."""
    share = np.clip((image - np.median(image)) / np.ptp(image) - 0.15, 0, None)
    spots = np.argwhere(share > 0)[:, ::-1]
    distances = np.linalg.norm(spots[:, None] - spots, axis=-1)
    one, other = np.unravel_index(distances.argmax(), distances.shape)
    first = distances[one] < distances[other]
    heaps = [(share[spots[at][:, 1], spots[at][:, 0]], spots[at]) for at in (first, ~first)]
    heaps.sort(key=lambda heap: -heap[0].sum())
    return [np.average(at, axis=0, weights=weight) for weight, at in heaps]


@pytest.mark.parametrize("size", [24, 40])
def test_the_label_is_the_direction_from_the_disc_to_the_cross(size):
    data, right = places(40, seed=3, size=size), 0
    for image, label in zip(data.images[:, 0].astype(float), data.labels):
        a, b = centres(image)
        step = b - a
        right += round(np.arctan2(-step[1], step[0]) / (np.pi / 4)) % 8 == label
    assert right == 40


def test_all_of_both_figures_is_in_the_picture():
    data = places(400, size=24)
    bright = data.images[:, 0] > 130
    assert not bright[:, [0, -1]].any() and not bright[:, :, [0, -1]].any()


def test_one_figure_alone_says_nothing_of_the_direction():
    """Over many images the two centres of mass of a direction and of its opposite are the same picture, mirrored."""
    data = places(1600, seed=1)
    mean = data.images[:, 0].mean(axis=(1, 2))
    by_label = [mean[data.labels == k].mean() for k in range(8)]
    assert np.ptp(by_label) < 4  # grey levels of 255: neither brightness nor the number of bright pixels tells
    assert data.extra["distance"].min() >= 3 * RADIUS


def test_an_image_depends_on_seed_split_and_number_alone():
    few, many = places(10, seed=5), places(1500, seed=5)
    np.testing.assert_array_equal(few.images, many.images[:10])
    assert (places(10, seed=6).images != few.images).any()
    assert (places(10, seed=5, split="test").images != few.images).any()
    assert few.labels.tolist() == [*range(8), 0, 1] and few.classes == DIRECTIONS


@pytest.mark.parametrize(("n", "size"), [(0, 24), (5, 8)])
def test_too_small(n, size):
    with pytest.raises(ValueError, match="n must be at least 1 and size at least 16 pixels, got"):
        places(n, size=size)
