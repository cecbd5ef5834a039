"""Which parameters get which rate and which decay in fine-tuning."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Parameter
from minivit.models import VisionTransformer
from minivit.optim import AdamW, FlatParameters, layer_decay_groups, weight_decay_groups


def network(depth=2, **options):
    return VisionTransformer(4, 2, 2, 3, embed_dim=8, depth=depth, num_heads=2, **options)


def rates(groups):
    """Of each parameter its rate and its decay."""
    return {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name, _ in group["params"]}


def test_a_network_of_two_blocks_by_hand():
    """With a decay of 0.75 the scales of facebookresearch/mae's ``lr_decay.py`` are 0.75³, 0.75², 0.75 and 1."""
    found = rates(layer_decay_groups(network(reg_tokens=1), 0.05, 0.75))
    in_a_block = {
        "norm1.weight": 0, "norm1.bias": 0, "attn.qkv.weight": 0.05, "attn.qkv.bias": 0, "attn.proj.weight": 0.05,
        "attn.proj.bias": 0, "norm2.weight": 0, "norm2.bias": 0, "mlp.fc1.weight": 0.05, "mlp.fc1.bias": 0,
        "mlp.fc2.weight": 0.05, "mlp.fc2.bias": 0,
    }  # fmt: skip
    first = {
        "cls_token": 0, "reg_token": 0, "pos_embed": 0, "patch_embed.proj.weight": 0.05, "patch_embed.proj.bias": 0
    }  # fmt: skip
    last = {"norm.weight": 0, "norm.bias": 0, "head.weight": 0.05, "head.bias": 0}
    expected = {name: (0.421875, decay) for name, decay in first.items()}
    expected |= {f"blocks.0.{name}": (0.5625, decay) for name, decay in in_a_block.items()}
    expected |= {f"blocks.1.{name}": (0.75, decay) for name, decay in in_a_block.items()}
    expected |= {name: (1.0, decay) for name, decay in last.items()}
    assert found == expected


def test_the_scales_of_twelve_blocks():
    """ViT-B: 0.65¹³ for the patches, 0.65¹² … 0.65 for the blocks, 1 for the head."""
    found = rates(layer_decay_groups(network(depth=12, global_pool="avg"), 0.05, 0.65))
    expected = {
        "patch_embed.proj.weight": 0.0036972, "blocks.0.mlp.fc1.weight": 0.0056880,
        "blocks.5.mlp.fc1.weight": 0.0490222, "blocks.9.mlp.fc1.bias": 0.274625, "blocks.10.mlp.fc1.bias": 0.4225,
        "blocks.11.mlp.fc1.bias": 0.65, "fc_norm.weight": 1.0, "head.weight": 1.0,
    }  # fmt: skip
    assert {name: found[name][0] for name in expected} == pytest.approx(expected, rel=1e-5)


@given(st.integers(1, 4), st.floats(0.1, 1.0), st.sampled_from([0.0, 0.05]), st.booleans())
def test_every_parameter_once_and_the_decay_as_ever(depth, layer_decay, weight_decay, pre_norm):
    model = network(depth, pre_norm=pre_norm, init_values=0.1, pos_embed="rel_bias")
    groups = layer_decay_groups(model, weight_decay, layer_decay)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    plain = {name: g["weight_decay"] for g in weight_decay_groups(model, weight_decay) for name, _ in g["params"]}
    assert {name: decay for name, (_, decay) in rates(groups).items()} == plain
    scales = [group["lr_scale"] for group in groups]
    assert scales == sorted(scales) and scales[-1] == 1.0
    assert FlatParameters(groups).data.size > 0


def test_the_optimizer_steps_by_these_rates():
    model = network()
    optimizer = AdamW(layer_decay_groups(model, 0.0, 0.5), eps=1e-30)
    optimizer.lr = 0.1
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    optimizer.flat.grad[...] = 1.0
    optimizer.step()
    moved = {name: float(np.abs(p.numpy() - before[name]).max()) for name, p in model.named_parameters()}
    expected = {
        "cls_token": 0.0125, "blocks.0.norm1.bias": 0.025, "blocks.1.norm1.bias": 0.05, "norm.bias": 0.1,
        "head.bias": 0.1,
    }  # fmt: skip
    assert {name: moved[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_a_fixed_table_is_left_out_by_the_optimizer():
    model = network(pos_embed="sincos_mae")
    optimizer = AdamW(layer_decay_groups(model, 0.05, 0.75))
    assert "pos_embed" not in optimizer.flat.parameters


@pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.1, float("nan")])
def test_a_decay_outside_its_range_gets_a_sentence(layer_decay):
    with pytest.raises(ValueError, match=rf"layer_decay must lie in \(0, 1\], got {layer_decay}"):
        layer_decay_groups(network(), 0.05, layer_decay)


def test_a_model_without_blocks_gets_a_sentence():
    class Model:
        def named_parameters(self):
            return iter([("head.weight", Parameter([[1.0]]))])

    with pytest.raises(ValueError, match="layer_decay is for a model with blocks, but no parameter of Model is in one"):
        layer_decay_groups(Model(), 0.05, 0.75)
