import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.data.augment import RandomCrop, RandomHorizontalFlip

augmentations = st.one_of(
    st.builds(RandomCrop, padding=st.integers(0, 3), mode=st.sampled_from(["constant", "reflect"])),
    st.builds(RandomHorizontalFlip, p=st.sampled_from([0.0, 0.3, 0.5, 1.0])),
)


@st.composite
def batches(draw):
    """Images of one of two types, and the global keys of their random draws."""
    shape = draw(st.tuples(st.integers(1, 8), st.sampled_from([1, 3]), st.integers(4, 7), st.integers(4, 7)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    samples = rng.choice(10**6, len(images), replace=False)
    return images.astype(draw(st.sampled_from([np.uint8, np.float32]))), samples


@given(augmentations, batches(), st.integers(0, 100), st.integers(0, 100))
def test_type_and_shape_stay_and_the_input_is_not_written_to(augment, batch, seed, epoch):
    images, samples = batch
    images.flags.writeable = False
    result = augment(images, samples, seed, epoch)
    assert (result.shape, result.dtype) == (images.shape, images.dtype)
    np.testing.assert_array_equal(result, augment(images, samples, seed, epoch))


@given(augmentations, batches(), st.integers(0, 100), st.randoms(use_true_random=False))
def test_what_happens_to_an_image_does_not_depend_on_its_batch(augment, batch, epoch, random):
    images, samples = batch
    chosen = random.choices(range(len(images)), k=random.randint(1, len(images)))
    whole, part = augment(images, samples, 0, epoch), augment(images[chosen], samples[chosen], 0, epoch)
    np.testing.assert_array_equal(part, whole[chosen])


@pytest.mark.parametrize("augment", [RandomCrop(2), RandomHorizontalFlip()])
def test_seed_epoch_and_sample_each_change_the_draw(augment):
    images = np.tile(np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8), dtype=np.uint8), (64, 1, 1, 1))
    samples = np.arange(64)
    first = augment(images, samples, seed=0, epoch=0)
    assert len(np.unique(first, axis=0)) > 1
    for other in [(samples, 1, 0), (samples, 0, 1), (samples + 64, 0, 0)]:
        assert (augment(images, *other) != first).any()


@given(st.integers(0, 3), st.integers(4, 6), st.integers(4, 6), st.sampled_from(["constant", "reflect"]))
def test_a_crop_is_one_of_the_windows_of_the_padded_image_and_all_of_them_occur(padding, height, width, mode):
    count = 600
    image = np.random.default_rng(0).integers(1, 256, (1, 2, height, width), dtype=np.uint8)
    crops = RandomCrop(padding, mode)(np.repeat(image, count, axis=0), np.arange(count), seed=0, epoch=0)
    padded = np.pad(image[0], ((0, 0), (padding, padding), (padding, padding)), mode=mode)
    shifts = range(2 * padding + 1)
    windows = {padded[:, top : top + height, left : left + width].tobytes() for top in shifts for left in shifts}
    assert {crop.tobytes() for crop in crops} == windows


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_the_share_of_flipped_images_is_p_and_the_others_are_untouched(p):
    count = 4000
    images = np.tile(np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3), (count, 1, 1, 1))
    result = RandomHorizontalFlip(p)(images, np.arange(count), seed=0, epoch=0)
    flipped = (result == images[..., ::-1]).all((1, 2, 3))
    untouched = (result == images).all((1, 2, 3))
    assert (flipped ^ untouched).all()
    assert abs(flipped.mean() - p) < 4 * (p * (1 - p) / count) ** 0.5 + 1e-12


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RandomCrop(-1), "padding must be 0 or more pixels, got -1"),
        (lambda: RandomCrop(mode="wrap"), "mode must be 'constant' or 'reflect', got 'wrap'"),
        (lambda: RandomHorizontalFlip(1.5), "between 0 and 1, got 1.5"),
        (lambda: RandomCrop(4, "reflect")(np.zeros((1, 1, 4, 9)), np.arange(1), 0, 0), "padding 4 .* 4×9 pixels"),
    ],
)
def test_bad_settings_get_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
