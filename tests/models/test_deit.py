"""The distillation token: a second class token with a head of its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import Tensor, ops
from minivit.models import VisionTransformer
from minivit.models.deit import CONFIGURATIONS, VisionTransformerDistilled
from minivit.models.registry import VIT
from minivit.nn import Identity, Module, observe
from minivit.optim import weight_decay_groups
from tests.models.test_last_block import agree, run
from tests.models.test_vit import close, images
from tests.nn.test_gradients import EPS, check_gradients, randomise
from tests.rules import cotangent
from tests.strategies import arrays, flags, generators

POSITIONS = ["learn", "none", "sincos_mae", "rel_bias", "rope_axial"]


def small(kind=VisionTransformerDistilled, **options):
    """A network of two blocks for images (1, 8, 12) in 2 × 3 patches."""
    options = dict(
        img_size=(8, 12), patch_size=4, in_chans=1, num_classes=5, embed_dim=12, depth=2, num_heads=3, norm_eps=EPS,
        weight_init="skip",
    ) | options  # fmt: skip
    return randomise(kind(**options), np.random.default_rng(0))


@st.composite
def networks(draw, **fixed):
    """A small network with drawn options, its weights in float64, and images for it, (B, C, H, W)."""
    rates = st.sampled_from([0.0, 0.4])
    options = dict(
        img_size=(2, 4), patch_size=2, in_chans=draw(st.integers(1, 2)), num_classes=draw(st.integers(0, 3)),
        embed_dim=8, num_heads=1, depth=draw(st.integers(1, 2)), mlp_ratio=0.5, norm_eps=EPS,
        pos_embed=draw(st.sampled_from(POSITIONS)), no_embed_class=draw(flags), reg_tokens=draw(st.integers(0, 2)),
        final_norm=draw(flags), fc_norm=draw(st.none() | flags), drop_rate=draw(rates), drop_path_rate=draw(rates),
        weight_init="skip",
    )  # fmt: skip
    model = randomise(VisionTransformerDistilled(**options | fixed), draw(generators))
    return model, draw(arrays((draw(st.integers(1, 3)), model.patch_embed.in_chans, 2, 4)))


class Both(Module):
    """The network, with both answers of training side by side in one Tensor, (B, 2 K)."""

    def __init__(self, model):
        self.model = model

    def forward(self, x):
        y = self.model(x)
        return ops.concatenate(*y, axis=-1) if isinstance(y, tuple) else y


# --- gradients -----------------------------------------------------------------------------------------------------


@given(networks(), flags)
@settings(max_examples=8)  # the rest of the network is that of test_vit.py
def test_gradients_through_images_and_every_parameter(drawn, training):
    model, x = drawn
    assert check_gradients(Both(model).train(training), x) <= 1e-7


@given(networks(), flags)
@settings(max_examples=25)
def test_the_last_block_computes_the_two_tokens_that_are_read(drawn, training):
    model, x = drawn
    model.train(training)
    both = Both(model)
    short, seen = run(both, model, x), []
    model.forward = lambda image: model.forward_head(model.forward_features(image))
    agree(short, run(both, model, x))
    del model.forward
    with observe(lambda part, inputs, output: seen.append(output.shape) if part is model.blocks[-1] else None):
        model(x)
    assert seen == [(len(x), 2, 8)]


def test_float32_stays_float32():
    model = small().astype(np.float32)
    y = Both(model)(images().astype(np.float32))
    y.backward(cotangent(y.data))
    assert {y.dtype, *(p.grad.dtype for p in model.parameters())} == {np.dtype(np.float32)}


def test_recomputation_changes_nothing():
    results = []
    for enable in (False, True):
        model = small(drop_path_rate=0.3)
        model.set_grad_checkpointing(enable)
        results.append(run(Both(model), model, images()))
    for plain, recomputed in zip(results[0][0], results[1][0]):
        np.testing.assert_array_equal(plain, recomputed)


# --- tokens and heads ----------------------------------------------------------------------------------------------


def test_tokens_are_class_distillation_registers_patches_plus_positions():
    model, x = small(reg_tokens=2), images()
    assert model.num_prefix_tokens == 4 and model.pos_embed.shape == (1, 4 + 6, 12)
    patches = model.patch_embed(x).data
    front = [token.data.repeat(len(x), 0) for token in (model.cls_token, model.dist_token, model.reg_token)]
    expected = np.concatenate([*front, patches], axis=1) + model.pos_embed.data
    np.testing.assert_array_equal(model.embed_positions(Tensor(patches)).data, expected)


@given(networks(drop_rate=0.0, drop_path_rate=0.0))
def test_each_head_reads_its_token_and_evaluation_averages_the_logits(drawn):
    model, x = drawn
    tokens = model.fc_norm(model.forward_features(x))
    logits, logits_dist = model.train()(x)
    close(logits.data, model.head(tokens[:, 0]).data)
    close(logits_dist.data, model.head_dist(tokens[:, 1]).data)
    close(model.eval()(x).data, (logits.data + logits_dist.data) / 2)


def test_the_two_tokens_are_of_one_kind():
    """With tokens, positions and heads exchanged, so are the answers; no part of the network knows which is which."""
    model, x = small(), images()
    logits, logits_dist = model(x)
    state = model.state_dict()
    state["cls_token"], state["dist_token"] = state["dist_token"], state["cls_token"]
    state["pos_embed"][:, [0, 1]] = state["pos_embed"][:, [1, 0]]
    for kind in ("weight", "bias"):
        state[f"head.{kind}"], state[f"head_dist.{kind}"] = state[f"head_dist.{kind}"], state[f"head.{kind}"]
    model.load_state_dict(state)
    exchanged_dist, exchanged = model(x)
    close(exchanged.data, logits.data)
    close(exchanged_dist.data, logits_dist.data)
    assert abs(logits.data - logits_dist.data).min() > 1e-6


def test_without_classes_the_heads_pass_their_tokens_on():
    model, x = small(num_classes=0), images()
    assert isinstance(model.head_dist, Identity)
    close(model.eval()(x).data, model.forward_features(x).data[:, :2].mean(1))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("no_embed_class", [True, False])
def test_another_image_size_keeps_the_places_of_both_tokens(position, no_embed_class):
    model = small(pos_embed=position, no_embed_class=no_embed_class)
    before = model.state_dict()
    model.set_input_size((16, 16))
    assert model.eval()(np.zeros((2, 1, 16, 16))).shape == (2, 5)
    if position == "learn":
        placed = 0 if no_embed_class else 2
        assert model.pos_embed.shape == (1, placed + 16, 12)
        np.testing.assert_array_equal(model.pos_embed.data[:, :placed], before["pos_embed"][:, :placed])


@pytest.mark.parametrize("pool", ["avg", "gap", "max", "avgmax", ""])
def test_other_pools_are_refused(pool):
    with pytest.raises(ValueError, match=rf'global_pool must be "token", .*; got {pool!r}'):
        small(global_pool=pool)


def test_a_class_token_is_needed():
    assert small(global_pool="cls").global_pool == "token"
    with pytest.raises(ValueError, match="class_token is False"):
        small(class_token=False)


# --- names, sizes, initial weights ---------------------------------------------------------------------------------


def test_a_state_dict_of_timm_fits():
    """Its names and shapes, in its order; PyTorch's state dicts need no order."""
    norms, kinds = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"), ("weight", "bias")
    blocks = [f"blocks.{i}.{layer}" for i in range(2) for layer in norms]
    layers = ["patch_embed.proj", *blocks, "norm", "head", "head_dist"]
    names = ["cls_token", "pos_embed", "dist_token", *[f"{layer}.{kind}" for layer in layers for kind in kinds]]
    model = small()
    state = model.state_dict()
    assert sorted(state) == sorted(names)
    assert state["pos_embed"].shape == (1, 8, 12) and state["dist_token"].shape == (1, 1, 12)
    other = small(weight_init="timm", seed=3)
    other.load_state_dict({name: state[name] for name in names})
    close(other.eval()(images()).data, model.eval()(images()).data)


@pytest.mark.parametrize(("size", "parameters"), [("tiny", 5_910_800), ("small", 22_436_432), ("base", 87_338_192)])
def test_numbers_of_parameters_are_timms(size, parameters):
    configuration = CONFIGURATIONS[f"deit_{size}_distilled_patch16_224"]
    assert VisionTransformerDistilled(**configuration, weight_init="skip").num_parameters() == parameters


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_is_that_of_its_namesake_without_the_token(name):
    plain = name.replace("deit_", "vit_").replace("_distilled", "")
    assert CONFIGURATIONS[name] == VIT[plain]


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name.endswith(("28", "32"))])
def test_small_networks_run(name):
    model = VisionTransformerDistilled(**CONFIGURATIONS[name]).eval()
    x = np.random.default_rng(0).standard_normal((2, model.patch_embed.in_chans, *model.patch_embed.img_size))
    logits = model(x.astype(np.float32))
    assert logits.shape == (2, 10) and (logits.data[0] != logits.data[1]).any()


@pytest.mark.parametrize("preset", ["timm", "jax", "moco", "book"])
def test_initial_weights_are_those_of_the_plain_network_and_the_tokens(preset):
    options = dict(embed_dim=384, reg_tokens=2, weight_init=preset, seed=1)
    plain = VisionTransformer(32, 16, num_classes=5, depth=1, num_heads=4, **options).state_dict()
    distilled = VisionTransformerDistilled(32, 16, num_classes=5, depth=1, num_heads=4, **options).state_dict()
    for name in plain.keys() - {"pos_embed"}:
        np.testing.assert_array_equal(distilled[name], plain[name])
    assert distilled["dist_token"].std() == pytest.approx(1.0 if preset == "book" else 0.02, rel=0.15)
    assert distilled.keys() - plain.keys() == {"dist_token", "head_dist.weight", "head_dist.bias"}
    assert bool(distilled["head_dist.weight"].any()) == (preset != "jax")


def test_weight_decay_leaves_the_token_alone():
    decayed, spared = weight_decay_groups(small(), 0.05)
    assert "dist_token" in dict(spared["params"]) and "head_dist.weight" in dict(decayed["params"])
