"""Position embeddings in the whole network: where they are, what they know, and images of another size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import ops
from minivit.models import VisionTransformer
from minivit.models.vit import POSITIONS
from minivit.nn.position import RELATIVE, absolute_table, resize_pos_embed
from minivit.optim import AdamW
from tests.models.test_vit import networks

positions = pytest.mark.parametrize("position", POSITIONS)


def network(position, **options):
    """For images (1, 8, 12) in a grid of 2 × 3."""
    sizes = dict(img_size=(8, 12), patch_size=4, in_chans=1, num_classes=5, embed_dim=16, depth=2, num_heads=2)
    return VisionTransformer(**sizes | dict(pos_embed=position, reg_tokens=1) | options)


def images(height=8, width=12, count=3):
    return np.random.default_rng(0).standard_normal((count, 1, height, width)).astype(np.float32)


@positions
def test_the_order_of_patches_matters_unless_there_are_no_positions(position):
    model = network(position).eval()
    x = images()
    mirrored = x.reshape(3, 1, 8, 3, 4)[..., ::-1, :].reshape(x.shape)  # the columns of patches from right to left
    same = np.allclose(model(x).data, model(mirrored).data, atol=1e-6)
    assert same == (position == "none")


@positions
def test_another_size_is_one_call(position):
    model = network(position).eval()
    model.set_input_size((16, 20))
    assert model.patch_embed.grid_size == (4, 5)
    logits = model(images(16, 20))
    assert logits.shape == (3, 5) and np.isfinite(logits.data).all()
    fresh = network(position, img_size=(16, 20))
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in fresh.named_parameters()}
    with pytest.raises(ValueError, match=r"images must have shape \(B, 1, 16, 20\)"):
        model(images())


@positions
def test_the_same_size_again_changes_nothing(position):
    model, x = network(position).eval(), images()
    before = model(x).data
    model.set_input_size((8, 12))
    np.testing.assert_allclose(model(x).data, before, atol=1e-6)


@pytest.mark.parametrize("no_embed_class", [True, False])
def test_a_learned_table_is_resampled_and_a_fixed_one_made_anew(no_embed_class):
    prefix = 0 if no_embed_class else 2
    model = network("learn", no_embed_class=no_embed_class)
    table = model.pos_embed.data.copy()
    model.set_input_size((16, 20))
    np.testing.assert_array_equal(model.pos_embed.data, resize_pos_embed(table, (2, 3), (4, 5), prefix))
    assert model.pos_embed.requires_grad
    model = network("sincos_mae", no_embed_class=no_embed_class)
    model.set_input_size((16, 20))
    np.testing.assert_array_equal(model.pos_embed.data, absolute_table("sincos_mae", 16, (4, 5), prefix))


@pytest.mark.parametrize("position", [p for p in POSITIONS if p.startswith("sincos")])
def test_a_fixed_table_is_saved_but_neither_drawn_nor_trained(position):
    model = network(position, weight_init="book")
    table = absolute_table(position, 16, (2, 3), 2)
    assert (model.state_dict()["pos_embed"] == table).all()
    optimizer = AdamW(model.named_parameters(), lr=0.1)
    ops.cross_entropy(model(images()), np.array([0, 1, 2])).backward()
    optimizer.step()
    np.testing.assert_array_equal(model.pos_embed.data, table)


@pytest.mark.parametrize("position", RELATIVE)
def test_every_layer_has_relative_positions_of_its_own(position):
    model = network(position)
    assert model.pos_embed is None
    first, second = (dict(block.attn.rel_pos.named_parameters()) for block in model.blocks)
    assert all(first[name] is not second[name] for name in first)


@positions
@pytest.mark.parametrize("size", ["vit_tiny_patch16_224", "vit_base_patch16_224"])
def test_every_position_goes_with_the_sizes_of_the_registry(position, size):
    from minivit.models import create_model

    model = create_model(size, img_size=32, depth=1, num_classes=3, pos_embed=position, reg_tokens=4)
    assert model(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 3)


@given(networks(), st.integers(0, 2))
def test_the_last_block_may_still_compute_the_first_tokens_alone(drawn, extra):
    model, x = drawn
    model.eval()
    keep = min(1 + extra, model.num_prefix_tokens + model.patch_embed.num_patches)
    whole, part = model.forward_features(x), model.forward_features(x, keep=keep)
    np.testing.assert_allclose(part.data, whole.data[:, :keep], rtol=1e-9, atol=1e-11)


def test_heads_may_differ_by_block():
    model = network("rope_axial", num_heads=[1, 3], head_dim=8)
    assert [block.attn.qkv.weight.shape for block in model.blocks] == [(24, 16), (72, 16)]
    assert [block.attn.proj.weight.shape for block in model.blocks] == [(16, 8), (16, 24)]
    assert model(images()).shape == (3, 5)


@pytest.mark.parametrize("attn_layer", ["softmax", "rela", "lsa"])
@pytest.mark.parametrize("embed_layer", ["patch", "spt"])
def test_kinds_of_attention_and_of_patches_go_together(attn_layer, embed_layer):
    model = network("rel_shaw", attn_layer=attn_layer, embed_layer=embed_layer)
    loss = ops.cross_entropy(model(images()), np.array([0, 1, 2]))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
