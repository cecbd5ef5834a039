"""Shape bias and κ against tables worked by hand; decisions against a loop over images and categories."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.analysis.shape_bias import decide, error_consistency, known_images, shape_bias, shape_bias_by_class
from minivit.data import Dataset
from minivit.data.cifar import CLASSES
from minivit.data.cue_conflict import CATEGORIES, IMAGENET, by_name
from minivit.data.shapes import shapes
from minivit.random import generator
from tests.devices import moved

SEEDS = st.integers(0, 2**32 - 1)


def of(*names):
    """Numbers of categories."""
    return np.array([CATEGORIES.index(name) for name in names])


def images(shape, texture, classes=CATEGORIES):
    """A data set of these cues; the first pixel of an image tells its number."""
    pixels = np.zeros((len(shape), 1, 2, 2), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(len(shape))
    return Dataset("cues", pixels, shape, list(classes), extra={"texture": texture})


# --- shape bias ----------------------------------------------------------------------------------------------------

SHAPE = np.array([0, 0, 0, 0, 1, 1, 1, 2])  # the last image has no conflict
TEXTURE = np.array([1, 2, 1, 1, 0, 0, 2, 2])
DECISIONS = np.array([0, 0, 1, 2, 1, 0, 3, 2])  # shape, shape, texture, neither; shape, texture, neither


def test_shape_bias_by_hand():
    found = shape_bias(DECISIONS, SHAPE, TEXTURE)
    assert found == (7, 3, 2), "seven images with a conflict, three answers with the shape, two with the texture"
    assert found.bias == pytest.approx(3 / 5) and found.coverage == pytest.approx(5 / 7)


def test_shape_bias_by_class_by_hand():
    found = shape_bias_by_class(DECISIONS, SHAPE, TEXTURE, ["cat", "dog", "boat", "car"])
    assert found == {"cat": (4, 2, 1), "dog": (3, 1, 1), "boat": (0, 0, 0), "car": (0, 0, 0)}
    assert (found["cat"].bias, found["dog"].bias, found["boat"].bias) == (pytest.approx(2 / 3), 0.5, None)
    assert (found["cat"].coverage, found["boat"].coverage) == (0.75, None)


@given(SEEDS, st.integers(1, 30), st.integers(2, 5))
def test_counts_of_classes_add_up_and_shape_and_texture_change_places(seed, n, classes):
    rng = generator(seed, "cues")
    decisions, shape = rng.integers(0, classes, n), rng.integers(0, classes, n)
    texture = (shape + rng.integers(0, 2, n)) % classes
    texture[0] = (shape[0] + 1) % classes  # one conflict at least
    found = shape_bias(decisions, shape, texture)
    by_class = shape_bias_by_class(decisions, shape, texture, [str(number) for number in range(classes)])
    assert tuple(map(sum, zip(*by_class.values()))) == found
    assert shape_bias(decisions, texture, shape) == (found.images, found.texture, found.shape)


def test_who_answers_with_the_shape_has_a_bias_of_one_and_with_the_texture_of_zero():
    data = shapes(60, size=8, relation="conflict")
    shape, texture = data.labels, data.extra["texture"]
    for decisions, bias, coverage in ((shape, 1.0, 1.0), (texture, 0.0, 1.0), (np.full(60, 99), None, 0.0)):
        found = shape_bias(decisions, shape, texture)
        assert (found.images, found.bias, found.coverage) == (60, bias, coverage)


def test_images_without_a_conflict_alone_get_a_sentence():
    data = shapes(20, size=8, relation="agree")
    with pytest.raises(ValueError, match="none of the 20 images has a texture of another class than its shape"):
        shape_bias(data.labels, data.labels, data.extra["texture"])


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"decisions": DECISIONS / 1}, r"decisions must be a class number for each .* got float64 of shape \(8,\)"),
        ({"decisions": np.eye(8, dtype=int)}, r"decisions must be .* of the 8 images, got int64 of shape \(8, 8\)"),
        ({"shape": SHAPE[:3]}, r"shape must be a class number for each of the 8 images, got int64 of shape \(3,\)"),
        ({"texture": TEXTURE > 0}, r"texture must be .* got bool of shape \(8,\)"),
    ],
)
def test_what_are_no_class_numbers_gets_a_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        shape_bias(**({"decisions": DECISIONS, "shape": SHAPE, "texture": TEXTURE} | change))


def test_a_class_without_a_name_gets_a_sentence():
    with pytest.raises(ValueError, match="classes must name every shape, got 1 names and shape number 1"):
        shape_bias_by_class(DECISIONS, SHAPE, TEXTURE, ["cat"])


# --- categories ----------------------------------------------------------------------------------------------------


def test_a_network_for_cifar_10_is_shown_what_it_knows_alone():
    data = images(
        shape=of("cat", "bear", "truck", "cat", "dog", "boat"), texture=of("boat", "cat", "truck", "oven", "cat", "dog")
    )
    known = known_images(data, by_name(CLASSES[10]))
    assert known.images[:, 0, 0, 0].tolist() == [0, 2, 4, 5], "no bears, no ovens"
    assert known.classes == ["boat", "cat", "dog", "truck"], "of the seven, those of these images"
    assert [known.classes[label] for label in known.labels] == ["cat", "truck", "dog", "boat"]
    assert [known.classes[label] for label in known.extra["texture"]] == ["boat", "truck", "cat", "dog"]


def test_a_network_for_imagenet_is_shown_everything():
    pairs = np.array([(shape, texture) for shape in range(16) for texture in range(16)])
    known = known_images(images(*pairs.T), IMAGENET)
    assert known.classes == CATEGORIES
    np.testing.assert_array_equal([known.labels, known.extra["texture"]], pairs.T)


def test_images_of_which_nothing_is_known_get_a_sentence():
    data = images(of("bear", "cat"), of("cat", "oven"))
    with pytest.raises(ValueError, match="no image of cues has shape and texture among cat, dog, the categories that"):
        known_images(data, by_name(["cat", "dog"]))
    with pytest.raises(ValueError, match="among none, the categories"):
        known_images(data, by_name(["0", "1"]))
    with pytest.raises(ValueError, match=r"a texture for each image, extra\['texture'\], but plain has none"):
        known_images(Dataset("plain", data.images, data.labels, CATEGORIES), IMAGENET)


@given(SEEDS, st.integers(1, 5), st.sampled_from([1.0, 30.0]))
def test_decisions_are_those_of_the_mean_probability(seed, n, scale):
    rng = generator(seed, "logits")
    logits = scale * rng.normal(size=(n, 9))
    members = {"a": [0, 1, 2], "b": [5], "c": [3, 8], "d": [4, 6]}
    for categories in (["a", "b", "c", "d"], ["c", "b"]):
        expected = []
        for row in logits:
            total = sum(np.exp(z) for z in row)
            means = [sum(np.exp(row[k]) / total for k in members[name]) / len(members[name]) for name in categories]
            expected.append(means.index(max(means)))
        assert decide(logits, members, categories).tolist() == expected
        assert decide(logits + 1000, members, categories).tolist() == expected


def test_a_category_is_not_answered_for_the_number_of_its_classes():
    """Dogs have 109 classes of ImageNet; their probabilities add up to more than a knife's, but are smaller each."""
    logits = np.full((2, 1000), -50.0)
    logits[:, IMAGENET["dog"]] = 0
    logits[0, IMAGENET["knife"]] = 1
    logits[1, IMAGENET["knife"]] = -1
    assert [CATEGORIES[k] for k in decide(logits, IMAGENET, CATEGORIES)] == ["knife", "dog"]


def test_a_frog_is_never_answered():
    logits = np.zeros((1, 10))
    logits[0, CLASSES[10].index("frog")] = 9
    logits[0, CLASSES[10].index("ship")] = 1
    assert decide(logits, by_name(CLASSES[10]), ["cat", "boat"]).tolist() == [1]


@pytest.mark.parametrize(
    "logits, categories, sentence",
    [
        (np.zeros(10), ["cat"], r"logits must be finite numbers \(n, K\), got shape \(10,\)"),
        (np.full((1, 10), np.nan), ["cat"], "logits must be finite .* or NaN or infinity"),
        (np.zeros((1, 10)), ["cat", "oven"], "must have classes for every category, but has none for oven"),
        (np.zeros((1, 3)), ["cat", "dog"], r"must be numbers of the network's 3 classes, got \[3, 5\]"),
        (np.zeros((1, 10)), [], r"must be numbers of the network's 10 classes, got \[\]"),
    ],
)
def test_what_cannot_be_decided_gets_a_sentence(logits, categories, sentence):
    with pytest.raises(ValueError, match=sentence):
        decide(logits, by_name(CLASSES[10]), categories)


def test_what_comes_from_a_gpu_is_decided_and_counted_alike(gpu):
    logits = generator(0, "logits").normal(size=(8, 10)).astype(np.float32)
    data = images(of("cat", "dog"), of("dog", "boat"))
    categories = known_images(data.to("cuda"), by_name(CLASSES[10])).classes
    assert categories == ["boat", "cat", "dog"]
    decisions = decide(moved(logits), by_name(CLASSES[10]), categories)
    np.testing.assert_array_equal(decisions, decide(logits, by_name(CLASSES[10]), categories))
    assert shape_bias(*map(moved, (DECISIONS, SHAPE, TEXTURE))) == (7, 3, 2)
    assert error_consistency(*map(moved, (DECISIONS == SHAPE, DECISIONS == SHAPE))).kappa == 1


# --- error consistency ---------------------------------------------------------------------------------------------


def right(*blocks):
    """Blocks of (how many images, is a right, is b right)."""
    counts, a, b = zip(*blocks)
    return np.repeat(np.array(a, bool), counts), np.repeat(np.array(b, bool), counts)


def test_kappa_by_hand():
    """Of 100 images both are right about 60, a alone about 15, b alone about 5, none about 20.

    a is right about .75, b about .65; observed .60 + .20 = .80; expected .75 · .65 + .25 · .35 = .575; κ = .225 / .425.
    """
    found = error_consistency(*right((60, 1, 1), (15, 1, 0), (5, 0, 1), (20, 0, 0)))
    assert found == pytest.approx((0.80, 0.575, 0.225 / 0.425))


def test_errors_apart_together_and_unrelated():
    assert error_consistency(*right((5, 1, 0), (5, 0, 1))) == (0.0, 0.5, -1.0)
    assert error_consistency(*right((7, 1, 1), (3, 0, 0))) == pytest.approx((1.0, 0.58, 1.0))
    # .8 and .5, independent: 40, 40, 10 and 10 of 100
    assert error_consistency(*right((40, 1, 1), (40, 1, 0), (10, 0, 1), (10, 0, 0))) == pytest.approx((0.5, 0.5, 0.0))


@pytest.mark.parametrize("value", [0, 1])
def test_without_errors_or_without_anything_right_kappa_is_called_one(value):
    assert error_consistency(*right((9, value, value))) == (1.0, 1.0, 1.0)


@given(SEEDS, st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_kappa_is_finite_symmetric_and_that_of_the_table(seed, n, share):
    rng = generator(seed, "right")
    a, b = rng.random(n) < share, rng.random(n) < 0.7
    found = error_consistency(a, b)
    assert found == pytest.approx(error_consistency(b, a)) and np.isfinite(found).all()
    assert found == pytest.approx(error_consistency(~a, ~b)), "errors of both, or successes of both"
    table = np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]) / n
    expected = table.sum(1) @ table.sum(0)  # of Cohen's κ for any table
    if expected < 1 - 1e-9:
        assert found == pytest.approx((np.trace(table), expected, (np.trace(table) - expected) / (1 - expected)))


@pytest.mark.parametrize(
    "arrays",
    [
        (np.ones(3, int), np.ones(3, bool)),
        (np.ones(3, bool), np.ones(2, bool)),
        (np.ones(0, bool), np.ones(0, bool)),
        (np.ones((2, 2), bool), np.ones((2, 2), bool)),
    ],
)
def test_what_are_no_booleans_of_the_same_images_gets_a_sentence(arrays):
    with pytest.raises(ValueError, match=r"right_a and right_b must say .* as booleans \(n,\), got .* of shape .* and"):
        error_consistency(*arrays)
