"""The named configurations are the networks that carry these names elsewhere."""

import re

import numpy as np
import pytest

from minivit.models import VisionTransformer, create_model, list_models
from minivit.models.registry import FAMILIES, VIT
from minivit.ops.shape import pair

PARAMETERS = {  # timm's, and the book's
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_large_patch16_224": 304_326_632,
    "vit_huge_patch14_224": 632_045_800,  # with a head of 1,000 classes
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "vit_book": 12_715_402,
}
SIZES = {  # width, depth, heads
    "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16),
}  # fmt: skip
NAME = re.compile(r"(?:vit|deit)_(\w+)_patch(\d+)_(224|384)$")
VITS = list_models(VisionTransformer)
SMALL = [name for name in VITS if VIT[name]["img_size"] <= 32]


def empty(name):
    """With weights of zero, which cost nothing."""
    return create_model(name, weight_init="skip")


def test_numbers_of_parameters():
    assert {name: empty(name).num_parameters() for name in PARAMETERS} == PARAMETERS


@pytest.mark.parametrize("name", VITS)
def test_every_network_has_the_parts_that_its_configuration_says(name):
    model, c = empty(name), VIT[name]
    (h, w), (p, q) = pair(c["img_size"]), pair(c["patch_size"])
    patches, width, chans = (h // p) * (w // q), c["embed_dim"], c.get("in_chans", 3)
    hidden, classes = int(c.get("mlp_ratio", 4) * width), c.get("num_classes", 1000)
    attention = 4 * width * width + width + (3 * width if c.get("qkv_bias", True) else 0)
    block = 4 * width + attention + 2 * width * hidden + hidden + width
    embedding = chans * p * q * width + width + width + (patches + 1) * width
    assert model.num_parameters() == embedding + c["depth"] * block + 2 * width + classes * width + classes
    assert (len(model.blocks), model.blocks[-1].attn.num_heads) == (c["depth"], c["num_heads"])
    assert (model.patch_embed.img_size, model.patch_embed.patch_size) == ((h, w), (p, q))


@pytest.mark.parametrize("name", [name for name in VITS if NAME.match(name)])
def test_a_name_says_size_patch_and_image(name):
    size, patch, image = NAME.match(name).groups()
    c = VIT[name]
    assert (c["embed_dim"], c["depth"], c["num_heads"]) == SIZES[size]
    assert (c["patch_size"], c["img_size"]) == (int(patch), int(image))


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_run(name):
    model = create_model(name)
    images = np.random.default_rng(0).standard_normal((2, model.patch_embed.in_chans, *model.patch_embed.img_size))
    logits = model(images.astype(np.float32))
    assert logits.shape == (2, 10) and logits.dtype == np.float32
    assert (logits.data[0] != logits.data[1]).any() and np.isfinite(logits.data).all()


def test_the_books_network():
    model = empty("vit_book")
    tokens = model.forward_features(np.zeros((2, 3, 32, 32), np.float32))
    assert tokens.shape == (2, 5, 384)
    assert model.forward_head(tokens).shape == (2, 10)
    assert all(block.attn.qkv.bias is None and block.attn.proj.bias is not None for block in model.blocks)
    assert {block.norm1.eps for block in model.blocks} == {model.norm.eps} == {1e-5}
    assert VIT["vit_book"]["weight_init"] == "book"


def test_a_network_of_imagenet_runs():
    model = empty("deit_tiny_patch16_224")
    model.head.bias.data[...] = np.arange(1000)
    assert (model(np.zeros((1, 3, 224, 224), np.float32)).data == np.arange(1000)).all()


def test_overrides_replace_what_the_name_says():
    model = create_model("vit_nano_patch4_28", num_classes=3, in_chans=2, depth=1, img_size=(8, 12), global_pool="avg")
    assert model(np.zeros((1, 2, 8, 12), np.float32)).shape == (1, 3)
    assert len(model.blocks) == 1
    assert len(create_model("vit_nano_patch4_28").blocks) == VIT["vit_nano_patch4_28"]["depth"] != 1


def test_the_seed_is_an_override_too():
    first, again, other = (create_model("vit_nano_patch7_28", seed=seed).state_dict() for seed in (1, 1, 2))
    assert (first["head.weight"] == again["head.weight"]).all() and (first["head.weight"] != other["head.weight"]).any()


def test_models_are_listed_once_and_of_the_class_that_has_them():
    names = list_models()
    assert len(names) == len(set(names)) == sum(map(len, FAMILIES.values()))
    for family in FAMILIES:
        assert type(create_model(list_models(family)[-1], weight_init="skip")) is family


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit_tiny_patch16_244", "vit_tiny_patch16_224"),
        ("vit_bok", "vit_book"),
        ("swin", "vit_large_patch32_384"),
        ("resnet", "resnet50"),
    ],
)
def test_an_unknown_name_gets_those_near_it(name, near):
    with pytest.raises(ValueError, match=rf"there is no model '{name}'; perhaps .*{near}"):
        create_model(name)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="num_layers"):
        create_model("vit_book", num_layers=3)
