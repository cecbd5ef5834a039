import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.data.augment import RandomErasing
from tests.devices import moved

MODES = ["const", "rand", "pixel"]
erasings = st.builds(
    RandomErasing,
    p=st.sampled_from([0.0, 0.5, 1.0]),
    area=st.sampled_from([(0.02, 1 / 3), (0.3, 0.3), (0.9, 1.0)]),
    aspect=st.sampled_from([0.3, 1.0]),
    mode=st.sampled_from(MODES),
    tries=st.sampled_from([1, 10]),
)


@st.composite
def batches(draw):
    """Images that are 9 everywhere, and their keys."""
    shape = draw(st.tuples(st.integers(1, 8), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)))
    images = np.full(shape, 9, np.float32)
    images.flags.writeable = False
    return images, np.random.default_rng(draw(st.integers(0, 99))).choice(10**6, len(images), replace=False)


def erased(images):
    """Where: (B, H, W). All channels alike."""
    changed = images != 9
    assert (changed == changed[:, :1]).all()
    return changed[:, 0]


@given(erasings, batches(), st.integers(0, 100))
def test_a_box_of_the_area_and_shape_that_was_asked_for_is_erased_or_nothing(erasing, batch, epoch):
    images, samples = batch
    result = erasing(images, samples, 0, epoch)
    assert (result.shape, result.dtype) == (images.shape, np.float32)
    height, width = images.shape[2:]
    for where in erased(result):
        rows, columns = where.any(1), where.any(0)
        np.testing.assert_array_equal(where, rows[:, None] & columns)  # a rectangle
        for line in (rows, columns):
            assert (
                np.ptp(np.append(np.flatnonzero(line), np.flatnonzero(line))) + 1 == line.sum() if line.any() else True
            )
        if not where.any():
            assert erasing.p < 1 or min(height, width) < 9 or erasing.area[1] > 0.5 or erasing.tries == 1
            continue
        h, w = rows.sum(), columns.sum()
        assert erasing.p > 0 and h < height and w < width
        assert (h - 0.5) * (w - 0.5) <= erasing.area[1] * height * width
        assert (h + 0.5) * (w + 0.5) >= erasing.area[0] * height * width
        assert max((h - 0.5) / (w + 0.5), (w - 0.5) / (h + 0.5)) <= 1 / erasing.aspect


@given(erasings, batches(), st.integers(0, 100), st.randoms(use_true_random=False))
def test_what_happens_to_an_image_does_not_depend_on_its_batch(erasing, batch, epoch, random):
    images, samples = batch
    chosen = random.choices(range(len(images)), k=random.randint(1, len(images)))
    whole, part = erasing(images, samples, 0, epoch), erasing(images[chosen], samples[chosen], 0, epoch)
    np.testing.assert_array_equal(part, whole[chosen])


def many(count=400, side=32):
    return np.full((count, 3, side, side), 9, np.float32), np.arange(count)


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_the_share_of_erased_images_is_p(p):
    share = erased(RandomErasing(p)(*many(), 0, 0)).any((1, 2)).mean()
    assert abs(share - p) < 4 * (p * (1 - p) / 400) ** 0.5 + 1e-12


def test_every_pixel_is_erased_now_and_then_and_the_area_is_uniform():
    where = erased(RandomErasing(1, area=(0.1, 0.3))(*many(2000), 0, 0))
    assert where.any(0).all()
    np.testing.assert_allclose(
        np.quantile(where.mean((1, 2)), [0, 0.25, 0.5, 0.75, 1]), [0.1, 0.15, 0.2, 0.25, 0.3], atol=0.015
    )


def test_what_is_put_into_the_box():
    const, rand, pixel = (RandomErasing(1, (0.3, 0.5), mode=mode)(*many(), 0, 0) for mode in MODES)
    where = erased(const)
    np.testing.assert_array_equal(erased(rand), where)
    np.testing.assert_array_equal(erased(pixel), where)
    assert (const.transpose(0, 2, 3, 1)[where] == 0).all()
    first = []
    for image, box in zip(rand, where):
        assert (np.ptp(image[:, box], axis=1) == 0).all()
        first.append(image[:, box][:, 0])
    for numbers in (np.ravel(first), pixel.transpose(0, 2, 3, 1)[where].ravel()):
        tolerance = 5 / len(numbers) ** 0.5
        assert abs(numbers.mean()) < tolerance and abs(numbers.std() - 1) < tolerance
    assert len(np.unique(np.ravel(first))) == 3 * len(rand)


@pytest.mark.parametrize("mode", MODES)
def test_seed_epoch_and_sample_each_change_the_draw(mode):
    images, samples = many(20)
    erasing = RandomErasing(1, mode=mode)
    first = erasing(images, samples, 0, 0)
    for other in [(samples, 1, 0), (samples, 0, 1), (samples + 20, 0, 0)]:
        assert (erasing(images, *other) != first).any()


def test_each_epoch_erases_other_images_with_other_noise():
    images, samples = many(20)
    first, other = (erased(RandomErasing(0.5)(images, samples, 0, epoch)).any((1, 2)) for epoch in (0, 1))
    assert (first != other).any()
    first, other = (np.unique(RandomErasing(1)(images, samples, 0, epoch)) for epoch in (0, 1))
    assert len(np.intersect1d(first, other)) < 0.01 * len(first)


@given(erasing=erasings, batch=batches())
def test_on_a_gpu(gpu, erasing, batch):
    images, samples = batch
    on_gpu = erasing(moved(images), samples, 0, 0)
    np.testing.assert_array_equal(on_gpu.get(), erasing(images, samples, 0, 0))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"p": 1.5}, "p must be a probability between 0 and 1, got 1.5"),
        ({"area": (0, 0.5)}, r"area must be two positive numbers up to 1, the smaller one first, got \(0, 0.5\)"),
        ({"aspect": 2}, r"aspect must lie in \(0, 1\], got 2"),
        ({"mode": "noise"}, "mode must be one of const, rand, pixel, got 'noise'"),
        ({"tries": 0}, "tries must be at least 1, got 0"),
    ],
)
def test_bad_settings_get_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        RandomErasing(**settings)


def test_bytes_are_refused():
    with pytest.raises(TypeError, match="normalised images of floats, got uint8"):
        RandomErasing()(np.zeros((1, 1, 4, 4), np.uint8), np.arange(1), 0, 0)
