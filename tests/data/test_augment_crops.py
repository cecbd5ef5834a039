import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minivit.data.augment import RandomResizedCrop, resized_crop
from minivit.data.augment.boxes import Boxes
from minivit.data.augment.resized_crop import BLOCK, resized
from tests.devices import moved

KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
kernels = st.sampled_from(list(KERNELS))
small = st.one_of(st.integers(1, 4), st.integers(1, 40))
sides = st.one_of(st.integers(1, 12), st.integers(1, 3 * BLOCK))


@st.composite
def crops(draw):
    """Images of bytes, a box in each, and a size."""
    count, height, width = draw(st.integers(1, 4)), draw(sides), draw(sides)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    top, left = rng.integers(0, height, count), rng.integers(0, width, count)
    boxes = Boxes(top, left, rng.integers(1, height - top + 1), rng.integers(1, width - left + 1))
    images = rng.integers(0, 256, (count, draw(st.sampled_from([1, 3])), height, width), dtype=np.uint8)
    return images, boxes, (draw(sides), draw(sides))


def by_pillow(image, box, size, kernel):
    """(C, H, W) → (C, *size): the box is cut out, and what remains is resized."""
    top, left, height, width = box
    channels = [Image.fromarray(channel).crop((left, top, left + width, top + height)) for channel in image]
    return np.stack([np.asarray(channel.resize(size[::-1], KERNELS[kernel])) for channel in channels])


@given(crops(), kernels)
def test_pillow_gives_the_same(case, kernel):
    """But for rounding, mostly of what lies halfway. Levels are such that nothing is cut off: see the next test."""
    images, boxes, size = case
    images = images // 2 + 64
    result = resized(images, boxes, size, kernel).astype(int)
    for i, image in enumerate(images):
        difference = abs(result[i] - by_pillow(image, [side[i] for side in boxes], size, kernel))
        assert difference.max() <= 2
        assert difference.mean() < 0.5


def test_halves_are_rounded_up():
    image = np.array([[[[0, 1]]], [[[7, 10]]], [[[0, 0]]]], np.uint8)
    whole = Boxes(*(np.full(3, side) for side in (0, 0, 1, 2)))
    np.testing.assert_array_equal(resized(image, whole, (1, 1)).ravel(), [1, 9, 0])


@given(crops(), kernels, st.booleans())
def test_overshoots_are_cut_off_as_by_pillow(case, kernel, upright):
    """One axis alone, because versions of Pillow differ in which of two comes first."""
    images, boxes, size = case
    line = np.where(images[:, :, :1] < 128, 0, 255).astype(np.uint8)
    boxes = Boxes(np.zeros_like(boxes.top), boxes.left, np.ones_like(boxes.top), boxes.width)
    size = (1, size[1])
    if upright:
        line, boxes, size = line.swapaxes(2, 3).copy(), Boxes(*(boxes[i] for i in (1, 0, 3, 2))), size[::-1]
    result = resized(line, boxes, size, kernel).astype(int)
    for i, image in enumerate(line):
        assert abs(result[i] - by_pillow(image, [side[i] for side in boxes], size, kernel)).max() <= 1


@given(crops(), kernels)
def test_the_whole_image_at_its_own_size_stays(case, kernel):
    images, _, _ = case
    count, (height, width) = len(images), images.shape[2:]
    whole = Boxes(*(np.full(count, side) for side in (0, 0, height, width)))
    np.testing.assert_array_equal(resized(images, whole, (height, width), kernel), images)


@given(crops(), kernels)
def test_an_image_is_the_same_alone_and_in_a_batch(case, kernel):
    images, boxes, size = case
    together = resized(images, boxes, size, kernel)
    for i in range(len(images)):
        alone = resized(images[i : i + 1], Boxes(*(side[i : i + 1] for side in boxes)), size, kernel)
        np.testing.assert_array_equal(alone[0], together[i])


@given(crops(), kernels, st.integers(1, 7))
def test_computing_in_blocks_leaves_nothing_out(case, kernel, block):
    images, boxes, size = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resized_crop, "_to_bytes", lambda x: x)
        patch.setattr(resized_crop, "BLOCK", 10**6)
        whole = resized(images, boxes, size, kernel)
        patch.setattr(resized_crop, "BLOCK", block)
        np.testing.assert_allclose(resized(images, boxes, size, kernel), whole, atol=0.01)


@given(small, small, st.floats(0.01, 1), st.floats(1, 3), st.integers(0, 99))
def test_boxes_lie_in_the_image_and_have_the_area_and_shape_that_was_asked_for(height, width, smallest, longest, epoch):
    crop = RandomResizedCrop((smallest, 1.0), (1 / longest, longest))
    boxes = crop.boxes(np.arange(50), (height, width), 0, epoch)
    assert ((boxes.top >= 0) & (boxes.left >= 0) & (boxes.height > 0) & (boxes.width > 0)).all()
    assert ((boxes.top + boxes.height <= height) & (boxes.left + boxes.width <= width)).all()
    assert ((boxes.height - 0.5) / (boxes.width + 0.5) <= longest).all()  # each side was rounded
    assert ((boxes.width - 0.5) / (boxes.height + 0.5) <= longest).all()
    if height == width:
        assert ((boxes.height + 0.5) * (boxes.width + 0.5) >= smallest * height * width).all()


def test_the_ratio_is_that_of_width_to_height():
    boxes = RandomResizedCrop((0.1, 0.3), (2.0, 2.0)).boxes(np.arange(50), (100, 100), 0, 0)
    assert (abs(boxes.width - 2 * boxes.height) <= 1.5).all()


def test_area_is_uniform_ratio_is_log_uniform_and_places_too():
    count, side = 20_000, 1000
    boxes = RandomResizedCrop((0.2, 0.5)).boxes(np.arange(count), (side, side), 0, 0)
    area, ratio = boxes.height * boxes.width / side**2, np.log(boxes.width / boxes.height) / np.log(4 / 3)
    place = boxes.top / (side - boxes.height)
    for numbers, low, high in [(area, 0.2, 0.5), (ratio, -1, 1), (place, 0, 1)]:
        deciles = np.quantile(numbers, np.linspace(0, 1, 11))
        np.testing.assert_allclose(deciles, np.linspace(low, high, 11), atol=0.02 * (high - low))


@pytest.mark.parametrize(
    ("size", "box"), [((100, 10), (43, 0, 13, 10)), ((10, 100), (0, 43, 10, 13)), ((12, 11), (0, 0, 12, 11))]
)
def test_where_no_box_fits_the_middle_is_taken(size, box):
    """torchvision's rule; an area that is 1 leaves room in none of these but by chance in a square."""
    boxes = RandomResizedCrop(scale=(1, 1), ratio=(3 / 4, 4 / 3)).boxes(np.arange(20), size, 0, 0)
    assert set(zip(*(side.tolist() for side in boxes))) <= {box, (0, 0, *size)}
    assert box in zip(*(side.tolist() for side in boxes))


def batch(count=6, shape=(3, 20, 24)):
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    images.flags.writeable = False
    return images, np.arange(count) * 7


@pytest.mark.parametrize("interpolation", KERNELS)
def test_a_crop_depends_on_seed_epoch_and_sample_alone(interpolation):
    images, samples = batch()
    crop = RandomResizedCrop(interpolation=interpolation)
    first = crop(images, samples, 0, 0)
    assert (first.shape, first.dtype) == (images.shape, np.uint8)
    np.testing.assert_array_equal(crop(images[[4, 2]], samples[[4, 2]], 0, 0), first[[4, 2]])
    for other in [(samples, 1, 0), (samples, 0, 1), (samples + 1, 0, 0)]:
        assert (crop(images, *other) != first).any()


@pytest.mark.parametrize(("size", "shape"), [(None, (20, 24)), (5, (5, 5)), ((40, 7), (40, 7))])
def test_sizes(size, shape):
    images, samples = batch()
    assert RandomResizedCrop(size=size)(images, samples, 0, 0).shape == (6, 3, *shape)
    assert RandomResizedCrop(size=size)(images[:0], samples[:0], 0, 0).shape == (0, 3, *shape)


@pytest.mark.parametrize("interpolation", KERNELS)
def test_on_a_gpu(gpu, interpolation):
    images, samples = batch(shape=(3, 50, 40))
    crop = RandomResizedCrop(size=(45, 70), interpolation=interpolation)
    on_gpu, on_cpu = crop(moved(images), samples, 0, 0).get(), crop(images, samples, 0, 0)
    difference = abs(on_gpu.astype(int) - on_cpu)
    assert difference.max() <= 2 and (difference > 0).mean() < 0.01


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scale": (0, 1)}, r"scale must be two positive numbers up to 1, the smaller one first, got \(0, 1\)"),
        ({"scale": (0.5, 1.5)}, r"up to 1.* got \(0.5, 1.5\)"),
        ({"ratio": (2, 1)}, r"ratio must be two positive numbers, the smaller one first, got \(2, 1\)"),
        ({"ratio": (2,)}, r"got \(2,\)"),
        ({"interpolation": "nearest"}, "interpolation must be one of bilinear, bicubic, got 'nearest'"),
        ({"size": 0}, r"size must be pixels a side, or \(height, width\), got 0"),
        ({"size": (3, 3, 3)}, r"got \(3, 3, 3\)"),
    ],
)
def test_bad_settings_get_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        RandomResizedCrop(**settings)


def test_floats_are_refused():
    with pytest.raises(TypeError, match="uint8, before they are normalised, got float32"):
        RandomResizedCrop()(np.zeros((1, 1, 4, 4), np.float32), np.arange(1), 0, 0)
