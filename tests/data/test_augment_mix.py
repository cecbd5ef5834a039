import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.data import Batch
from minivit.data.augment import Mix
from minivit.data.augment.mix import soft_labels, symmetric_beta
from minivit.random import key, uniform
from tests.devices import moved

MODES = ["batch", "pair", "elem"]
CLASSES = 5
mixes = st.builds(
    Mix,
    mixup_alpha=st.sampled_from([0.0, 0.2, 0.8]),
    cutmix_alpha=st.sampled_from([0.0, 1.0]),
    prob=st.sampled_from([0.0, 0.5, 1.0]),
    switch_prob=st.sampled_from([0.2, 0.5]),
    mode=st.sampled_from(MODES),
    label_smoothing=st.sampled_from([0.0, 0.1]),
)


def whole(count, shape=(1, 8, 6), seed=0):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((count, *shape)).astype(np.float32)
    batch = Batch(images, rng.integers(0, CLASSES, count), rng.choice(10**6, count, replace=False), count)
    for array in batch[:3]:
        array.flags.writeable = False
    return batch


def backwards(batch):
    return Batch(*(array[::-1] for array in batch[:3]))


def mixed(mix, batch, epoch=0, number=0, seed=0):
    return mix(batch, backwards(batch), CLASSES, seed, epoch, number)


batches = st.builds(whole, st.integers(1, 9), st.sampled_from([(1, 8, 6), (3, 5, 5), (2, 1, 1)]), st.integers(0, 99))


@given(mixes, batches, st.integers(0, 99))
def test_images_and_labels_are_mixed_in_the_same_proportion(mix, batch, number):
    """An image of ones with partners of zeros shows λ, in each pixel and in its label."""
    count = len(batch.samples)
    ones = Batch(np.ones_like(batch.images), np.zeros(count, int), batch.samples)
    zeros = Batch(np.zeros_like(batch.images), np.ones(count, int), batch.samples[::-1])
    result = mix(ones, zeros, CLASSES, 0, 0, number)
    shares = result.images[:, 0]  # (B, H, W)
    assert (result.images == result.images[:, :1]).all()
    s = mix.label_smoothing
    on, off = 1 - s + s / CLASSES, s / CLASSES
    lam = shares.mean((1, 2))
    expected = np.full((count, CLASSES), off)
    expected[:, 0], expected[:, 1] = lam * on + (1 - lam) * off, (1 - lam) * on + lam * off
    np.testing.assert_allclose(result.labels, expected, atol=1e-6)
    for share in shares:
        is_cut = set(np.unique(share)) <= {0, 1}
        assert is_cut or (np.ptp(share) == 0 and mix.mixup_alpha)
        if is_cut and share.min() < 1 and share.size > 1 and mix.cutmix_alpha:
            box = share == 0
            np.testing.assert_array_equal(box, box.any(1)[:, None] & box.any(0))


@given(mixes, batches, st.integers(0, 99))
def test_each_image_is_mixed_with_the_one_from_the_end(mix, batch, number):
    count = len(batch.samples)
    mask = Batch(np.ones_like(batch.images), np.zeros(count, int), batch.samples)
    share = mix(mask, backwards(mask)._replace(images=mask.images * 0), CLASSES, 0, 0, number).images
    before = [array.copy() for array in batch[:3]]
    result = mixed(mix, batch, number=number)
    np.testing.assert_allclose(result.images, share * batch.images + (1 - share) * batch.images[::-1], atol=1e-6)
    assert (result.images.dtype, result.labels.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(result.labels.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(result.samples, batch.samples)
    if count % 2:  # the one in the middle has itself
        middle = count // 2
        np.testing.assert_allclose(result.images[middle], batch.images[middle], atol=1e-6)
        alone = soft_labels(batch.labels[[middle]], CLASSES, mix.label_smoothing)[0]
        np.testing.assert_allclose(result.labels[middle], alone, atol=1e-6)
    for array, copy in zip(batch[:3], before):
        np.testing.assert_array_equal(array, copy)


@given(mixes, batches, st.integers(0, 99), st.data())
def test_a_part_of_a_batch_is_mixed_like_the_whole(mix, batch, number, data):
    start = data.draw(st.integers(0, len(batch.samples)))
    part = slice(start, data.draw(st.integers(start, len(batch.samples))))
    here, partners = (Batch(*(array[part] for array in x[:3])) for x in (batch, backwards(batch)))
    result, expected = mix(here, partners, CLASSES, 0, 0, number), mixed(mix, batch, number=number)
    np.testing.assert_array_equal(result.images, expected.images[part])
    np.testing.assert_array_equal(result.labels, expected.labels[part])


def shares(mode, count=8, **options):
    """λ of each image, with mixup alone."""
    batch = whole(count)._replace(labels=np.arange(count) * 0)
    mix = Mix(cutmix_alpha=0, mode=mode, label_smoothing=0)
    return mix(
        batch,
        backwards(batch)._replace(labels=batch.labels + 1),
        CLASSES,
        **{"seed": 0, "epoch": 0, "number": 0, **options},
    ).labels[:, 0]


def test_a_batch_has_one_draw_a_pair_another_an_image_another():
    batch, pair, elem = map(shares, MODES)
    assert len(set(batch.tolist())) == 1
    np.testing.assert_array_equal(pair, pair[::-1])
    assert len(set(pair.tolist())) == 4 and len(set(elem.tolist())) == 8


def test_in_mode_elem_an_image_has_its_draw_in_any_batch():
    batch, mix = whole(5, seed=1), Mix(mode="elem", cutmix_alpha=0, label_smoothing=0)
    labelled = batch._replace(labels=np.arange(5))
    alone = labelled._replace(**{name: getattr(labelled, name)[:3] for name in ("images", "labels", "samples")})
    np.testing.assert_array_equal(mixed(mix, labelled).labels[0, 0], mixed(mix, alone).labels[0, 0])


@pytest.mark.parametrize("mode", MODES)
def test_seed_and_epoch_change_the_draw_and_the_number_that_of_a_batch(mode):
    first = shares(mode)
    assert (shares(mode, seed=1) != first).any() and (shares(mode, epoch=1) != first).any()
    assert (shares(mode, number=1) != first).any() == (mode == "batch")


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_beta(alpha):
    """Mean ½, variance 1/(4 (2α + 1)), fourth moment 3/(16 (2α + 1)(2α + 3)); and uniform for α = 1."""
    count = 100_000
    u, v = np.random.default_rng(0).random((2, count))
    centred = symmetric_beta(u, v, alpha) - 0.5
    for power, moment in [(1, 0), (2, 0.25 / (2 * alpha + 1)), (4, 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3)))]:
        numbers = centred**power
        assert abs(numbers.mean() - moment) < 4 * numbers.std() / count**0.5
    if alpha == 1:
        np.testing.assert_allclose(np.quantile(centred + 0.5, [0.1, 0.3, 0.9]), [0.1, 0.3, 0.9], atol=0.01)


@pytest.mark.parametrize("alpha", [1e-3, 1e3])
def test_beta_at_its_ends(alpha):
    u, v = np.meshgrid([0.0, 0.5, 1 - 2.0**-24], [0.0, 0.25, 0.5, 0.75])
    lam = symmetric_beta(u, v, alpha)
    assert ((lam >= 0) & (lam <= 1)).all()


def kinds(mix, count=4000, side=32):
    """λ before the border of each of many draws, the share of cut images, and boxes."""
    return mix.draw(np.arange(count), (side, side), 0, 0)


def test_probabilities():
    share, rows, _ = kinds(Mix(prob=0.6, switch_prob=0.25, mixup_alpha=1))
    assert abs((share < 1).mean() - 0.6 * 0.75) < 0.04
    assert abs(rows.any(1).mean() - 0.6 * 0.25) < 0.03
    assert (kinds(Mix(prob=0))[0] == 1).all() and not kinds(Mix(prob=0))[1].any()
    assert kinds(Mix(cutmix_alpha=0))[0].max() < 1 and not kinds(Mix(cutmix_alpha=0, switch_prob=1))[1].any()
    assert (kinds(Mix(mixup_alpha=0, switch_prob=0))[0] == 1).all() and kinds(Mix(mixup_alpha=0))[1].any(1).mean() > 0.9
    assert (kinds(Mix(mixup_alpha=0, cutmix_alpha=0))[0] == 1).all()
    assert abs(kinds(Mix(cutmix_alpha=0))[0].mean() - 0.5) < 0.03


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_boxes_as_in_timm(height, width, counter):
    """With the same numbers: √(1 − λ) of each side in whole pixels, around any pixel, cut off at the border."""
    _, _, u, v, down, across = uniform(key(3, "mix", 5), np.array([counter]), (6,))[0].astype(float)
    ratio = (1 - symmetric_beta(u, v, 1.0)) ** 0.5
    share, rows, columns = Mix(mixup_alpha=0).draw(np.array([counter]), (height, width), 3, 5)
    assert share == 1
    for pixels, place, line in [(height, down, rows[0]), (width, across, columns[0])]:
        cut, centre = int(pixels * ratio), int(pixels * place)
        low, high = max(centre - cut // 2, 0), min(centre + (cut + 1) // 2, pixels)
        np.testing.assert_array_equal(np.flatnonzero(line), np.arange(low, high))


@given(mix=mixes, batch=batches)
def test_on_a_gpu(gpu, mix, batch):
    there, partners = (Batch(moved(x.images), moved(x.labels), x.samples) for x in (batch, backwards(batch)))
    on_gpu, on_cpu = mix(there, partners, CLASSES, 0, 0, 0), mixed(mix, batch)
    for got, expected in zip(on_gpu[:2], on_cpu[:2]):
        np.testing.assert_allclose(got.get(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prob": 2}, "prob must lie between 0 and 1, got 2"),
        ({"switch_prob": -1}, "switch_prob must lie between 0 and 1, got -1"),
        ({"label_smoothing": 1.1}, "label_smoothing must lie between 0 and 1, got 1.1"),
        ({"mixup_alpha": -0.1}, "mixup_alpha must be 0 or more, got -0.1"),
        ({"cutmix_alpha": float("nan")}, "cutmix_alpha must be 0 or more, got nan"),
        ({"mode": "element"}, "mode must be one of batch, pair, elem, got 'element'"),
    ],
)
def test_bad_settings_get_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Mix(**settings)
