"""``transfer.py``: the encoder of every kind of checkpoint, and the choice of the images that have labels."""

import argparse

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import no_grad
from minivit.data import Dataset
from minivit.models import create_model
from minivit.random import generator
from minivit.training import CheckpointError, save_checkpoint

SMALL = {"img_size": [16, 16], "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}
DECODER = {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}
KINDS = {
    "mae_nano_patch4_28": SMALL | DECODER | {"norm_pix_loss": True},
    "simmim_nano_patch4_28": SMALL,
    "vit_nano_patch4_28": SMALL | {"num_classes": 3},
}
each_kind = pytest.mark.parametrize("name", KINDS)


def write(path, name, arguments=None, **more):
    """A checkpoint as ``fit`` writes it, of random weights; the model."""
    arguments = KINDS[name] if arguments is None else arguments
    model = create_model(name, **arguments)
    rng = generator(1, "weights")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data[...] += 0.1 * rng.normal(size=parameter.shape)
    meta = {"model": name, "arguments": arguments, "mean": [0.2], "std": [0.5], "classes": ["a", "b", "c"]}
    save_checkpoint(path, model, meta=meta | more)
    return model


def images(count=3, size=16):
    return generator(0, "images").normal(size=(count, 1, size, size)).astype(np.float32)


def blank(labels, channels=1):
    return Dataset("blank", np.zeros((len(labels), channels, 2, 2), np.uint8), np.asarray(labels), list("abcdefghij"))


@each_kind
def test_the_encoder_says_what_it_said_before(name, tmp_path):
    from transfer import build, read_pretrained, take_encoder

    before = write(tmp_path / "last.npz", name)
    pretrained = read_pretrained(tmp_path / "last.npz")
    assert (pretrained.name, pretrained.img_size) == ("vit_nano_patch4_28", (16, 16))
    assert pretrained.training == ("labels" if name.startswith("vit") else "masked patches")
    model = build(pretrained, num_classes=5)
    take_encoder(model, pretrained)
    with no_grad():
        found, expected = (m.eval().forward_features(images()).numpy() for m in (model, before))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert model(images()).shape == (3, 5)


@each_kind
def test_another_pooling_has_a_norm_of_its_own_and_the_same_tokens_before_it(name, tmp_path):
    from transfer import build, read_pretrained, take_encoder

    before = write(tmp_path / "last.npz", name)
    pretrained = read_pretrained(tmp_path / "last.npz")
    model = build(pretrained, num_classes=5, global_pool="avg")
    take_encoder(model, pretrained)
    assert (model.fc_norm.weight.numpy() == 1).all()
    with no_grad():
        normalised = before.norm(model.eval().forward_features(images())).numpy()
        np.testing.assert_allclose(normalised, before.eval().forward_features(images()).numpy(), rtol=1e-4, atol=1e-4)


def test_from_avg_to_avg_the_norm_behind_the_pooling_is_taken(tmp_path):
    from transfer import build, read_pretrained, take_encoder

    arguments = SMALL | {"num_classes": 3, "global_pool": "avg"}
    before = write(tmp_path / "best.npz", "vit_nano_patch4_28", arguments)
    pretrained = read_pretrained(tmp_path / "best.npz")
    model = build(pretrained, num_classes=3, seed=4)
    take_encoder(model, pretrained)
    np.testing.assert_array_equal(model.fc_norm.weight.numpy(), before.fc_norm.weight.numpy())
    assert (model.head.weight.numpy() != before.head.weight.numpy()).all(), "the head is a new one"


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("mae_vit_huge_patch14", "vit_huge_patch14_224"),
        ("mae_cifar_patch4_32", "vit_cifar_patch4_32"),
        ("simmim_vit_base_patch16", "vit_base_patch16_224"),
    ],
)
def test_the_name_of_the_encoder(name, encoder):
    from transfer import encoder_name

    assert encoder_name(name) == encoder


@pytest.mark.parametrize(
    ("meta", "sentence"),
    [
        ({"model": "vit_noname"}, "last.npz is of vit_noname, but what is wanted is a Vision Transformer, or a masked"),
        ({"model": "deit_tiny_distilled_patch16_224"}, "last.npz is of deit_tiny_distilled_patch16_224, but what is"),
        ({"mean": None}, "last.npz does not say which network it is of, and of which images"),
    ],
)
def test_a_checkpoint_of_something_else_gets_a_sentence(meta, sentence, tmp_path):
    from transfer import read_pretrained

    model = create_model("vit_nano_patch4_28", **SMALL)
    meta = {"model": "vit_nano_patch4_28", "arguments": SMALL, "mean": [0.2], "std": [0.5]} | meta
    save_checkpoint(tmp_path / "last.npz", model, meta={key: value for key, value in meta.items() if value})
    with pytest.raises(CheckpointError, match=sentence):
        read_pretrained(tmp_path / "last.npz")


def test_weights_that_are_missing_or_of_another_shape_get_a_sentence(tmp_path):
    from transfer import build, read_pretrained, take_encoder

    write(tmp_path / "last.npz", "mae_nano_patch4_28")
    pretrained = read_pretrained(tmp_path / "last.npz")
    with pytest.raises(CheckpointError, match=r"does not fit vit_nano_patch4_28: missing blocks\.2\.norm1\.weight"):
        take_encoder(build(pretrained, depth=3), pretrained)
    with pytest.raises(CheckpointError, match=r"pos_embed is \(1, 17, 16\), expected \(1, 5, 16\)"):
        take_encoder(build(pretrained, patch_size=8), pretrained)


# --- images and labels ---------------------------------------------------------------------------------------------


def test_images_come_in_the_size_and_with_the_normalisation_of_the_pretraining(tmp_path):
    from transfer import load_images, read_pretrained

    path = tmp_path / "last.npz"
    arguments = SMALL | {"in_chans": 3, "num_classes": 3}
    write(path, "vit_nano_patch4_28", arguments, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    args = argparse.Namespace(dataset="shapes", data_dir="nowhere", size=None, train_images=20, seed=0)
    for size in (None, 24):
        args.size = size
        for data in load_images(args, read_pretrained(path)):
            assert data.images.shape[1:] == (3, size or 16, size or 16)
            assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_another_number_of_channels_gets_a_sentence(tmp_path):
    from transfer import as_pretrained_on, read_pretrained

    write(tmp_path / "last.npz", "vit_nano_patch4_28")
    with pytest.raises(
        ValueError, match=r"images of blank have 3 channels, those that .*last.npz was trained on had 1"
    ):
        as_pretrained_on(blank([0, 1], channels=3), read_pretrained(tmp_path / "last.npz"))


@given(st.integers(0, 2**32 - 1), st.integers(10, 100), st.integers(10, 100))
def test_as_many_of_each_class_and_more_labels_are_the_same_and_others(seed, few, many):
    from transfer import few_labels

    labels = generator(seed, "shuffled").permutation(np.arange(100) % 10)
    data = blank(labels)
    data.images[:, 0, 0, 0] = np.arange(100)
    chosen = {}
    for count in (few, many):
        found = few_labels(data, f"{count}", seed)
        each = np.bincount(found.labels, minlength=10)
        assert each.sum() == count and each.max() - each.min() <= 1
        numbers = found.images[:, 0, 0, 0]
        np.testing.assert_array_equal(found.labels, labels[numbers])
        chosen[count] = set(numbers.tolist())
        assert len(chosen[count]) == count
    assert chosen[min(few, many)] <= chosen[max(few, many)]


def test_another_seed_chooses_others_and_a_share_is_a_number():
    from transfer import few_labels

    data = blank(np.arange(100) % 10)
    data.images[:, 0, 0, 0] = np.arange(100)

    def numbers(labels, seed):
        return few_labels(data, labels, seed).images[:, 0, 0, 0].tolist()

    assert numbers("20%", 0) == numbers("20", 0) != numbers("20", 1)


def test_of_a_rare_class_all_are_taken():
    from transfer import few_labels

    data = Dataset("blank", np.zeros((20, 1, 2, 2), np.uint8), np.array([0] * 18 + [1, 1]), ["a", "b"])
    assert np.bincount(few_labels(data, "10", 0).labels).tolist() == [5, 2]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("many", "--labels must be a number, such as 600, or a share, such as 1%, got 'many'"),
        ("nan%", "--labels must be a number, .*, got 'nan%'"),
        ("inf%", "--labels must be a number, .*, got 'inf%'"),
        ("5", "--labels must be 10 to 30, at least one of each class, and no more than there are; got 5, which is 5"),
        ("200%", "--labels must be 10 to 30, .* got 200%, which is 60"),
    ],
)
def test_labels_that_cannot_be_get_a_sentence(labels, sentence):
    from transfer import few_labels

    with pytest.raises(ValueError, match=f"^{sentence}$"):
        few_labels(blank(np.arange(30) % 10), labels, 0)
