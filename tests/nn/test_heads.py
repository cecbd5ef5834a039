"""What is read of heads is what they computed, for every kind of attention, on both paths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.nn import Attention, Block, Linear
from minivit.nn.heads import attention_layers, composed_attention, observe_heads
from minivit.nn.lsa import LocalitySelfAttention
from minivit.nn.rela import RectifiedAttention
from tests.models.test_vit import images, small
from tests.nn.test_attention import one_head
from tests.nn.test_gradients import EPS, randomise, tokens
from tests.strategies import flags, generators

kinds = st.sampled_from([Attention, RectifiedAttention, LocalitySelfAttention])


def read(layer, x, weights, **options):
    seen = []
    with observe_heads(layer, lambda number, heads: seen.append(heads), weights):
        layer(Tensor(x), **options)
    (heads,) = seen
    return heads


@given(tokens(6), kinds, flags, flags, st.sampled_from([None, 1, 2]), generators)
def test_outputs_are_weights_times_values(x, kind, qkv_bias, qk_norm, queries, rng):
    layer = randomise(kind(6, 3, qkv_bias, qk_norm, norm_eps=EPS), rng)
    heads = read(layer, x, weights=True, queries=queries)
    (b, n, _), q = x.shape, min(queries or 4, x.shape[1])
    assert (heads.values.shape, heads.weights.shape, heads.outputs.shape) == ((b, 3, n, 2), (b, 3, q, n), (b, 3, q, 2))
    np.testing.assert_allclose(heads.outputs.data, heads.weights.data @ heads.values.data, rtol=1e-9, atol=1e-12)


@given(tokens(6), kinds, flags, st.sampled_from([None, 1]), generators)
def test_both_paths_say_the_same(x, kind, qk_norm, queries, rng):
    layer = randomise(kind(6, 2, True, qk_norm, norm_eps=EPS), rng)
    small_ops, fused = (read(layer, x, weights, queries=queries) for weights in (True, False))
    assert fused.weights is None
    np.testing.assert_allclose(fused.values.data, small_ops.values.data, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fused.outputs.data, small_ops.outputs.data, rtol=1e-9, atol=1e-12)


@given(tokens(6), generators)
def test_weights_and_outputs_are_those_of_the_definition(x, rng):
    layer = randomise(Attention(6, 2), rng)
    heads = read(layer, x, weights=True)
    for b, image in enumerate(x):
        for h in range(2):
            weights, outputs = one_head(layer, image, h)
            np.testing.assert_allclose(heads.weights.data[b, h], weights, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(heads.outputs.data[b, h], outputs, rtol=1e-9, atol=1e-12)


def test_layers_are_numbered_and_other_models_are_not_looked_at():
    model, other, seen = small(depth=3), small(depth=1), []
    with observe_heads(model, lambda number, heads: seen.append((number, heads.outputs.shape))):
        other(images())
        model(images())
    assert seen == [(0, (4, 3, 7, 4)), (1, (4, 3, 7, 4)), (2, (4, 3, 1, 4))]  # the last block: the class token alone
    assert attention_layers(model) == [block.attn for block in model.blocks]


def test_who_leaves_last_puts_the_layers_back():
    layer = Attention(4, 2)
    first, second = composed_attention(layer), composed_attention(layer)
    first.__enter__()
    second.__enter__()
    assert not layer.fused_attn
    first.__exit__(None, None, None)
    assert not layer.fused_attn
    second.__exit__(None, None, None)
    assert layer.fused_attn


def test_a_layer_that_was_not_fused_stays_so():
    block = Block(4, 2)
    block.attn.fused_attn = False
    with composed_attention(block), composed_attention(block):
        pass
    assert not block.attn.fused_attn


def test_what_has_no_heads_gets_a_sentence():
    with pytest.raises(ValueError, match="Linear has no attention layer"), observe_heads(Linear(2, 2), print):
        pass


def test_attention_that_shows_no_weights_gets_a_sentence():
    layer = Attention(4, 2)
    layer.weights = None
    layer.attend = lambda q, k, v: v
    with pytest.raises(RuntimeError, match="Attention computed no attention weights that could be read"):
        read(layer, np.zeros((1, 2, 4), np.float32), weights=True)
