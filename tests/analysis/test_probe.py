"""Features against the network's own tokens, and each probe against a slow twin or a direct solution."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit.analysis.probe import features, knn, linear_probe, ridge, ridge_probe
from minivit.data import Batch
from minivit.models import VisionTransformer
from minivit.nn import Linear
from minivit.random import generator
from tests.devices import cupy

SEEDS = st.integers(0, 2**32 - 1)


def network(**options):
    return VisionTransformer(8, 4, 1, 3, embed_dim=6, depth=3, num_heads=2, drop_path_rate=0.5, **options)


def batches(*sizes):
    rng = generator(0, "images")
    return [Batch(rng.normal(size=(n, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, n), np.arange(n)) for n in sizes]


def clusters(seed, n=60, width=5, classes=3, noise=0.05):
    """Features (n, D) around one centre for each class, the same for every seed, and the classes, which all occur."""
    rng, centres = generator(seed, "clusters"), generator(0, "centres").normal(size=(classes, width))
    labels = rng.permutation(np.arange(n) % classes)
    return centres[labels] + noise * rng.normal(size=(n, width)), labels


def problem(seed, n=30, m=11, width=4, classes=3):
    """Features that say little of the labels: of n training and m test images."""
    rng = generator(seed, "problem")
    x, y = rng.normal(size=(n + m, width)), rng.integers(0, classes, n + m)
    x[:, 0] += y
    return x[:n], y[:n], x[n:], y[n:]


# --- features ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [None, 1, 2, 3])
def test_features_are_the_tokens_of_that_layer_pooled(layer):
    model, (first, second) = network(reg_tokens=2), batches(3, 2)
    found = features(model, [first, second], layer)
    assert model.training, "the mode is as it was before"
    model.eval()
    for part, batch in ((slice(0, 3), first), (slice(3, 5), second)):
        z = model.norm_pre(model.embed_positions(model.patch_embed(batch.images)))
        for block in model.blocks[:layer]:
            z = block(z)
        z = (model.norm(z) if layer is None else z).numpy()
        np.testing.assert_allclose(found.cls[part], z[:, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.mean[part], z[:, 3:].mean(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.labels[part], batch.labels)
    assert found.mean.dtype == np.float32


def test_without_a_class_token_there_is_none():
    found = features(network(class_token=False, global_pool="avg"), batches(2))
    assert found.cls is None and found.mean.shape == (2, 6)


def test_features_of_a_model_on_a_gpu_come_to_the_host(gpu):
    there, (batch,) = network().to("cuda"), batches(2)
    found, expected = features(there, [batch.to("cuda")]), features(network(), [batch])
    assert isinstance(there.patch_embed.proj.weight.data, cupy().ndarray)
    for ours, theirs in zip(found, expected):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_a_layer_that_there_is_not_gets_a_sentence(layer):
    with pytest.raises(ValueError, match=rf"layer must lie in 1 … 3, the blocks of this network, got {layer}"):
        features(network(), batches(1), layer)


def test_no_images_get_a_sentence():
    with pytest.raises(ValueError, match=r"there is nothing to look at \(features\)"):
        features(network(), [])


# --- nearest neighbours --------------------------------------------------------------------------------------------


def knn_by_hand(train_x, train_y, test_x, test_y, k, temperature):
    """One image at a time, all neighbours sorted."""
    correct = 0
    for x, y in zip(test_x, test_y):
        cosines = [float(x @ t) / (math.hypot(*x) * math.hypot(*t)) for t in train_x]
        votes = dict.fromkeys(range(3), 0.0)
        for i in sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]:
            votes[int(train_y[i])] += math.exp(cosines[i] / temperature)
        correct += max(votes, key=votes.get) == y
    return correct / len(test_y)


@given(SEEDS, st.integers(1, 30), st.sampled_from([0.07, 1.0]), st.integers(1, 12))
def test_knn_is_brute_force_in_blocks_of_any_size(seed, k, temperature, block):
    data = problem(seed)
    assert knn(*data, k=k, temperature=temperature, block=block) == knn_by_hand(*data, k, temperature)


@given(SEEDS)
@settings(max_examples=10)
def test_knn_sees_directions_only(seed):
    train_x, train_y, test_x, test_y = problem(seed)
    lengths = generator(seed, "lengths").uniform(0.5, 2, (len(train_x), 1))
    assert knn(train_x * lengths, train_y, 7 * test_x, test_y) == knn(train_x, train_y, test_x, test_y)


def test_a_near_neighbour_outvotes_several_that_are_far():
    train_x, train_y = np.array([[1, 0.0], [0, 1.0], [0, 1.0], [0, 1.0]]), np.array([0, 1, 1, 1])
    test = np.array([[1, 0.2]]), np.array([0])
    assert knn(train_x, train_y, *test, k=4, temperature=0.07) == 1.0
    assert knn(train_x, train_y, *test, k=4, temperature=100.0) == 0.0
    assert knn(train_x, train_y, *test, k=4, temperature=1e-4) == 1.0, "no overflow"


def test_features_of_zeros_are_far_from_everything():
    assert knn(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([0, 1]), np.array([[1.0, 0.0]]), np.array([1]), k=1) == 1.0


# --- ridge ---------------------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.sampled_from([1e-3, 0.1, 10.0]))
def test_ridge_is_least_squares_with_rows_for_the_penalty(seed, n, width, l2):
    """min ‖x W + b − y‖² + c ‖W‖² = min ‖[x 1; √c I 0] [W; b] − [y; 0]‖², with c = l2 · n."""
    rng = generator(seed, "ridge")
    x, y = rng.normal(size=(n, width)) + 3, rng.normal(size=(n, 2))
    weight, bias = ridge(x, y, l2)
    rows = np.block([[x, np.ones((n, 1))], [math.sqrt(l2 * n) * np.eye(width), np.zeros((width, 1))]])
    expected = np.linalg.lstsq(rows, np.vstack([y, np.zeros((width, 2))]), rcond=None)[0]
    np.testing.assert_allclose(np.vstack([weight, bias]), expected, rtol=1e-7, atol=1e-9)


@given(SEEDS)
@settings(max_examples=20)
def test_ridge_probe_does_not_see_the_scale_of_a_feature(seed):
    train_x, train_y, test_x, test_y = problem(seed)
    rng = generator(seed, "scales")
    scale, shift = 10.0 ** rng.integers(-3, 4, 4), rng.normal(size=4)
    plain = ridge_probe(train_x, train_y, test_x, test_y)
    assert ridge_probe(train_x * scale + shift, train_y, test_x * scale + shift, test_y) == plain


def test_the_penalty_is_the_one_that_does_best_on_what_was_held_out():
    """Twelve noisy features for twenty images: with next to no penalty they are learned by heart."""
    train_x, train_y, test_x, test_y = problem(3, n=20, m=400, width=12, classes=2)
    chosen = ridge_probe(train_x, train_y, test_x, test_y, l2=(1e-9, 1.0, 1e-8))
    assert chosen == ridge_probe(train_x, train_y, test_x, test_y, l2=1.0)
    assert chosen.accuracy > ridge_probe(train_x, train_y, test_x, test_y, l2=1e-9).accuracy


def test_of_equally_good_penalties_the_largest_is_taken():
    x, y = clusters(0)
    assert ridge_probe(x, y, x, y, l2=(1e-3, 1e-1, 1e-2)) == (1.0, 1e-1)


def test_features_that_never_vary_are_left_out():
    x, y = clusters(1)
    constant = np.full((len(x), 1), 0.1)
    with_constant, other = np.hstack([x, constant]), np.hstack([x, constant + 5])
    assert ridge_probe(with_constant, y, other, y).accuracy == 1.0
    assert linear_probe(with_constant, y, with_constant, y, steps=100, lr=2.0) == 1.0


@pytest.mark.parametrize("l2", [0.0, -1.0, (0.1, 0.0)])
def test_a_penalty_that_is_none_gets_a_sentence(l2):
    x, y = clusters(0)
    with pytest.raises(ValueError, match="l2 must be above 0, or features that depend on one another have no answer"):
        ridge_probe(x, y, x, y, l2=l2)


# --- all of them ---------------------------------------------------------------------------------------------------

PROBES = {
    "knn": lambda *data: knn(*data, k=5),
    "ridge": lambda *data: ridge_probe(*data).accuracy,
    "linear": lambda *data: linear_probe(*data, steps=100, batch_size=32, lr=40.0),
}
each_probe = pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)


@each_probe
@pytest.mark.parametrize("width", [5, 100])
def test_what_can_be_separated_is_separated(probe, width):
    train, test = clusters(0, width=width), clusters(1, width=width)
    for dtype in (np.float32, np.float64):
        assert probe(train[0].astype(dtype), train[1], test[0].astype(dtype), test[1]) == 1.0


@each_probe
def test_labels_by_chance_are_guessed_by_chance(probe):
    rng = generator(0, "chance")
    (train, _), (test, _) = clusters(0, n=200), clusters(1, n=2000)
    assert probe(train, rng.integers(0, 4, 200), test, rng.integers(0, 4, 2000)) == pytest.approx(0.25, abs=0.05)


@each_probe
def test_a_class_that_was_never_shown_is_not_found(probe):
    (train, labels), (test, _) = clusters(0), clusters(1)
    assert probe(train, labels, test, np.full(len(test), 7)) == 0.0


def test_the_linear_probe_is_the_same_for_the_same_seed_and_learns_as_the_schedule_says():
    data = problem(0, n=50, m=300)
    first, again, other = (linear_probe(*data, steps=100, batch_size=16, lr=160.0, seed=i) for i in (0, 0, 1))
    assert first == again != other and first > 0.4
    assert linear_probe(*clusters(0), *clusters(1), steps=1, lr=1e-9) < 1.0, "hardly a step: nothing is learned"


x, y = np.zeros((3, 2)), np.zeros(3, np.int64)


@each_probe
@pytest.mark.parametrize(
    "data, sentence",
    [
        ((x[0], y, x, y), r"train_x must be features \(n, D\) and train_y labels .*, got shapes \(2,\) and \(3,\)"),
        ((x, y[:2], x, y), r"train_x must be .* got shapes \(3, 2\) and \(2,\)"),
        ((x, y, x[:0], y[:0]), r"test_x must be .* of at least one image, got shapes \(0, 2\) and \(0,\)"),
        ((x, y, x[:, :1], y), "train_x and test_x must have as many features, got 2 and 1"),
        ((x, y / 1, x, y), "train_y must be class numbers from 0 on, got float64 from 0.0 on"),
        ((x, y, x, y - 1), "test_y must be class numbers from 0 on, got int64 from -1 on"),
        ((x, y, x + np.nan, y), "test_x must be finite, got NaN or infinity"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_gets_a_sentence(probe, data, sentence):
    with pytest.raises(ValueError, match=sentence):
        probe(*data)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 4}, {"k": 1, "temperature": 0.0}])
def test_neighbours_that_there_are_not_get_a_sentence(options):
    with pytest.raises(ValueError, match=r"k must lie in 1 … 3, .*, and temperature be above 0, got"):
        knn(x, y, x, y, **options)


@pytest.mark.parametrize("probe", [ridge_probe, linear_probe])
def test_a_single_image_is_too_few(probe):
    with pytest.raises(ValueError, match=f"{probe.__name__} needs at least two training images, got 1"):
        probe(x[:1], y[:1], x, y)


def test_a_model_that_is_no_transformer_has_no_layers():
    with pytest.raises(ValueError, match="Linear has no layer 'norm'"):
        features(Linear(64, 2), batches(1))
