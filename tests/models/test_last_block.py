"""The last block computes only what the head reads: fewer tokens, the same numbers and the same gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.models import VisionTransformer
from minivit.nn import observe
from minivit.random import bookmark, sampling
from tests.models.test_vit import images, networks, small
from tests.nn.test_gradients import attentions, blocks, check_gradients, randomise
from tests.rules import cotangent
from tests.strategies import flags, generators


def close(actual, expected):
    """To rounding, of the largest number there is: single ones may be differences of much larger ones."""
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12 * max(1, abs(expected).max(initial=0)))


def run(function, module, x, samples=None):
    """Value and all gradients, with the masks of these samples, and how many layers have drawn."""
    module.zero_grad()
    image = Tensor(x, requires_grad=True)
    with sampling(0, 0, np.arange(len(x)) if samples is None else samples):
        y = function(image)
        count = bookmark()["count"]
    y.backward(cotangent(y.data))
    return [y.data, image.grad, *(p.grad for p in module.parameters())], count


def agree(short, full):
    assert short[1] == full[1], "another number of layers has drawn"
    for few, all_ in zip(short[0], full[0]):
        assert (few is None) == (all_ is None), "only the head's gradients may be missing, in both"
        if few is not None:
            close(few, all_)


class_token_networks = networks(class_token=True, global_pool="token")


@given(class_token_networks, flags, flags)
def test_logits_and_all_gradients_are_those_of_the_whole_network(drawn, training, fused):
    """Under all options: registers, qk_norm, LayerScale, every kind of dropping, no biases, with and without norms."""
    model, x = drawn
    for block in model.train(training).blocks:
        block.attn.fused_attn = fused
    samples = 7 + 3 * np.arange(len(x))
    short = run(model, model, x, samples)
    agree(short, run(lambda image: model.forward_head(model.forward_features(image)), model, x, samples))


@given(networks(), st.integers(1, 4), flags)
def test_the_encoder_gives_its_first_tokens_alone(drawn, keep, training):
    model, x = drawn
    model.train(training)
    short = run(lambda image: model.forward_features(image, keep=keep), model, x)
    assert short[0][0].shape[1] == min(keep, model.forward_features(x).shape[1])
    agree(short, run(lambda image: model.forward_features(image)[:, :keep], model, x))


@given(blocks(), st.integers(1, 4), flags, generators)
def test_a_block_that_keeps_some_tokens(drawn, keep, training, rng):
    block, x = drawn
    randomise(block.train(training), rng)
    short = run(lambda z: block(z, keep=keep), block, x)
    agree(short, run(lambda z: block(z)[:, :keep], block, x))


@given(attentions(), st.integers(1, 4), flags, generators)
def test_attention_of_some_queries(drawn, queries, training, rng):
    layer, x = drawn
    randomise(layer.train(training), rng)
    short = run(lambda z: layer(z, queries=queries), layer, x)
    agree(short, run(lambda z: layer(z)[:, :queries], layer, x))


@given(blocks(), st.integers(1, 3), flags, generators)
def test_gradients_of_a_block_that_keeps_some_tokens(drawn, keep, training, rng):
    block, x = drawn
    randomise(block.train(training), rng)
    whole = block.forward
    block.forward = lambda z: whole(z, keep=keep)
    assert check_gradients(block, x) <= 1e-7


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pool", ["token", "avg", "max", "avgmax", ""])
def test_for_other_pools_the_last_block_gives_all_tokens(pool, training):
    model, seen = small(global_pool=pool, reg_tokens=2).train(training), {}
    with observe(lambda layer, inputs, output: seen.update({id(layer): output.shape})):
        model(images())
    first, last = model.blocks
    assert seen[id(first)] == seen[id(first.mlp)] == (4, 9, 12)
    assert seen[id(last)] == seen[id(last.mlp)] == seen[id(last.norm2)] == (4, 1 if pool == "token" else 9, 12)
    assert seen[id(last.norm1)] == (4, 9, 12)
    assert seen[id(model.norm)] == seen[id(last)]


@pytest.mark.parametrize("pool", ["token", "avg", ""])
def test_without_blocks(pool):
    model = small(depth=0, global_pool=pool, reg_tokens=1)
    assert model.blocks == [] and model.forward_features(images()).shape == (4, 8, 12)
    agree(*(run(f, model, images()) for f in (model, lambda x: model.forward_head(model.forward_features(x)))))


@pytest.mark.parametrize("training", [True, False])
def test_dropout_of_attention_weights_draws_for_all_of_them(training):
    """A mask (H, N, N) for one row of N would have other numbers: while training, A is computed whole."""
    model, shapes = small(attn_drop_rate=0.5).train(training), []
    layer = model.blocks[-1].attn.attn_drop
    with observe(lambda part, inputs, output: shapes.append(output.shape) if part is layer else None):
        model(images())
    assert shapes == ([(4, 3, 7, 7)] if training else [])


@pytest.mark.parametrize("keep", [0, -1])
def test_less_than_one_token_gets_a_sentence(keep):
    with pytest.raises(ValueError, match=f"queries must be at least 1, got {keep}"):
        small().forward_features(images(), keep=keep)


def test_float32_stays_float32():
    model = VisionTransformer(8, 4, 1, 3, embed_dim=8, depth=2, num_heads=2)
    short, full = (
        run(f, model, images(1)[:, :, :, :8].astype(np.float32))[0]
        for f in (model, lambda x: model.forward_head(model.forward_features(x)))
    )
    for few, all_ in zip(short, full):
        assert few.dtype == all_.dtype == np.float32
        np.testing.assert_allclose(few, all_, rtol=1e-4, atol=1e-6 * abs(all_).max())
