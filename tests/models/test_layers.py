"""Layers by name: which there are, in their order, and what each of them gives."""

import numpy as np
import pytest
from hypothesis import given, settings

from minivit import Tensor, ops
from minivit.models import MaskedAutoencoderViT, VisionTransformerDistilled
from minivit.models.layers import EMBEDDING, POOLED, find_layers, layers_of, observe_layers
from minivit.nn import Linear
from tests.models import test_resnet
from tests.models.test_vit import close, images, networks, small


def read(model, layers, x):
    seen = {}
    with observe_layers(model, layers, seen.__setitem__):
        model(x)
    return {layer: x.data for layer, x in seen.items()}


@pytest.mark.parametrize(
    ("model", "last"),
    [
        (small(), "norm"),
        (small(global_pool="avg"), POOLED),  # there norm is after pooling
        (small(final_norm=False), POOLED),
        (MaskedAutoencoderViT(8, 4, 1, 8, 2, 2, 8, 2, 2), "norm"),
        (VisionTransformerDistilled(8, 4, 1, 3, embed_dim=8, depth=2, num_heads=2), "norm"),
    ],
)
def test_the_layers_of_a_transformer(model, last):
    assert layers_of(model) == [EMBEDDING, "blocks.0", "blocks.1", last]


def test_of_a_norm_that_adds_a_branch_first_the_norm_is_seen():
    """The second norm of a block, which gives the sum z′ as well."""
    model, x = small(), images()
    seen = read(model, ["embedding", "blocks.0.attn", "blocks.0.norm2", "blocks.0.mlp", "blocks.0"], x)
    block, z = model.blocks[0], seen["embedding"] + seen["blocks.0.attn"]
    close(seen["blocks.0.norm2"], block.norm2(Tensor(z)).data)
    close(seen["blocks.0"], z + seen["blocks.0.mlp"])


def test_the_layers_of_a_resnet():
    model = test_resnet.small(layers=(2, 1))
    assert layers_of(model) == [EMBEDDING, "layer1.0", "layer1.1", "layer2.0", POOLED]


@settings(max_examples=10)
@given(networks())
def test_the_layers_of_a_transformer_run_in_that_order(drawn):
    model, x = drawn
    assert list(read(model.eval(), layers_of(model), x)) == layers_of(model)


@settings(max_examples=10)
@given(networks())
def test_states_without_a_module_are_what_the_next_module_is_given(drawn):
    model, x = drawn
    seen = read(model.eval(), [EMBEDDING, POOLED], x)
    close(seen[EMBEDDING], model.norm_pre(model.embed_positions(model.patch_embed(x))).data)
    close(seen[POOLED], model.fc_norm(model.pool(model.forward_features(x))).data)


@settings(max_examples=5)
@given(test_resnet.networks())
def test_the_states_of_a_resnet(drawn):
    model, x = drawn
    model.eval()
    seen = read(model, layers_of(model), x)
    close(seen[EMBEDDING], ops.relu(model.bn1(model.conv1(Tensor(x)))).data)
    close(seen["layer1.0"], model.layer1[0](Tensor(seen[EMBEDDING])).data)
    close(seen[POOLED], model.forward_features(x).data.mean((2, 3)))
    close(seen[POOLED] @ model.fc.weight.data.T + model.fc.bias.data, model(x).data)


def test_any_module_has_a_name():
    model, x = small().eval(), images()
    seen = read(model, ["blocks.1.mlp.fc1", "patch_embed", "head"], x)
    close(seen["patch_embed"], model.patch_embed(x).data)
    close(seen["head"], model(x).data)
    assert seen["blocks.1.mlp.fc1"].shape == (4, 1, 48), "the head reads one token, and so no more are computed"


def test_layers_that_are_not_there_get_a_sentence():
    model = small()
    with pytest.raises(ValueError, match=r"VisionTransformer has no layer 'block.1'; perhaps blocks.1, blocks.0"):
        find_layers(model, ["norm", "block.1"])
    with pytest.raises(ValueError, match="has no layer 'embeding'; perhaps embedding"):
        find_layers(model, ["embeding"])
    with pytest.raises(ValueError, match=r"has no layer 'zzz'; perhaps patch_embed, .*, norm, .*, head$"):
        find_layers(model, ["zzz"])
    with pytest.raises(ValueError, match=r"Linear has no layer 'embedding'$"):
        find_layers(Linear(2, 2), [EMBEDDING])
    with pytest.raises(ValueError, match="Linear has neither blocks nor stages, so its layers must be named"):
        layers_of(Linear(2, 2))


def test_names_that_are_no_list_of_names_get_a_sentence():
    with pytest.raises(TypeError, match=r"layers must be a list of names, got the string 'norm': write \['norm'\]"):
        find_layers(small(), "norm")
    with pytest.raises(ValueError, match="layers must be the names of one layer or more, got none"):
        find_layers(small(), [])


def test_a_layer_that_did_not_run_gets_a_sentence():
    with pytest.raises(ValueError, match=r"VisionTransformer did not run its layer 'blocks.0.attn.attn_drop'"):
        read(small(), ["norm", "blocks.0.attn.attn_drop"], images())


def test_an_error_inside_comes_out_as_it_is():
    with pytest.raises(ValueError, match="images must have shape"):
        read(small(), ["head"], np.zeros((1, 1, 4, 4)))
