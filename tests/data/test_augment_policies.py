"""Policies and random colour: keyed draws, the frequencies and strengths they promise, and what is drawn is done."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit.backend import to_device
from minivit.data import augment
from minivit.data.augment import autoaugment, randaugment, trivialaugment
from minivit.data.augment.autoaugment import AutoAugment, sub_policies
from minivit.data.augment.color import brightness, contrast, grayscale, hue, saturation
from minivit.data.augment.filters import gaussian_blur
from minivit.data.augment.geometry import rotate, shear_x, translate_y
from minivit.data.augment.jitter import ColorJitter, GaussianBlur, RandomGrayscale, Solarization
from minivit.data.augment.levels import equalize, invert, posterize, solarize, solarize_add
from minivit.data.augment.ops import apply, draw, signs
from minivit.data.augment.randaugment import RandAugment
from minivit.data.augment.three_augment import ThreeAugment
from minivit.data.augment.trivialaugment import TrivialAugment
from tests.data.pillow import assert_close

AUGMENTATIONS = [
    RandAugment(), RandAugment(num_ops=3, magnitude=5, std=3, p=1, increasing=False), AutoAugment("cifar10"),
    AutoAugment("imagenet", fill=0), TrivialAugment(), ThreeAugment(sigma=(0, 0.1)), ColorJitter(0.4, 0.3, 0.2, 0.1),
    RandomGrayscale(0.5), Solarization(0.5, threshold=100), GaussianBlur(p=0.7, sigma=(0, 0.2)),
]  # fmt: skip
augmentations = st.sampled_from(AUGMENTATIONS)


@st.composite
def batches(draw):
    """Images, and the global keys of their random draws."""
    shape = draw(st.tuples(st.integers(1, 8), st.sampled_from([1, 2, 3]), st.integers(1, 9), st.integers(1, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    images.flags.writeable = False
    return images, rng.choice(10**6, len(images), replace=False)


def noise(count, size=8):
    """The same picture, somewhat wider than high, so many times. Two levels are at 128, where solarising begins."""
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, size, size + 2), dtype=np.uint8)
    picture[0, 0, 0, :2] = 127, 128
    return np.tile(picture, (count, 1, 1, 1))


# --- what holds for all ----------------------------------------------------------------------------------------------


@given(augmentations, batches(), st.integers(0, 100), st.integers(0, 100))
def test_type_and_shape_stay_and_the_input_is_not_written_to(augmentation, batch, seed, epoch):
    images, samples = batch
    result = augmentation(images, samples, seed, epoch)
    assert (result.shape, result.dtype) == (images.shape, np.uint8)
    assert not np.shares_memory(result, images)
    np.testing.assert_array_equal(result, augmentation(images, samples, seed, epoch))


@settings(max_examples=100)
@given(augmentations, batches(), st.integers(0, 100), st.randoms(use_true_random=False))
def test_what_happens_to_an_image_does_not_depend_on_its_batch(augmentation, batch, epoch, random):
    images, samples = batch
    chosen = random.choices(range(len(images)), k=random.randint(1, len(images)))
    whole, part = augmentation(images, samples, 0, epoch), augmentation(images[chosen], samples[chosen], 0, epoch)
    np.testing.assert_array_equal(part, whole[chosen])


def test_nor_on_the_size_of_the_pieces(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    whole = RandAugment()(images, np.arange(64), 0, 0)
    for piece in (1, 3 * 64, 7 * 64):
        monkeypatch.setattr("minivit.data.augment.ops.PIECE", piece)
        np.testing.assert_array_equal(RandAugment()(images, np.arange(64), 0, 0), whole)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda a: type(a).__name__)
def test_seed_epoch_and_sample_each_change_the_draw(augmentation):
    images, samples = noise(64), np.arange(64)
    first = augmentation(images, samples, seed=0, epoch=0)
    assert len(np.unique(first, axis=0)) > 1
    for other in [(samples, 1, 0), (samples, 0, 1), (samples + 64, 0, 0)]:
        assert (augmentation(images, *other) != first).any()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda a: type(a).__name__)
def test_a_gpu_draws_and_does_the_same(gpu, augmentation):
    images, samples = np.random.default_rng(1).integers(0, 256, (48, 3, 9, 8), dtype=np.uint8), np.arange(48)
    for keys in (samples, to_device(samples, "cuda")):
        result = to_device(augmentation(to_device(images, "cuda"), keys, 0, 0), "cpu")
        assert_close(result, augmentation(images, samples, 0, 0), levels=1)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda a: type(a).__name__)
def test_an_empty_share_of_a_batch_stays_empty(augmentation):
    assert augmentation(np.zeros((0, 3, 8, 8), np.uint8), np.arange(0), 0, 0).shape == (0, 3, 8, 8)


def test_all_have_a_place_in_the_package():
    for augmentation in AUGMENTATIONS:
        assert getattr(augment, type(augmentation).__name__) is type(augmentation)
        assert dataclasses.replace(augmentation) == augmentation


# --- how often, and how strongly -------------------------------------------------------------------------------------

COUNT = 6000


def within(share, p, count=COUNT):
    """Five standard deviations of a share of so many draws."""
    return abs(share - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1e-9


@pytest.fixture
def recorded(monkeypatch):
    """Policies draw as ever, but only write down what they drew: the number of the operation, and its strength."""
    calls = []

    def write_down(images, operations, choice, strength):
        calls.append((len(operations), choice, strength))
        return images

    for module in (randaugment, autoaugment, trivialaugment):
        monkeypatch.setattr(module, "apply", write_down)
    return calls


def test_randaugment_draws_evenly_with_its_probability_and_strengths(recorded):
    RandAugment(num_ops=3, magnitude=9, std=0.5, p=0.3)(None, np.arange(COUNT), 0, 0)
    assert len(recorded) == 3
    for operations, choice, strength in recorded:
        assert operations == 15
        assert within((choice >= 0).mean(), 0.3)
        assert all(within((choice == number).mean(), 0.3 / 15) for number in range(15))
        assert within((strength > 0).mean(), 0.5)
        level = 10 * abs(strength)
        assert level.max() == 10  # clipped: 2 % of a normal distribution lie beyond
        assert within((level < 10).mean(), 0.97725)
        assert within((level < 9).mean(), 0.5)
        assert within((level < 8.5).mean(), 0.15866)
    first, second = recorded[0][1:], recorded[1][1:]
    assert within(((first[0] >= 0) & (second[0] >= 0)).mean(), 0.09)  # steps are independent


def test_trivialaugment_draws_evenly(recorded):
    TrivialAugment()(None, np.arange(COUNT), 0, 0)
    [(operations, choice, strength)] = recorded
    assert operations == 14
    assert all(within((choice == number).mean(), 1 / 14) for number in range(14))
    values, counts = np.unique(np.rint(30 * abs(strength)), return_counts=True)
    np.testing.assert_allclose(30 * abs(strength), np.rint(30 * abs(strength)))
    assert values.tolist() == list(range(31))
    assert all(within(count / COUNT, 1 / 31) for count in counts)
    assert within((strength > 0).mean(), 0.5 * 30 / 31)


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_autoaugment_draws_its_sub_policies(recorded, policy):
    AutoAugment(policy)(None, np.arange(COUNT), 0, 0)
    (_, *first), (_, *second) = recorded
    names = list(autoaugment.ranges())
    expected = np.zeros((16, 16))  # probability of each pair of choices, −1 included
    for pair in sub_policies(policy):
        (a, p, _), (b, q, _) = pair
        a, b = names.index(a), names.index(b)
        for i, probability in ((a, p), (-1, 1 - p)):
            for j, other in ((b, q), (-1, 1 - q)):
                expected[i, j] += probability * other / 25
    for i in range(-1, 15):
        for j in range(-1, 15):
            assert within(((first[0] == i) & (second[0] == j)).mean(), expected[i, j])
    levels = {(names.index(name), level) for pair in sub_policies(policy) for name, p, level in pair if p}
    assert {(i, round(10 * abs(s))) for c, s in (first, second) for i, s in zip(c, s) if i >= 0} == levels


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_a_policy_has_25_pairs_of_known_operations(policy):
    pairs = sub_policies(policy)
    assert [len(pair) for pair in pairs] == [2] * 25
    for pair in pairs:
        for name, p, level in pair:
            assert name in autoaugment.ranges()
            assert 0 <= p <= 1
            assert level in range(10)


ARGUMENTS = [  # space, operation, strength, function, its argument as timm computes it from the level
    (randaugment.increasing, "rotate", -0.9, rotate, -27.0),
    (randaugment.increasing, "shear_x", 0.9, shear_x, 0.27),
    (randaugment.increasing, "translate_y", -0.9, translate_y, -0.405),
    (randaugment.increasing, "posterize", -0.9, posterize, 1),
    (randaugment.increasing, "posterize", 0.7, posterize, 2),
    (randaugment.increasing, "posterize", 1.0, posterize, 1),
    (randaugment.increasing, "solarize", -0.9, solarize, 26),
    (randaugment.increasing, "solarize_add", 0.9, solarize_add, 99),
    (randaugment.increasing, "brightness", 0.9, brightness, 1.81),
    (randaugment.increasing, "contrast", -0.9, contrast, 0.19),
    (randaugment.increasing, "saturation", -1.0, saturation, 0.1),
    (randaugment.searched, "brightness", -0.9, brightness, 1.72),
    (randaugment.searched, "posterize", 0.9, posterize, 3),
    (randaugment.searched, "posterize", 0.2, posterize, 1),
    (randaugment.searched, "solarize", -0.9, solarize, 230),
    (autoaugment.ranges, "posterize", 0.7, posterize, 6),
    (autoaugment.ranges, "contrast", 0.8, contrast, 1.54),
    (autoaugment.ranges, "translate_y", 0.9, translate_y, 0.9 * 150 / 331),
    (trivialaugment.wide, "rotate", -1.0, rotate, -135),
    (trivialaugment.wide, "posterize", 1.0, posterize, 2),
    (trivialaugment.wide, "solarize", 0.5, solarize, 128),
    (trivialaugment.wide, "saturation", -1.0, saturation, 0.01),
    (trivialaugment.wide, "translate_y", 1.0, translate_y, 1 / 7),
]


@pytest.mark.parametrize(("space", "name", "strength", "function", "argument"), ARGUMENTS)
def test_a_strength_becomes_the_argument_it_stands_for(space, name, strength, function, argument):
    images = noise(1)
    np.testing.assert_array_equal(space()[name](images, np.array([strength])), function(images, np.array([argument])))


def test_fill_and_translate_reach_the_warps():
    white = np.full((200, 1, 10, 10), 255, np.uint8)
    for policy in (RandAugment, TrivialAugment, lambda **options: AutoAugment("cifar10", **options)):
        seen = [np.unique(policy(fill=fill, translate=0.3)(white, np.arange(200), 0, 0)) for fill in (77, 78)]
        assert 77 in seen[0] and 78 in seen[1]
        assert (policy(translate=0.3)(noise(200), np.arange(200), 0, 0) != policy(translate=0.1)(
            noise(200), np.arange(200), 0, 0)).any()  # fmt: skip


# --- single augmentations --------------------------------------------------------------------------------------------


def same(result, image):
    return (result == image).all((1, 2, 3))


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_the_share_of_changed_images_is_p_and_the_change_is_the_one_meant(p):
    images, samples = noise(COUNT, size=3), np.arange(COUNT)
    ones = np.ones(1)
    for augmentation, expected in [
        (RandomGrayscale(p), grayscale(images[:1])),
        (Solarization(p, threshold=90), solarize(images[:1], 90 * ones)),
        (GaussianBlur(p, sigma=(0.5, 0.5)), gaussian_blur(images[:1], 1.5 * ones)),
    ]:
        changed = same(augmentation(images, samples, 0, 0), expected)
        assert (changed ^ same(augmentation(images, samples, 0, 0), images)).all()
        assert within(changed.mean(), p)


def test_blur_draws_its_strength_from_the_range():
    """A dot's brightest pixel tells how much it was blurred."""
    dot = np.zeros((500, 1, 9, 9), np.uint8)
    dot[:, :, 4, 4] = 255
    least, most, middle = (int(gaussian_blur(dot[:1], np.array([s]))[0, 0, 4, 4]) for s in (0.9, 2.7, 1.8))
    peak = GaussianBlur(p=1, sigma=(0.1, 0.3))(dot, np.arange(500), 0, 0)[:, 0, 4, 4]
    assert abs(peak.max() - least) <= 1  # boxes round
    assert abs(peak.min() - most) <= 1
    assert within((peak > middle).mean(), 0.5, 500)


def test_three_augment_does_one_of_three_and_then_jitters():
    images, samples = noise(3000, size=4), np.arange(3000)
    plain = ThreeAugment(jitter=0, sigma=(0.25, 0.25))(images, samples, 0, 0)
    one = np.ones(1)
    meant = [grayscale(images[:1]), solarize(images[:1], 128 * one), gaussian_blur(images[:1], one)]
    shares = [same(plain, image).mean() for image in meant]
    assert sum(shares) == 1
    assert all(within(share, 1 / 3, 3000) for share in shares)
    jittered = ThreeAugment(jitter=0.3, sigma=(0.25, 0.25))(images, samples, 0, 0)
    np.testing.assert_array_equal(jittered, ColorJitter(0.3, 0.3, 0.3)(plain, samples, 0, 0))


def test_color_jitter_turns_each_knob_by_a_factor_of_its_range():
    """A level of 100 shows the factor of brightness; the others are the function of what was drawn."""
    grey = np.full((2000, 1, 1, 1), 100, np.uint8)
    seen = ColorJitter(brightness=0.4)(grey, np.arange(2000), 0, 0).ravel()
    assert (seen.min(), seen.max()) == (60, 139)
    assert within((seen < 100).mean(), 0.5, 2000)
    two = np.tile(np.array([100, 200], np.uint8), (2000, 1, 1, 1))
    dark, bright = ColorJitter(contrast=2)(two, np.arange(2000), 0, 0).reshape(2000, 2).astype(int).T
    assert 0 <= (bright - dark).min() < 3  # factors are cut at 0, before they make negatives

    images, samples = noise(50, size=3), np.arange(50)
    numbers = draw(samples, (8,), 0, "color_jitter", 0)
    factors = 1 + 0.4 * (2 * numbers - 1)
    for column, (name, function) in enumerate([("contrast", contrast), ("saturation", saturation)], start=1):
        expected = function(images, factors[:, column])
        assert_close(ColorJitter(**{name: 0.4})(images, samples, 0, 0), expected, levels=1)
    assert_close(ColorJitter(hue=0.2)(images, samples, 0, 0), hue(images, 0.4 * numbers[:, 3] - 0.2), levels=1)


def test_color_jitter_draws_the_order():
    images, samples = noise(300, size=4), np.arange(300)
    factors = 0.5 + draw(samples, (8,), 0, "color_jitter", 0)
    result = ColorJitter(brightness=0.5, contrast=0.5)(images, samples, 0, 0)
    bright_first = contrast(brightness(images, factors[:, 0]), factors[:, 1])
    bright_last = brightness(contrast(images, factors[:, 1]), factors[:, 0])
    first, last = same(result, bright_first), same(result, bright_last)
    assert (first | last).all()
    assert (bright_first != bright_last).any((1, 2, 3)).sum() > 200
    assert 0.35 < first.mean() < 0.65


# --- ops, and words --------------------------------------------------------------------------------------------------


def test_apply_gives_each_image_its_own_operation_and_strength():
    images, strength = noise(6), np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    operations = [lambda x, s: brightness(x, s), lambda x, s: invert(x), lambda x, s: equalize(x)]
    result = apply(images, operations, np.array([0, 1, 0, -1, 2, 0]), strength)
    expected = [brightness, lambda x, s: invert(x), brightness, lambda x, s: x, lambda x, s: equalize(x), brightness]
    for image, function, s, x in zip(result, expected, strength, images):
        np.testing.assert_array_equal(image, function(x[None], np.array([s]))[0])
    assert signs(np.array([0.0, 0.499, 0.5])).tolist() == [-1, -1, 1]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("rand-m9-mstd0.5-inc1", RandAugment()),
        ("rand", RandAugment(2, 10, 0.0, 0.5, increasing=False)),
        ("rand-inc0-n3-p0.25-m7-mstd1", RandAugment(3, 7, 1, 0.25, increasing=False)),
    ],
)
def test_timms_words(config, expected):
    assert RandAugment.from_config(config) == expected
    assert RandAugment.from_config(config, translate=0.1, fill=0) == dataclasses.replace(
        expected, translate=0.1, fill=0
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RandAugment(0), "num_ops must be at least 1, got 0"),
        (lambda: RandAugment(magnitude=11), "magnitude and std must lie in 0 … 10, got 11 and 0.5"),
        (lambda: RandAugment(std=-1), "magnitude and std must lie in 0 … 10, got 9.0 and -1"),
        (lambda: RandAugment(p=2), "between 0 and 1, got 2"),
        (lambda: RandAugment.from_config("augmix-m3"), "config must look like .* got 'augmix-m3'"),
        (lambda: RandAugment.from_config("augmix"), "config must look like .* got 'augmix'"),
        (lambda: RandAugment.from_config("rand-m9-w0"), "config must look like .* got 'rand-m9-w0'"),
        (lambda: RandAugment.from_config("rand-m"), "config must look like .* got 'rand-m'"),
        (lambda: AutoAugment("mnist"), "policy must be one of cifar10, imagenet, got 'mnist'"),
        (lambda: ColorJitter(contrast=-1), "contrast must be 0 or more, got -1"),
        (lambda: ColorJitter(hue=0.6), "hue must be at most 0.5, .* got 0.6"),
        (lambda: RandomGrayscale(-0.1), "between 0 and 1, got -0.1"),
        (lambda: Solarization(1.1), "between 0 and 1, got 1.1"),
        (lambda: GaussianBlur(3), "between 0 and 1, got 3"),
        (lambda: GaussianBlur(sigma=(2, 1)), r"sigma must be a range .* got \(2, 1\)"),
        (lambda: ThreeAugment(jitter=-1), "jitter must be 0 or more, got -1"),
        (lambda: ThreeAugment(sigma=(2, 1)), r"sigma must be a range .* got \(2, 1\)"),
        (lambda: rotate(noise(1), np.zeros(1), fill=256), "fill must be a level of 0 … 255, got 256"),
        (lambda: TrivialAugment()(np.zeros((1, 3, 4, 4)), np.arange(1), 0, 0), "uint8 .* got float64 of shape"),
        (lambda: ThreeAugment()(np.zeros((3, 4, 4), np.uint8), np.arange(1), 0, 0), "got uint8 of shape"),
    ],
)
def test_bad_settings_get_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
