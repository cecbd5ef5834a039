"""Measures of heads: worked by hand, their bounds and invariances, and the means over a whole network."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit.analysis import attention_maps
from minivit.analysis.heads import (
    attention_distance,
    divergence,
    entropy,
    measure_heads,
    null_rows,
    similarity,
    sparsity,
)
from minivit.data import Batch
from minivit.diversity import mean_cosine
from minivit.models import MaskedAutoencoderViT, VisionTransformer
from minivit.models.mae import encoder_state
from minivit.models.pruning import prune_heads
from minivit.nn import observe
from minivit.nn.rela import RectifiedAttention
from tests.models.test_vit import images, networks, small
from tests.nn.test_gradients import randomise
from tests.strategies import arrays, flags, generators, sizes

nan = np.nan


def softmax(x):
    y = np.exp(x)
    return y / y.sum(-1, keepdims=True)


@st.composite
def maps(draw, rectified=False):
    """(B, H, N, N): rows of a softmax, or of a ReLU, some of which are null."""
    b, h, n = draw(st.tuples(sizes, sizes, st.integers(1, 6)))
    scores = 3 * draw(generators).standard_normal((b, h, n, n))
    return np.maximum(scores, 0) if rectified else softmax(scores)


any_maps = flags.flatmap(maps)


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


# --- by hand ---------------------------------------------------------------------------------------------------------


@given(maps())
def test_of_softmax_rows_all_measures_are_their_formulas(a):
    h = a.shape[1]
    s = -(a * np.log(a)).sum(-1)  # (B, H, N)
    mixture = a.mean(1)
    close(entropy(a), s.mean(-1))
    if h > 1:
        close(divergence(a), (-(mixture * np.log(mixture)).sum(-1) - s.mean(1)).mean(-1))
    assert not sparsity(a).any() and not null_rows(a).any()


def test_divergence_and_entropy_of_a_null_row_and_of_rows_that_do_not_sum_to_one():
    a = np.zeros((1, 3, 3, 4))
    a[0, 0, 0] = [2, 0, 0, 0]
    a[0, 1, 0] = [0, 0, 0.5, 0.5]  # token 0: two heads look, at different tokens; the third looks at nothing
    a[0, 2, 1] = [1, 1, 1, 1]  # token 1: one head; token 2: none
    close(divergence(a), [-0.5 * np.log(0.5) - 2 * 0.25 * np.log(0.25) - 0.5 * np.log(2)])
    close(entropy(a), [[0, np.log(2), np.log(4)]])
    close(null_rows(a), [[2 / 3, 2 / 3, 2 / 3]])
    close(sparsity(a), [[11 / 12, 10 / 12, 8 / 12]])


def test_heads_that_look_at_nothing_have_no_measure():
    a = np.zeros((1, 2, 3, 3))
    a[0, 1, 0, 0] = 1
    np.testing.assert_array_equal(divergence(a), [nan])
    np.testing.assert_array_equal(entropy(a), [[nan, 0]])
    np.testing.assert_array_equal(attention_distance(a, (1, 3), (4, 4)), [[nan, 0]])


def test_distances_of_a_grid_in_pixels():
    """2 × 3 patches of 4 × 5 pixels; the last token looks at the first, two to the left and one up."""
    a = np.zeros((1, 1, 6, 6))
    a[0, 0, 5, 0] = 0.25
    close(attention_distance(a, (2, 3), (4, 5)), [[np.hypot(4, 10)]])
    a[0, 0, 5, 5] = 0.25
    close(attention_distance(a, (2, 3), (4, 5)), [[np.hypot(4, 10) / 2]])
    a[0, 0, 1, 4] = 7
    close(attention_distance(a, (2, 3), (4, 5)), [[(np.hypot(4, 10) / 2 + 4) / 2]])


def test_distance_of_uniform_attention_and_of_none():
    centres = np.array([(4 * y, 4 * x) for y in range(2) for x in range(2)], float)
    mean = np.mean([np.linalg.norm(p - q) for p in centres for q in centres])
    close(attention_distance(np.full((1, 1, 4, 4), 0.25), (2, 2), (4, 4)), [[mean]])
    close(attention_distance(np.eye(4)[None, None], (2, 2), (4, 4)), [[0]])


def test_a_grid_that_does_not_fit_gets_a_sentence():
    with pytest.raises(ValueError, match=r"a grid of \(3, 3\) has 9 patches, but the weights are of shape \(1, 1, 4,"):
        attention_distance(np.ones((1, 1, 4, 4)), (3, 3), (4, 4))


def test_similarity_by_hand():
    o = np.zeros((2, 3, 2, 2))
    o[0, :, 0, 0] = [1, 2, -3]  # one pair agrees, two are opposite
    o[1, 0, 0, 0], o[1, 1, 1, 0], o[1, 2, 0, 1] = 1, 1, 1  # other tokens, other channels: orthogonal
    close(similarity(o), [-1 / 3, 0])
    np.testing.assert_array_equal(similarity(o[:, :1]), [nan, nan])


@given(st.tuples(*[sizes] * 4).filter(lambda shape: shape[1] > 1).flatmap(arrays))
def test_similarity_is_what_the_penalty_lowers(o):
    close(similarity(o).mean(), mean_cosine.raw(o, include_diagonal=False)[0])


# --- bounds and invariances ------------------------------------------------------------------------------------------


@given(any_maps)
def test_bounds(a):
    h, n = a.shape[1], a.shape[3]
    for value, largest in (
        (divergence(a), np.log(h)), (entropy(a), np.log(n)), (sparsity(a), 1), (null_rows(a), 1),
        (attention_distance(a, (1, n), (4, 2)), 2 * (n - 1)),
    ):  # fmt: skip
        value = value[~np.isnan(value)]
        assert (value >= -1e-12).all() and (value <= largest + 1e-12).all()
    assert (null_rows(a) <= sparsity(a)).all()


@given(any_maps, generators)
def test_the_order_of_heads_and_the_size_of_weights_make_no_difference(a, rng):
    order, grid = rng.permutation(a.shape[1]), (a.shape[2], 1)
    close(divergence(a[:, order] * 3), divergence(a))
    for measure in (entropy, sparsity, null_rows, lambda a: attention_distance(a, grid, (4, 4))):
        close(measure(a[:, order] * 3), measure(a)[:, order])


@given(any_maps, generators)
def test_the_order_of_tokens_matters_for_distances_only(a, rng):
    order = rng.permutation(a.shape[2])
    mixed = a[:, :, order][..., order]
    for measure in (entropy, sparsity, null_rows, divergence):
        close(measure(mixed), measure(a))


@pytest.mark.parametrize("heads", [2, 5])
def test_divergence_reaches_its_bounds(heads):
    same = np.broadcast_to(softmax(np.random.default_rng(0).standard_normal((2, 1, 5, 5))), (2, heads, 5, 5))
    close(divergence(same), 0)
    apart = np.zeros((1, heads, 5, 5))
    apart[0, range(heads), :, range(heads)] = 1
    close(divergence(apart), np.log(heads))


@given(maps(), st.integers(0, 2), generators)
def test_prefix_tokens_have_no_distance(a, prefix, rng):
    n = a.shape[2]
    larger = rng.uniform(0.1, 1, (*a.shape[:2], n + prefix, n + prefix))
    larger[..., prefix:, prefix:] = a
    close(attention_distance(larger, (1, n), (4, 4)), attention_distance(a, (1, n), (4, 4)))


@given(any_maps)
def test_turning_the_grid_turns_nothing_else(a):
    n = a.shape[2]
    close(attention_distance(a, (1, n), (3, 8)), attention_distance(a, (n, 1), (8, 3)))


# --- a whole network -------------------------------------------------------------------------------------------------


def batches(x, size):
    pieces = [x[i : i + size] for i in range(0, len(x), size)]
    return [Batch(piece, np.zeros(len(piece), int), np.arange(len(piece))) for piece in pieces]


def same(one, other):
    for a, b in zip(one, other):
        for x, y in zip(a, b):
            close(x, y)


@given(networks(attn_layer="softmax"), flags)
@settings(max_examples=20)
def test_a_network_is_measured_layer_by_layer_with_all_tokens_in_evaluation_mode(drawn, training):
    model, x = drawn
    measured = measure_heads(model.train(training), batches(x, len(x)))
    grid, patch = model.patch_embed.grid_size, model.patch_embed.patch_size
    for i, a in enumerate(attention_maps(model, x)):
        close(measured.divergence[i], divergence(a).mean())
        close(measured.sparsity[i], sparsity(a).mean(0))
        close(measured.null_rows[i], null_rows(a).mean(0))
        close(measured.entropy[i], entropy(a).mean(0))
        close(measured.distance[i], attention_distance(a, grid, patch).mean(0))
    assert model.training == training


def test_similarity_is_of_what_the_projection_is_given():
    model, x, seen = small(), images(), {}
    with observe(lambda part, inputs, output: seen.update({id(part): inputs[0].data})):
        model.eval().forward_features(x)
    measured = measure_heads(model, batches(x, 4)).similarity
    for value, block in zip(measured, model.blocks):
        outputs = seen[id(block.attn.proj)].reshape(4, 7, 3, 4).swapaxes(1, 2)
        close(value, similarity(outputs).mean())


@pytest.mark.parametrize("size", [1, 3, 7])
def test_how_images_are_cut_into_batches_makes_no_difference(size):
    model, x = small(), images(7)
    same(measure_heads(model, batches(x, size)), measure_heads(model, batches(x, 7)))


def test_rectified_attention_has_zeros_and_null_rows_and_their_means_leave_nan_out():
    model, x = small(), images(6)
    for block in model.blocks:
        block.attn = randomise(RectifiedAttention(12, 3), np.random.default_rng(1))
    model.blocks[0].attn.qkv.bias.data[:24] = 0
    model.blocks[0].attn.qkv.weight.data[:4] = 0  # no queries: the first head looks at nothing
    measured = measure_heads(model, batches(x, 4))
    assert measured.null_rows[0][0] == measured.sparsity[0][0] == 1
    assert np.isnan(measured.entropy[0][0]) and np.isfinite(measured.entropy[0][1:]).all()
    assert np.isfinite(measured.divergence).all() and np.isfinite(measured.similarity).all()
    assert all((0.1 < layer).all() and (layer <= 1).all() for layer in measured.sparsity)


def test_layers_may_differ_in_heads():
    model, x = small(), images()
    pruned = measure_heads(prune_heads(model, {0: [1]}), batches(x, 4))
    assert [len(layer) for layer in pruned.entropy] == [2, 3]
    close(pruned.entropy[0], measure_heads(model, batches(x, 4)).entropy[0][[0, 2]])


def test_of_a_masked_autoencoder_the_encoder_is_measured_as_the_classifier_of_its_weights():
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 12, "depth": 2, "num_heads": 3}
    decoder = {"decoder_embed_dim": 8, "decoder_depth": 2, "decoder_num_heads": 2}
    rng = np.random.default_rng(0)
    autoencoder = randomise(MaskedAutoencoderViT(**sizes, **decoder), rng)
    model = VisionTransformer(**sizes, num_classes=2, pos_embed="sincos_mae")
    model = model.astype(np.float64)
    model.load_state_dict(encoder_state(autoencoder), strict=False)
    batch = Batch(rng.standard_normal((3, 1, 8, 8)), np.zeros(3, int), np.arange(3))
    found, expected = (measure_heads(m, [batch], progress=False) for m in (autoencoder, model))
    assert len(found.similarity) == len(found.entropy) == 2
    for a, b in zip(found, expected):
        np.testing.assert_allclose(np.stack(a), np.stack(b), rtol=1e-6)
