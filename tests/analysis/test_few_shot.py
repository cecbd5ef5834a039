"""Few-shot probes: which examples are chosen, and what is made of them, against a direct solve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit.analysis.features import collect_features
from minivit.analysis.few_shot import SHOTS, examples, few_shot, few_shot_layers
from minivit.data import Dataset, Loader
from minivit.models import create_model
from minivit.random import generator

SEEDS = st.integers(0, 2**32 - 1)


def shuffled(seed, counts):
    """Labels of so many images of each class, in random order."""
    return generator(seed, "labels").permutation(np.repeat(np.arange(len(counts)), counts))


def clusters(seed, labels, width, spread=0.1):
    """Features (n, width) around one centre for each class, the same for every seed."""
    centres = generator(0, "centres").normal(size=(labels.max() + 1, width))
    return centres[labels] + spread * generator(seed, "spread").normal(size=(len(labels), width))


# --- which examples ------------------------------------------------------------------------------------------------


@given(SEEDS, st.lists(st.integers(3, 9), min_size=1, max_size=5))
def test_there_are_as_many_of_each_class_none_twice_and_fewer_are_among_more(seed, counts):
    labels = shuffled(seed, counts)
    chosen = examples(labels, most=3, seed=seed)
    np.testing.assert_array_equal(labels[chosen], np.arange(len(counts))[:, None].repeat(3, 1))
    assert len(np.unique(chosen)) == chosen.size
    for fewer in (1, 2):
        np.testing.assert_array_equal(examples(labels, fewer, seed), chosen[:, :fewer])


def test_another_seed_chooses_others_and_every_image_is_chosen_by_some_seed():
    labels = shuffled(0, [5, 7])
    chosen = [examples(labels, 2, seed) for seed in range(60)]
    assert not np.array_equal(chosen[0], chosen[1])
    np.testing.assert_array_equal(np.unique(chosen), np.arange(12))


def test_a_class_with_too_few_images_gets_a_sentence():
    labels = shuffled(0, [5, 3, 4])
    with pytest.raises(ValueError, match="shots must lie in 1 … 3, as class 1 has 3 images, got 4"):
        examples(labels, 4)
    with pytest.raises(ValueError, match="class 1 has 3 images, got 5"):
        few_shot({"a": np.zeros((12, 2))}, labels, {"a": np.zeros((3, 2))}, np.arange(3), shots=[1, 5])
    with pytest.raises(ValueError, match="class 1 has 0 images, got 1"):
        examples(np.array([0, 2]), 1)


# --- what is made of them ------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(2, 6), st.integers(1, 12), st.sampled_from([0.01, 0.1, 3.0]))
@settings(max_examples=20)
def test_accuracies_are_those_of_a_direct_solve(seed, classes, width, l2):
    """Standardise; then min ‖x W + b − y‖² + l2 n ‖W‖² as least squares with rows for the penalty."""
    labels, test_labels = shuffled(seed, [4] * classes), shuffled(seed + 1, [5] * classes)
    x, test_x = (clusters(seed + i, y, width, spread=1.0) for i, y in enumerate((labels, test_labels)))
    (found,) = few_shot({"layer": x}, labels, {"layer": test_x}, test_labels, shots=[2, 4], seeds=[3, 5], l2=l2)
    for i, k in enumerate((2, 4)):
        for j, choice in enumerate((3, 5)):
            few = np.concatenate([row[:k] for row in examples(labels, 4, choice)])
            mean, std, n = x[few].mean(0), x[few].std(0), len(few)
            z, test_z = (x[few] - mean) / std, (test_x - mean) / std
            rows = np.block([[z, np.ones((n, 1))], [np.sqrt(l2 * n) * np.eye(width), np.zeros((width, 1))]])
            targets = np.vstack([np.eye(classes)[labels[few]], np.zeros((width, classes))])
            weight = np.linalg.lstsq(rows, targets, rcond=None)[0]
            scores = np.hstack([test_z, np.ones((len(test_z), 1))]) @ weight
            assert found[i, j] == (scores.argmax(1) == test_labels).mean()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_that_tell_all_give_one_and_noise_gives_chance(dtype):
    labels, test_labels = shuffled(0, [30] * 5), shuffled(1, [300] * 5)
    features, test_features = (
        {
            "wide": clusters(seed, y, 60).astype(dtype),
            "noise": generator(seed, "noise").normal(size=(len(y), 20)).astype(dtype),
            "narrow": clusters(seed, y, 7, spread=0.05).astype(dtype),
        }
        for seed, y in ((2, labels), (3, test_labels))
    )
    accuracies = few_shot(features, labels, test_features, test_labels, seeds=range(3))
    assert accuracies.shape == (3, len(SHOTS), 3)
    assert (accuracies[[0, 2]] == 1.0).all()
    np.testing.assert_allclose(accuracies[1], 0.2, atol=0.05)


def test_more_examples_help_and_one_layer_does_not_change_what_another_gets():
    labels, test_labels = shuffled(0, [20] * 4), shuffled(1, [100] * 4)
    x, test_x = clusters(2, labels, 10, spread=1.0), clusters(3, test_labels, 10, spread=1.0)
    alone = few_shot({"x": x}, labels, {"x": test_x}, test_labels)
    features, test_features = ({"nothing": 0 * z, "x": z, "again": z} for z in (x, test_x))
    beside = few_shot(features, labels, test_features, test_labels)
    np.testing.assert_array_equal(beside[1:], np.concatenate([alone, alone]))
    assert (beside[0] == 0.25).all(), "one class is answered for all"
    assert (np.diff(alone[0].mean(-1)) > 0).all() and alone.std(-1).max() > 0


def test_without_a_penalty_as_many_examples_as_features_are_worse_than_half_as_many():
    labels, test_labels = shuffled(0, [10] * 4), shuffled(1, [100] * 4)
    x, test_x = clusters(2, labels, 40, spread=2.0), clusters(3, test_labels, 40, spread=2.0)
    none, default = (
        few_shot({"x": x}, labels, {"x": test_x}, test_labels, shots=[5, 10], **l2)[0].mean(-1)
        for l2 in ({"l2": 1e-9}, {})
    )
    assert none[1] < none[0] - 0.1 and default[1] > default[0] > none[1]


x, y = np.zeros((4, 2)), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    "data, options, sentence",
    [
        (({"a": x}, y, {"b": x}, y), {}, "must be of the same layers, in the same order, got a and b"),
        (({}, y, {}, y), {}, "must be of the same layers, .* got none and none"),
        (({"a": x[:3]}, y, {"a": x}, y), {}, "features must be of the 4 labelled images, 'a' has 3"),
        (({"a": x}, y, {"a": x[:3]}, y), {}, r"test_x must be features .* got shapes \(3, 2\) and \(4,\)"),
        (({"a": x}, y / 1, {"a": x}, y), {}, r"labels must be class numbers \(n,\) from 0 on, got float64"),
        (({"a": x}, y, {"a": x}, y), {"shots": []}, r"numbers from 1 on, .* got \[\] and \[0, 1, 2, 3, 4\]"),
        (({"a": x}, y, {"a": x}, y), {"shots": [0, 2]}, r"shots must be numbers from 1 on, .* got \[0, 2\]"),
        (({"a": x}, y, {"a": x}, y), {"seeds": []}, r"there must be seeds, got \[1, 2\] and \[\]"),
        (({"a": x}, y, {"a": x}, y), {"l2": 0.0}, "l2 must be above 0"),
    ],
)
def test_what_does_not_fit_together_gets_a_sentence(data, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        few_shot(*data, **({"shots": [1, 2]} | options))


# --- of networks ---------------------------------------------------------------------------------------------------


def images(seed, counts):
    """Grey images of 8 px whose brightness tells their class, beside noise."""
    labels = shuffled(seed, counts)
    levels = 60 + 60 * labels[:, None, None, None] + generator(seed, "noise").integers(0, 9, (len(labels), 1, 8, 8))
    return Dataset("levels", levels.astype(np.uint8), labels, [str(number) for number in range(len(counts))])


NETWORKS = {
    "vit": lambda: create_model("vit_nano_patch4_28", img_size=8, depth=2, embed_dim=8, num_heads=2, num_classes=3),
    "resnet": lambda: create_model("resnet8", img_size=8, in_chans=1, num_classes=3),
}


@pytest.mark.parametrize("network, pool", [("vit", "class"), ("vit", "mean"), ("resnet", "mean")])
def test_the_layers_of_a_network_are_probed_by_their_features(network, pool):
    model, train = NETWORKS[network](), images(0, [6, 5, 8])
    test = images(1, [4, 4, 4]).normalised_like(train)
    options = {"shots": [1, 4], "seeds": [0, 7], "progress": False}
    found = few_shot_layers(model, train, test, pool, batch_size=5, **options)
    every, rest = (collect_features(model, Loader(data, 50, shuffle=False), None, pool) for data in (train, test))
    assert list(found) == list(every.features)
    np.testing.assert_array_equal(list(found.values()), few_shot(*every, *rest, **options))
    best = max(accuracies[1].mean() for accuracies in found.values())
    assert best > 0.9, "brightness can be told"
    if pool == "class":
        assert (found["embedding"] == 1 / 3).all(), "the class token has seen nothing yet"


def test_layers_can_be_named_and_the_network_sees_no_more_than_was_chosen():
    model, train, test = NETWORKS["resnet"](), images(0, [9, 9, 9]), images(1, [2, 2, 2])
    seen, forward = [], model.forward_features
    model.forward_features = lambda x: seen.append(len(x)) or forward(x)
    found = few_shot_layers(model, train, test, layers=["layer2.0", "conv1"], shots=[1, 2], seeds=[4])
    assert {layer: accuracies.shape for layer, accuracies in found.items()} == {"layer2.0": (2, 1), "conv1": (2, 1)}
    assert sum(seen) == 3 * 2 + len(test)


def test_a_network_on_a_gpu_is_probed_alike(gpu):
    train, test = images(0, [5, 5, 5]), images(1, [4, 4, 4])
    here, there = NETWORKS["vit"](), NETWORKS["vit"]().to("cuda")
    expected, found = (few_shot_layers(model, train, test, "class", shots=[2], seeds=[0]) for model in (here, there))
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=0.17)  # two of twelve images
