"""Features against a pass by hand, block after block; streamed, in one piece, and what cannot be read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import Tensor
from minivit.analysis.features import POOLS, collect_features, read_batch, read_features
from minivit.data import Batch, Dataset, Loader
from minivit.models import MaskedAutoencoderViT, VisionTransformerDistilled
from minivit.models.layers import layers_of
from minivit.nn import Identity, Linear, Module
from tests.devices import cupy
from tests.models import test_resnet, test_vit
from tests.models.test_vit import networks


def close(x, y):
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def small(**options):
    return test_vit.small(**options).astype(np.float32)


def images(batch=4, seed=1):
    return test_vit.images(batch, seed).astype(np.float32)


def batches(*sizes):
    return [Batch(images(n, seed=n), np.arange(n) % 5, np.arange(n)) for n in sizes]


class Convolutional(Module):
    """No blocks, no ``forward_features``: any Module will do where its layers are named."""

    def __init__(self):
        self.layer, self.pair = Identity(), Pair()
        self.fc = Linear(1, 3)

    def forward(self, x):
        x = self.layer(Tensor(x))
        self.pair(x)
        return self.fc(x.mean(axis=(2, 3)))


class Pair(Module):
    def forward(self, x):
        return x, x


# --- what is read --------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(networks(), st.booleans())
def test_of_a_transformer_all_tokens_of_every_block_are_read(drawn, training):
    """All of them, though a head that reads the class token makes the whole model compute no other in the end."""
    model, x = drawn
    model.train(training)
    read = {pool: read_batch(model, x, ["embedding", "blocks.0", f"blocks.{len(model.blocks) - 1}"], pool)
            for pool in ("tokens", "mean")}  # fmt: skip
    assert model.training == training, "the mode is as it was before"
    model.eval()
    z, prefix = model.norm_pre(model.embed_positions(model.patch_embed(x))), model.num_prefix_tokens
    expected = {"embedding": z.data}
    for i, block in enumerate(model.blocks):
        z = block(z)
        expected[f"blocks.{i}"] = z.data
    for layer, tokens in read["tokens"].items():
        close(tokens, expected[layer])
        close(read["mean"][layer], expected[layer][:, prefix:].mean(1))
        if model.cls_token is not None:
            close(read_batch(model, x, [layer], "class")[layer], expected[layer][:, 0])


@settings(max_examples=5)
@given(test_resnet.networks())
def test_of_a_resnet_maps_and_their_means_are_read(drawn):
    model, x = drawn
    read, layers = read_batch(model, x, ["layer1.0", "layer2.0", "pooled"]), layers_of(model)
    model.eval()
    maps = model.forward_features(x).data
    close(read["layer2.0"], maps)
    assert read["layer1.0"].shape == (len(x), model.layer1[0].expansion * 2, 5, 6)
    means = read_batch(model, x, layers, "mean")
    assert list(means) == layers
    close(means["layer2.0"], maps.mean((2, 3)))
    close(read["pooled"], means["layer2.0"])  # a vector already: there is nothing to pool
    close(means["pooled"], means["layer2.0"])


def test_each_layer_may_be_pooled_in_its_own_way():
    model, x = small(reg_tokens=2), images(3)
    whole = read_batch(model, x, ["blocks.0", "blocks.1", "norm", "head"])
    read = read_batch(
        model, x, [*whole], {"blocks.0": "mean", "blocks.1": "tokens", "norm": "class", "head": "mean", "no": "matter"}
    )
    close(read["blocks.0"], whole["blocks.0"][:, 3:].mean(1))
    close(read["blocks.1"], whole["blocks.1"])
    close(read["norm"], whole["norm"][:, 0])
    close(read["head"], whole["norm"][:, 0] @ model.head.weight.data.T + model.head.bias.data)


def test_before_there_are_prefix_tokens_the_mean_is_over_all():
    model, x = small(reg_tokens=2), images(3)
    close(read_batch(model, x, ["patch_embed"], "mean")["patch_embed"], model.patch_embed(x).data.mean(1))


@pytest.mark.parametrize(
    "model",
    [
        MaskedAutoencoderViT((8, 12), 4, 1, 8, 2, 2, 8, 2, 2),
        VisionTransformerDistilled((8, 12), 4, 1, 3, embed_dim=8, depth=2, num_heads=2),
        small(global_pool="avg", class_token=True),
    ],
)
def test_all_layers_of_any_transformer(model):
    for pool in POOLS:
        read = read_batch(model, images(2), layers_of(model), pool)
        assert list(read) == layers_of(model) and all(len(x) == 2 for x in read.values())


def test_any_module_will_do():
    x = images(3)
    read = read_batch(Convolutional(), x, ["layer", "fc"], "mean")
    close(read["layer"], x.mean((2, 3)))
    assert read["fc"].shape == (3, 3)


def test_features_hold_no_more_memory_than_they_are():
    read = read_batch(small(), images(), ["norm", "blocks.0"], {"norm": "class", "blocks.0": "mean"})
    assert all(x.base is None for x in read.values())


def test_what_is_made_of_features_takes_their_place_one_layer_after_another():
    model, x, order = small(), images(), []

    def largest(layer, features):
        order.append(layer)
        return features.max()

    read = read_batch(model, x, ["norm", "embedding", "blocks.0"], then=largest)
    assert order == ["embedding", "blocks.0", "norm"] and list(read) == ["norm", "embedding", "blocks.0"]
    assert read["norm"] == read_batch(model, x, ["norm"])["norm"].max()


def test_features_of_a_model_on_a_gpu_come_to_the_host(gpu):
    pools = {"embedding": "tokens", "blocks.1": "mean", "norm": "class"}
    there, (batch,) = small().to("cuda"), batches(3)
    read = read_batch(there, batch.to("cuda").images, [*pools], pools)
    expected = read_batch(small(), batch.images, [*pools], pools)
    assert isinstance(there.head.weight.data, cupy().ndarray)
    for layer, features in expected.items():
        assert isinstance(read[layer], np.ndarray)
        np.testing.assert_allclose(read[layer], features, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="the images are on cpu, the model is on cuda:0"):
        read_batch(there, batch.images, [*pools], pools)


# --- over a data set -----------------------------------------------------------------------------------------------


def test_streamed_and_in_one_piece_they_are_the_same():
    model, given = small(depth=3), batches(3, 2)
    stream = list(read_features(model, given, pool="mean"))
    found = collect_features(model, given)
    assert list(found.features) == layers_of(model) and found.labels.tolist() == [0, 1, 2, 0, 1]
    for layer, features in found.features.items():
        np.testing.assert_array_equal(np.concatenate([read[layer] for read in stream]), features)
    close(stream[1]["norm"], read_batch(model, given[1].images, ["norm"], "mean")["norm"])


def test_a_loader_gives_its_first_epoch():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 12)).astype(np.uint8)
    dataset = Dataset("noise", pixels, np.arange(5), list("abcde"))
    found = collect_features(small(), Loader(dataset, 2, shuffle=False), ["norm"], "class", progress=False)
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    close(found.features["norm"], read_batch(small(), dataset.normalise(pixels), ["norm"], "class")["norm"])


def test_between_two_batches_the_model_is_as_it_was():
    model = small(drop_rate=0.1)
    stream = read_features(model, batches(2, 2), ["norm"])
    next(stream)
    assert model.training and model.blocks[0].training
    assert model(images(2)).requires_grad


# --- what cannot be read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [read_features, collect_features])
def test_wrong_names_get_a_sentence_before_any_image_is_loaded(function):
    def nothing():
        raise AssertionError("a batch was asked for")
        yield

    for layers, pool, message in [
        (["block.0"], "mean", "VisionTransformer has no layer 'block.0'; perhaps blocks.0"),
        (["norm"], "max", "pool must be one of tokens, class, mean, got 'max' for layer 'norm'"),
        (["norm", "head"], {"norm": "mean"}, "pool must be one of tokens, class, mean, got None for layer 'head'"),
        ([], "mean", "layers must be the names of one layer or more, got none"),
    ]:
        with pytest.raises(ValueError, match=message):
            function(small(), nothing(), layers, pool)


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        (
            small(),
            "patch_embed",
            r"no class token in what layer 'patch_embed' of VisionTransformer gives, of shape \(2, 6",
        ),
        (
            small(class_token=False, reg_tokens=1, global_pool="avg"),
            "blocks.0",
            "no class token in what layer 'blocks.0'",
        ),
        (
            test_resnet.small(in_chans=1),
            "layer1.0",
            "no class token in what layer 'layer1.0' of ResNet gives, of shape",
        ),
    ],
)
def test_a_class_token_that_there_is_not_gets_a_sentence(model, layer, message):
    with pytest.raises(ValueError, match=message):
        read_batch(model, images(2), [layer], "class")


def test_what_is_no_array_of_features_gets_a_sentence():
    with pytest.raises(
        ValueError, match="layer 'pair' of Convolutional gives a tuple, which is not an entry for each of 4"
    ):
        read_batch(Convolutional(), images(), ["pair"])


def test_a_layer_that_does_not_run_gets_a_sentence():
    with pytest.raises(ValueError, match="MaskedAutoencoderViT did not run its layer 'decoder_embed'"):
        read_batch(
            MaskedAutoencoderViT(8, 4, 1, 8, 1, 2, 8, 1, 2), np.zeros((1, 1, 8, 8), np.float32), ["decoder_embed"]
        )


def test_no_images_get_a_sentence():
    for function in (lambda: list(read_features(small(), [])), lambda: collect_features(small(), [])):
        with pytest.raises(ValueError, match=r"there is nothing to look at \(features\): no images were given"):
            function()
