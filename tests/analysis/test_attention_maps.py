"""Attention maps against the definition, computed from the weights, and that looking changes nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import Tensor
from minivit.analysis import attention_maps, class_attention
from minivit.nn import Attention, Linear
from tests.models.test_vit import close, images, networks, small
from tests.nn.test_attention import one_head
from tests.strategies import flags


def fused_flags(model):
    return [block.attn.fused_attn for block in model.blocks]


@given(networks(attn_layer="softmax", pos_embed="learn"), flags)
def test_maps_are_softmax_of_queries_and_keys_layer_by_layer(drawn, training):
    """Computed by hand from the tokens that reach each layer; dropout plays no part in them."""
    model, x = drawn
    maps = attention_maps(model.train(training), x)
    model.eval()
    z = model.norm_pre(model.embed_positions(model.patch_embed(x)))
    assert len(maps) == len(model.blocks)
    for block, weights in zip(model.blocks, maps):
        tokens = block.norm1(z).data
        expected = np.stack([[one_head(block.attn, t, h)[0] for h in range(block.attn.num_heads)] for t in tokens])
        close(weights, expected)
        z = block(z)


@given(networks(attn_layer="softmax"), flags)
@settings(max_examples=20)
def test_rows_sum_to_one_and_nothing_is_negative(drawn, training):
    model, x = drawn
    for weights in attention_maps(model.train(training), x):
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-12)


def test_looking_leaves_every_layer_as_it_was():
    model = small(depth=3, drop_rate=0.1)
    model.blocks[1].attn.fused_attn = False
    model.blocks[1].eval()
    modes = [module.training for _, module in model.named_modules()]
    attention_maps(model, images())
    assert fused_flags(model) == [True, False, True]
    assert [module.training for _, module in model.named_modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_an_exception_leaves_every_layer_as_it_was():
    model = small()
    with pytest.raises(ValueError, match="images must have shape"):
        attention_maps(model, np.zeros((1, 1, 4, 4)))
    assert fused_flags(model) == [True, True]
    assert model.training and model.blocks[1].attn.training


def test_a_layer_on_its_own_will_do():
    layer, x = Attention(6, 2), np.random.default_rng(0).standard_normal((2, 5, 6)).astype(np.float32)
    (weights,) = attention_maps(layer, Tensor(x))
    assert weights.shape == (2, 2, 5, 5) and weights.dtype == np.float32
    np.testing.assert_allclose(weights[1, 1], one_head(layer, x[1], 1)[0], rtol=1e-5)


def test_a_model_without_attention_gets_a_sentence():
    with pytest.raises(ValueError, match="Linear has no attention layer"):
        attention_maps(Linear(2, 2), np.zeros((1, 2), np.float32))


@pytest.mark.parametrize("reg_tokens", [0, 3])
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("no_embed_class", [True, False])
def test_class_attention_is_the_class_tokens_row_over_the_patches_of_the_last_block(
    class_token, reg_tokens, no_embed_class
):
    model = small(class_token=class_token, reg_tokens=reg_tokens, no_embed_class=no_embed_class, global_pool="avg")
    prefix, x = class_token + reg_tokens, images()
    last = attention_maps(model, x)[-1]
    assert last.shape == (4, 3, prefix + 6, prefix + 6)
    seen = class_attention(model, x)
    assert seen.shape == (4, 3, 2, 3)  # a grid of 2 × 3 patches
    for b in range(4):
        for h in range(3):
            rows = last[b, h, :1] if class_token else last[b, h, prefix:]
            np.testing.assert_allclose(seen[b, h].ravel(), rows.mean(0)[prefix:], rtol=1e-12)


def test_maps_are_laid_out_as_the_image_is():
    """A network that looks where the image is bright: the bright patch is where the map is largest."""
    model, x = small(depth=1, pos_embed="none"), np.zeros((6, 1, 8, 12))
    for n in range(6):
        x[n, 0, n // 3 * 4 : n // 3 * 4 + 4, n % 3 * 4 : n % 3 * 4 + 4] = 1
    maps = class_attention(model, x)
    for n, heads in enumerate(maps):
        bright, others = heads[:, n // 3, n % 3], np.delete(heads.reshape(3, 6), n, axis=1)
        np.testing.assert_allclose(others, others[:, :1].repeat(5, 1), rtol=1e-12)
        assert (abs(bright - others[:, 0]) > 1e-3).all()


@given(st.integers(1, 5))
@settings(max_examples=5)
def test_one_map_a_layer_from_first_to_last(depth):
    model, x = small(depth=depth), images(2)
    maps = attention_maps(model, x)
    assert len(maps) == depth
    shorter = small(depth=depth + 1)
    shorter.load_state_dict(model.state_dict(), strict=False)
    for ours, theirs in zip(maps, attention_maps(shorter, x)):
        close(ours, theirs)
