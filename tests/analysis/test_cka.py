"""CKA against its definitions, written out; its invariances; and what is left of it when a layer says nothing."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit.analysis import cka as the_function
from minivit.analysis import collect_features
from minivit.analysis.cka import KERNELS, HSICSums, centred, cka, features_cka, gram, hsic
from minivit.data import Batch
from minivit.models.layers import layers_of
from tests.models import test_resnet
from tests.models.test_vit import images, small
from tests.strategies import flags, generators

kernels = st.sampled_from(KERNELS)


@st.composite
def two_layers(draw, least=4):
    """Features of two layers that have something in common, (n, p) and (n, q)."""
    rng, n, p, q = draw(generators), draw(st.integers(least, 9)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    x = rng.standard_normal((n, p)) + rng.standard_normal(p)
    return x, np.tanh(x @ rng.standard_normal((p, q))) + 0.5 * rng.standard_normal((n, q))


def symmetric(rng, n):
    k = rng.standard_normal((n, n))
    return k + k.T


def batches(*sizes):
    return [Batch(images(n, seed=n).astype(np.float32), np.zeros(n, np.int64), np.arange(n)) for n in sizes]


def networks():
    return small(depth=3).astype(np.float32), test_resnet.small(in_chans=1).astype(np.float32)


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


# --- HSIC ----------------------------------------------------------------------------------------------------------


@given(generators, st.integers(4, 9))
def test_unbiased_hsic_is_the_formula_of_song(rng, n):
    k, l, ones = symmetric(rng, n), symmetric(rng, n), np.ones(n)
    k0, l0 = (x - np.diag(np.diag(x)) for x in (k, l))
    expected = np.trace(k0 @ l0) + (ones @ k0 @ ones) * (ones @ l0 @ ones) / ((n - 1) * (n - 2))
    expected -= 2 / (n - 2) * (ones @ k0 @ l0 @ ones)
    close(hsic(k, l), expected / (n * (n - 3)))


@given(generators)
@settings(max_examples=10)
def test_unbiased_hsic_is_a_mean_over_all_fours_of_images(rng):
    """The U-statistic: E k(x, x′) l(y, y′) + E k(x, x′) E l(y″, y‴) − 2 E k(x, x′) l(y, y″), all images different."""
    k, l = symmetric(rng, 6), symmetric(rng, 6)
    terms = [k[a, b] * (l[a, b] + l[c, d] - 2 * l[a, c]) for a, b, c, d in itertools.permutations(range(6), 4)]
    close(hsic(k, l), np.mean(terms))


@given(generators, st.integers(4, 6))
@settings(max_examples=10)
def test_only_unbiased_hsic_of_minibatches_has_the_mean_of_the_whole(rng, size):
    """The reason why small batches will do: over all batches there are, the mean is that of all images at once."""
    k, l = symmetric(rng, 7), symmetric(rng, 7)

    def mean(unbiased):
        chosen = [np.ix_(rows, rows) for rows in itertools.combinations(range(7), size)]
        return np.mean([hsic(k[rows], l[rows], unbiased) for rows in chosen])

    close(mean(True), hsic(k, l))
    assert abs(mean(False) - hsic(k, l, unbiased=False)) > 1e-6


@given(generators, st.integers(4, 9))
def test_biased_hsic_is_a_trace(rng, n):
    k, l, h = symmetric(rng, n), symmetric(rng, n), np.eye(n) - 1 / n
    close(hsic(k, l, unbiased=False), np.trace(k @ h @ l @ h) / (n - 1) ** 2)


@given(generators, st.integers(4, 9), flags)
def test_what_is_added_to_a_row_and_a_column_makes_no_difference(rng, n, unbiased):
    k, l, a = symmetric(rng, n), symmetric(rng, n), rng.standard_normal(n)
    close(centred(k + a[:, None] + a, unbiased), centred(k, unbiased))
    close(centred(k, unbiased).sum(1), 0)
    close(hsic(k + a[:, None] + a, l, unbiased), hsic(k, l, unbiased))


# --- Gram matrices -------------------------------------------------------------------------------------------------


@given(generators)
def test_a_linear_gram_matrix_is_of_centred_vectors(rng):
    x = rng.standard_normal((5, 2, 3))
    rows = x.reshape(5, 6) - x.reshape(5, 6).mean(0)
    close(gram(x), rows @ rows.T)
    assert gram(x.astype(np.float32)).dtype == np.float64


@given(generators, st.sampled_from([0.5, 1.0, 3.0]))
def test_an_rbf_gram_matrix_is_of_distances_in_units_of_their_median(rng, bandwidth):
    x = rng.standard_normal((6, 4))
    squares = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    median = np.median([squares[i, j] for i in range(6) for j in range(i)])
    close(gram(x, "rbf", bandwidth), np.exp(-squares / (2 * bandwidth**2 * median)) - 1)


def test_features_are_taken_in_parts(monkeypatch):
    x = np.random.default_rng(0).standard_normal((5, 10))
    expected = gram(x)
    monkeypatch.setitem(gram.__globals__, "COLUMNS", 4)
    close(gram(x), expected)


def test_where_most_images_are_the_same_an_rbf_tells_them_from_the_others():
    x = np.array([[1.0, 2.0]] * 6 + [[5.0, 2.0], [1.0, 8.0]])
    np.testing.assert_allclose(gram(x, "rbf")[0], [0, 0, 0, 0, 0, 0, -1, -1], atol=1e-6)


# --- CKA of features -----------------------------------------------------------------------------------------------


def test_independent_features_look_alike_to_the_biased_estimator_only():
    rng, sums = np.random.default_rng(0), {unbiased: HSICSums(unbiased) for unbiased in (True, False)}
    for _ in range(20):
        x, y = rng.standard_normal((2, 32, 512))
        for one in sums.values():
            one.add([gram(x)], [gram(y)])
    assert abs(sums[True].cka()[0, 0]) < 0.03
    assert sums[False].cka()[0, 0] > 0.9, "more batches do not help"


@given(two_layers())
def test_biased_linear_cka_is_the_formula_of_kornblith(drawn):
    x, y = (z - z.mean(0) for z in drawn)
    expected = np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    close(features_cka(*drawn, unbiased=False), expected)


@given(two_layers(), kernels, flags)
def test_a_layer_is_like_itself_and_no_two_are_more_alike(drawn, kernel, unbiased):
    x, y = drawn
    both = features_cka(x, y, kernel, unbiased), features_cka(y, x, kernel, unbiased)
    close(features_cka(x, x, kernel, unbiased), 1)
    close(*both)
    assert (-1 - 1e-9 if unbiased else 0) <= both[0] <= 1 + 1e-9


@given(two_layers(), generators, kernels, flags, st.sampled_from([1e-3, 1.0, 50.0]))
def test_rotations_scale_and_shifts_make_no_difference(drawn, rng, kernel, unbiased, scale):
    x, y = drawn
    rotation, _ = np.linalg.qr(rng.standard_normal((x.shape[1], x.shape[1])))
    moved = scale * x @ rotation + rng.standard_normal(x.shape[1])
    np.testing.assert_allclose(
        features_cka(moved, y, kernel, unbiased), features_cka(x, y, kernel, unbiased), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_other_linear_maps_make_a_difference(kernel):
    x = np.random.default_rng(0).standard_normal((20, 5))
    assert features_cka(x * [10, 1, 1, 1, 1], x, kernel) < 0.9


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("unbiased", [True, False])
def test_a_constant_layer_has_no_cka(kernel, unbiased):
    rng, sums = np.random.default_rng(0), HSICSums(unbiased)
    for _ in range(2):
        x = rng.standard_normal((8, 3))
        rounding = (1000 * (1 + 1e-7 * rng.standard_normal((8, 300)))).astype(np.float32)
        assert (rounding != 1000).any()
        layers = [gram(z, kernel) for z in (x, np.full((8, 300), 0.1), rounding)]
        sums.add(layers, layers[:2])
    np.testing.assert_array_equal(np.isnan(sums.cka()), [[False, True], [True, True], [True, True]])
    close(sums.cka()[0, 0], 1)


# --- CKA of networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("unbiased", [True, False])
def test_one_batch_is_the_whole(kernel, unbiased):
    (vit, resnet), given = networks(), batches(9)
    found = cka(vit, resnet, given, kernel=kernel, unbiased=unbiased, bandwidth=0.5)
    assert (found.layers_a, found.layers_b, found.images) == (layers_of(vit), layers_of(resnet), 9)
    a, b = (collect_features(model, given, pool="tokens").features for model in (vit, resnet))
    expected = [[features_cka(x, y, kernel, unbiased, 0.5) for y in b.values()] for x in a.values()]
    close(found.matrix, expected)


def test_of_several_batches_the_estimates_are_averaged_and_not_their_ratios():
    (vit, resnet), given = networks(), [Batch(images(6, seed), np.zeros(6), np.arange(6)) for seed in range(3)]
    given = [Batch(batch.images.astype(np.float32), *batch[1:]) for batch in given]
    found = cka(vit, resnet, given, ["blocks.1"], ["pooled"], pool="mean")
    k, l = (
        [gram(collect_features(model, [batch], [layer]).features[layer]) for batch in given]
        for model, layer in ((vit, "blocks.1"), (resnet, "pooled"))
    )
    both, own, theirs = (sum(map(hsic, *pair)) for pair in ((k, l), (k, k), (l, l)))
    close(found.matrix, both / np.sqrt(own * theirs))
    assert found.images == 18


def test_within_one_network():
    model, given = networks()[0], batches(8)
    found = cka(model, None, given)
    close(np.diag(found.matrix), 1)
    close(found.matrix, found.matrix.T)
    assert found.layers_a == found.layers_b == layers_of(model)
    close(cka(model, model, given).matrix, found.matrix)
    part = cka(model, None, given, ["norm", "blocks.0"], ["embedding"])
    close(part.matrix[:, 0], [found.matrix[-1, 0], found.matrix[1, 0]])
    other = cka(model, None, given, layers_b=["blocks.0"], pool={name: "class" for name in layers_of(model)})
    assert other.matrix.shape == (5, 1) and np.isnan(other.matrix[0, 0]), "the first class token is the same always"


def test_memory_does_not_grow_with_batches():
    rng, sums = np.random.default_rng(0), HSICSums()
    for _ in range(3):
        layers = [gram(rng.standard_normal((10, 4))) for _ in range(3)]
        sums.add(layers, layers[:2])
        assert sum(np.size(held) for held in vars(sums).values()) == 3 * 2 + 3 + 2 + 1


def test_a_smaller_last_batch_is_left_out():
    vit, resnet = networks()
    found, whole = (cka(vit, resnet, batches(*sizes)) for sizes in ((8, 5), (8,)))
    close(found.matrix, whole.matrix)
    assert found.images == 8


def test_networks_on_two_devices(gpu):
    given, (vit, resnet) = batches(6, 6), networks()
    expected = cka(vit, resnet, given, ["norm"], ["pooled"]).matrix
    there = networks()[0].to("cuda")
    np.testing.assert_allclose(
        cka(there, resnet, [batch.to("cuda") for batch in given], ["norm"], ["pooled"]).matrix, expected, rtol=1e-3
    )
    np.testing.assert_allclose(cka(resnet, there, given, ["pooled"], ["norm"]).matrix.T, expected, rtol=1e-3)


# --- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        (dict(kernel="cosine"), (), "kernel must be one of linear, rbf, got 'cosine'"),
        (dict(kernel="rbf", bandwidth=0.0), (), "bandwidth must be above 0, got 0.0"),
        (dict(layers_a=["layer1"]), (), "VisionTransformer has no layer 'layer1'"),
        (dict(layers_b=["blocks.0"]), (), "ResNet has no layer 'blocks.0'"),
        (dict(pool="max"), (), "pool must be one of"),
        ({}, (3,), "HSIC needs 4 images or more in each batch, got 3"),
        ({}, (5, 8), "batches must be of one size, only the last may be smaller, got 5, then 8 images"),
        ({}, (), r"there is nothing to look at \(CKA\): no images were given"),
    ],
)
def test_what_makes_no_sense_gets_a_sentence(options, sizes, message):
    with pytest.raises(ValueError, match=message):
        the_function(*networks(), batches(*sizes), **options)


def test_numbers_that_are_none_get_a_sentence():
    model = networks()[0]
    model.blocks[1].mlp.fc1.bias.data[...] = np.nan
    with pytest.raises(ValueError, match=r"layer 'blocks.1' gave NaN or infinity, of which there is no CKA"):
        cka(model, None, batches(5))


def test_arrays_that_do_not_fit_together_get_a_sentence():
    with pytest.raises(ValueError, match="x and y must be features of the same images, got 5 and 6"):
        features_cka(np.ones((5, 2)), np.ones((6, 2)))
    with pytest.raises(ValueError, match=r"k and l must be Gram matrices .*, got shapes \(5, 5\) and \(4, 4\)"):
        hsic(np.ones((5, 5)), np.ones((4, 4)))
