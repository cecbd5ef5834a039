"""The whole network: its gradients under all options, its shapes, and the invariances of its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import Tensor, no_grad
from minivit.models import VisionTransformer
from minivit.models.vit import POSITIONS
from minivit.nn import DropPath, Identity, LayerNorm, observe
from minivit.random import sampling
from tests.nn.test_gradients import ACTIVATIONS, EPS, check_gradients, randomise
from tests.nn.test_patch_embed import windows
from tests.rules import cotangent
from tests.strategies import arrays, flags, generators, sizes

POOLS = ["token", "avg", "max", "avgmax", ""]


@st.composite
def networks(draw, **fixed):
    """A small network with drawn options, its weights in float64, and images for it, (B, C, H, W)."""
    grid, patch = draw(st.tuples(st.integers(1, 3), st.integers(1, 2))), draw(st.tuples(*[st.integers(1, 3)] * 2))
    heads, class_token = draw(st.integers(1, 2)), draw(flags)
    position, rates = fixed.get("pos_embed") or draw(st.sampled_from(POSITIONS)), st.sampled_from([0.0, 0.4])
    options = dict(
        img_size=(grid[0] * patch[0], grid[1] * patch[1]),
        patch_size=patch,
        in_chans=draw(sizes),
        num_classes=draw(st.integers(0, 3)),
        global_pool=draw(st.sampled_from(POOLS if class_token else POOLS[1:])),
        embed_dim=heads * (draw(st.integers(2, 3)) if position in ("learn", "none") else 8),
        depth=draw(st.integers(1, 2)),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from([0.5, 2.0])),
        qkv_bias=draw(flags),
        qk_norm=draw(flags),
        init_values=draw(st.sampled_from([None, 0.1])),
        class_token=class_token,
        pos_embed=position,
        attn_layer=draw(st.sampled_from(["softmax", "rela", "lsa"])),
        no_embed_class=draw(flags),
        reg_tokens=draw(st.integers(0, 2)),
        pre_norm=draw(flags),
        final_norm=draw(flags),
        fc_norm=draw(st.none() | flags),
        drop_rate=draw(rates),
        pos_drop_rate=draw(rates),
        proj_drop_rate=draw(rates),
        attn_drop_rate=draw(rates),
        drop_path_rate=draw(rates),
        act=draw(st.sampled_from(ACTIVATIONS)),
        norm_eps=EPS,
        weight_init="skip",
    )
    model = randomise(VisionTransformer(**options | fixed), draw(generators))
    return model, draw(arrays((draw(st.integers(1, 3)), model.patch_embed.in_chans, *model.patch_embed.img_size)))


def small(**options):
    """A network of two blocks for images (1, 8, 12) in 2 × 3 patches."""
    options = dict(
        img_size=(8, 12), patch_size=4, in_chans=1, num_classes=5, embed_dim=12, depth=2, num_heads=3, norm_eps=EPS,
    ) | options  # fmt: skip
    return randomise(VisionTransformer(**options, weight_init="skip"), np.random.default_rng(0))


def images(batch=4, seed=1):
    """For ``small``."""
    return np.random.default_rng(seed).standard_normal((batch, 1, 8, 12))


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


def trained(model):
    """All Parameters, without a table that is fixed."""
    return [p for p in model.parameters() if p.requires_grad]


# --- gradients -----------------------------------------------------------------------------------------------------


@settings(max_examples=15)  # its ops and layers have tests of their own
@given(networks(), flags)
def test_gradients_through_images_and_every_parameter(drawn, training):
    model, x = drawn
    assert check_gradients(model.train(training), x) <= 1e-7


@given(networks(), flags)
def test_fused_and_composed_attention_agree_in_value_and_all_gradients(drawn, training):
    model, x = drawn
    results = []
    for fused in (True, False):
        for block in model.train(training).blocks:
            block.attn.fused_attn = fused
        model.zero_grad()
        image = Tensor(x, requires_grad=True)
        with sampling(0, 0, np.arange(len(x))):
            y = model(image)
        y.backward(cotangent(y.data))
        results.append([y.data, image.grad, *(p.grad for p in trained(model))])
    for fused, composed in zip(*results):
        close(fused, composed)


@given(networks())
def test_float32_stays_float32_in_the_output_and_in_all_gradients(drawn):
    model, x = drawn
    y = model.astype(np.float32)(x.astype(np.float32))
    y.backward(cotangent(y.data))
    assert {y.dtype, *(p.grad.dtype for p in trained(model))} == {np.dtype(np.float32)}


# --- shapes --------------------------------------------------------------------------------------------------------


@given(networks())
def test_the_number_of_tokens_and_the_shape_of_the_output(drawn):
    model, x = drawn
    prefix = (model.cls_token is not None) + (0 if model.reg_token is None else model.reg_token.shape[1])
    tokens, width = prefix + model.patch_embed.num_patches, model.blocks[0].norm1.weight.size
    outputs = width if isinstance(model.head, Identity) else len(model.head.weight)
    assert model.num_prefix_tokens == prefix
    features = model.forward_features(x)
    assert features.shape == (len(x), tokens, width)
    expected = (len(x), tokens, outputs) if model.global_pool == "" else (len(x), outputs)
    assert model.forward_head(features).shape == expected


@given(networks(pos_drop_rate=0, proj_drop_rate=0, attn_drop_rate=0, drop_path_rate=0, drop_rate=0))
def test_forward_is_the_encoder_and_the_head_and_no_grad_changes_nothing(drawn):
    model, x = drawn
    y = model(x).data
    close(model.forward_head(model.forward_features(x)).data, y)
    with no_grad():
        np.testing.assert_array_equal(model(Tensor(x)).data, y)


# --- what goes through the blocks ----------------------------------------------------------------------------------


def test_tokens_are_class_registers_patches_plus_positions():
    model, x = small(reg_tokens=2), images()
    patches = model.patch_embed(x).data
    front = np.concatenate([model.cls_token.data, model.reg_token.data], axis=1).repeat(len(x), 0)
    expected = np.concatenate([front, patches], axis=1) + model.pos_embed.data
    np.testing.assert_array_equal(model.embed_positions(Tensor(patches)).data, expected)


def test_with_no_embed_class_only_patches_have_positions():
    model, x = small(reg_tokens=2, no_embed_class=True), images()
    assert model.pos_embed.shape == (1, 6, 12)
    patches = model.patch_embed(x).data
    z = model.embed_positions(Tensor(patches)).data
    np.testing.assert_array_equal(z[:, :1], model.cls_token.data.repeat(len(x), 0))
    np.testing.assert_array_equal(z[:, 1:3], model.reg_token.data.repeat(len(x), 0))
    np.testing.assert_array_equal(z[:, 3:], patches + model.pos_embed.data)


@given(networks())
def test_with_nothing_at_the_end_of_its_branches_a_network_is_its_embedding_and_its_head(drawn):
    """Pre-norm: nothing stands between what goes into the residual stream and what the head reads of it."""
    model, x = drawn
    for block in model.eval().blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            for p in layer.parameters():
                p.data[...] = 0
    z = model.norm_pre(model.embed_positions(model.patch_embed(x)))
    np.testing.assert_array_equal(model.forward_features(x).data, model.norm(z).data)
    close(model(x).data, model.forward_head(model.norm(z)).data)


def test_the_head_reads_the_chosen_tokens():
    z = np.random.default_rng(0).standard_normal((4, 3 + 6, 12))  # class token, two registers, six patches
    average, largest = z[:, 3:].mean(1), z[:, 3:].max(1)
    expected = {"token": z[:, 0], "avg": average, "max": largest, "avgmax": (average + largest) / 2, "": z}
    assert sorted(expected) == sorted(POOLS)
    for pool, pooled in expected.items():
        model = small(global_pool=pool, reg_tokens=2)
        close(model.pool(Tensor(z)).data, pooled)
        close(model.forward_head(Tensor(z)).data, model.head(model.fc_norm(Tensor(pooled))).data)


@pytest.mark.parametrize(("alias", "pool"), [("cls", "token"), ("gap", "avg")])
def test_pools_have_a_second_name(alias, pool):
    assert small(global_pool=alias).global_pool == pool
    np.testing.assert_array_equal(small(global_pool=alias)(images()).data, small(global_pool=pool)(images()).data)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("fc_norm", [None, True, False])
@pytest.mark.parametrize("final_norm", [True, False])
def test_there_is_one_norm_before_pooling_or_after_it(pool, fc_norm, final_norm):
    model = small(global_pool=pool, fc_norm=fc_norm, final_norm=final_norm)
    after = pool in ("avg", "max", "avgmax") if fc_norm is None else fc_norm
    assert isinstance(model.norm, LayerNorm) == (final_norm and not after)
    assert isinstance(model.fc_norm, LayerNorm) == (final_norm and after)


def test_layers_run_in_timms_order():
    model, seen = small(pre_norm=True, drop_rate=0.1, pos_drop_rate=0.1), []
    parts = {id(module): name for name, module in vars(model).items()} | {id(block): "block" for block in model.blocks}
    with observe(lambda module, inputs, output: seen.append(parts.get(id(module)))):
        model(images())
    encoder = ["patch_embed", "pos_drop", "norm_pre", "block", "block", "norm"]
    assert list(filter(None, seen)) == [*encoder, "fc_norm", "head_drop", "head"]


def test_pre_norm_puts_a_norm_in_front_and_leaves_out_the_bias_before_it():
    model = small(pre_norm=True)
    assert isinstance(model.norm_pre, LayerNorm) and model.patch_embed.proj.bias is None
    assert isinstance(small().norm_pre, Identity) and small().patch_embed.proj.bias is not None


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_drop_path_grows_linearly_from_nothing_in_the_first_block(depth):
    model = small(depth=depth, drop_path_rate=0.2)
    rates = [(block.drop_path1.p, block.drop_path2.p) for block in model.blocks]
    assert all(isinstance(block.drop_path1, DropPath) for block in model.blocks)
    np.testing.assert_allclose(rates, np.stack([np.linspace(0, 0.2, depth)] * 2, 1), atol=1e-15)


def test_options_reach_the_layers():
    model = small(
        norm_eps=0.25, drop_rate=0.1, pos_drop_rate=0.2, proj_drop_rate=0.3, attn_drop_rate=0.4, qk_norm=True,
        init_values=0.5, mlp_ratio=2.0, qkv_bias=False, act="relu", pre_norm=True,
    )  # fmt: skip
    block = model.blocks[1]
    assert {n.eps for _, n in model.named_modules() if isinstance(n, LayerNorm)} == {0.25}
    assert (model.head_drop.p, model.pos_drop.p) == (0.1, 0.2)
    assert (block.attn.proj_drop.p, block.mlp.drop1.p, block.mlp.drop2.p, block.attn.attn_drop.p) == (
        0.3,
        0.3,
        0.3,
        0.4,
    )
    assert isinstance(block.attn.q_norm, LayerNorm) and block.attn.qkv.bias is None
    assert block.ls1.gamma.size == 12 and block.mlp.fc1.weight.shape == (24, 12) and block.mlp.act == "relu"


# --- invariances ---------------------------------------------------------------------------------------------------


def with_patches_moved(x, patch_size, order):
    """The images with their patches in another order."""
    moved, places = np.empty(x.shape), windows(x, patch_size)
    for (_, at), source in zip(places, order):
        moved[at] = x[places[source][1]]
    return moved


@given(networks(pos_embed="none"), generators)
def test_without_positions_the_order_of_patches_makes_no_difference(drawn, rng):
    """The encoder treats patches as a set: its patch tokens move with them, and what the head reads stays."""
    model, x = drawn
    prefix, patches = model.num_prefix_tokens, model.eval().patch_embed.num_patches
    order = rng.permutation(patches)
    moved = with_patches_moved(x, model.patch_embed.patch_size, order)
    tokens = np.concatenate([np.arange(prefix), prefix + order])
    close(model.forward_features(moved).data, model.forward_features(x).data[:, tokens])
    if model.global_pool:
        close(model(moved).data, model(x).data)


def test_with_positions_the_order_of_patches_matters():
    model, x = small(), images()
    assert abs(model(with_patches_moved(x, (4, 4), [1, 0, 2, 3, 4, 5])).data - model(x).data).min() > 1e-6


@given(networks(), generators)
def test_images_of_a_batch_do_not_see_one_another(drawn, rng):
    model, x = drawn
    order = rng.permutation(len(x))
    close(model.eval()(x[order]).data, model(x).data[order])
    close(model(x[:1]).data, model(x).data[:1])


@given(networks(), st.integers(0, 99), st.integers(0, 3))
def test_while_training_a_batch_is_its_pieces_one_after_another(drawn, first, cut):
    """Dropout and drop-path draw by the index of the image in the data set, so the cut makes no difference."""
    model, x = drawn
    samples, pieces = first + np.arange(len(x)), []
    with sampling(0, 5, samples):
        whole = model(x).data
    for piece in np.split(np.arange(len(x)), [min(cut, len(x))]):
        if len(piece):
            with sampling(0, 5, samples[piece]):
                pieces.append(model(x[piece]).data)
    close(np.concatenate(pieces), whole)


def test_what_is_dropped_changes_with_the_step_and_never_in_evaluation():
    rates = dict.fromkeys(["drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"], 0.5)
    model, x, outputs = small(**rates), images(), []
    for step in (0, 1, 0):
        with sampling(0, step, np.arange(len(x))):
            outputs.append(model(x).data)
    assert (outputs[0] != outputs[1]).all() and (outputs[0] == outputs[2]).all()
    np.testing.assert_array_equal(model.eval()(x).data, small()(x).data)


def test_each_kind_of_dropping_does_something():
    x = images(20)
    for rate in ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
        with sampling(0, 0, np.arange(20)):
            assert (small(**{rate: 0.5})(x).data != small()(x).data).any(), rate


# --- names, saving, loading ----------------------------------------------------------------------------------------

BLOCK = [
    f"{layer}.{kind}"
    for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
]


def test_names_are_timms_in_timms_order():
    patch = ["patch_embed.proj.weight", "patch_embed.proj.bias"]
    blocks = [f"blocks.{i}.{name}" for i in range(2) for name in BLOCK]
    head = ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert list(small().state_dict()) == ["cls_token", "pos_embed", *patch, *blocks, *head]


def test_names_of_the_other_options_are_timms_too():
    norms = [f"attn.{x}_norm.{kind}" for x in "qk" for kind in ("weight", "bias")]
    block = [*BLOCK[:4], *norms, *BLOCK[4:6], "ls1.gamma", *BLOCK[6:], "ls2.gamma"]
    front = ["cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "norm_pre.weight", "norm_pre.bias"]
    end = ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    model = small(depth=1, qk_norm=True, init_values=0.1, reg_tokens=2, pre_norm=True, global_pool="avg")
    assert list(model.state_dict()) == [*front, *[f"blocks.0.{name}" for name in block], *end]


@given(networks())
def test_a_loaded_network_computes_the_same(drawn):
    model, x = drawn
    state = model.eval().state_dict()
    y = model(x).data
    for p in model.parameters():
        p.data[...] = 0
    model.load_state_dict(state)
    np.testing.assert_array_equal(model(x).data, y)


def test_a_state_of_another_network_is_described_and_changes_nothing():
    model, other = small(depth=1), small(embed_dim=24, num_classes=5)
    before = model.state_dict()
    with pytest.raises(ValueError) as caught:
        model.load_state_dict(other.state_dict())
    message = str(caught.value)
    assert message.startswith("state does not fit VisionTransformer: unexpected blocks.1.norm1.weight, ")
    assert "; cls_token is (1, 1, 24), expected (1, 1, 12); " in message
    assert "head.weight is (5, 24), expected (5, 12)" in message and "head.bias" not in message
    assert all((value == before[name]).all() for name, value in model.state_dict().items())


def test_the_same_seed_gives_the_same_network():
    first, again, other = (VisionTransformer(8, 4, embed_dim=8, depth=1, num_heads=2, seed=seed) for seed in (1, 1, 2))
    x = np.ones((1, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(first(x).data, again(x).data)
    assert (first(x).data != other(x).data).any()


def test_repr_shows_shapes_and_counts():
    model = small()
    lines = repr(model).splitlines()
    assert lines[0] == f"VisionTransformer(): {model.num_parameters():,} parameters"
    assert "  cls_token: (1, 1, 12)" in lines
    assert f"  blocks.0 … blocks.1: Block(): {model.blocks[0].num_parameters():,} parameters" in lines
    assert "      qkv: Linear(): 468 parameters" in lines
    assert "        weight: (36, 12)" in lines
