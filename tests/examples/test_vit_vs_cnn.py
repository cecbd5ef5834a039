"""``vit_vs_cnn.py``: pairs of networks from start to end, what is measured of them, and what is concluded and drawn."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minivit.analysis.cka import features_cka
from minivit.analysis.features import read_batch
from minivit.data import Dataset
from minivit.models import create_model
from minivit.training import load_model, predict, save_checkpoint
from tests.data.test_idx import write_set
from tests.examples import check_picture, fails, run

JOB = {
    "dataset": "shapes", "data_dir": "data", "size": 16, "train_images": 200, "test_images": 20, "epochs": 1,
    "conflict": None,
}  # fmt: skip
NAMES = {"vit": "vit_nano_patch8_32", "cnn": "resnet8"}


@pytest.fixture
def versus():
    import vit_vs_cnn

    return vit_vs_cnn


def checkpoint(path, name, data, **changes):
    """An untrained network for these images, as a training run leaves it; ``changes`` of what it says of them."""
    channels, *size = data.images.shape[1:]
    arguments = {"img_size": size, "in_chans": channels, "num_classes": len(data.classes), "seed": 3}
    known = {"classes": data.classes, "mean": data.mean, "std": data.std} | changes
    save_checkpoint(path, create_model(name, **arguments), meta={"model": name, "arguments": arguments, **known})
    return str(path)


@pytest.fixture
def pair(versus, tmp_path):
    """A job for ``measure``: two untrained networks for small shapes."""
    train_set, _ = versus.load_sets(JOB)
    return JOB | {kind: checkpoint(tmp_path / f"{kind}.npz", name, train_set) for kind, name in NAMES.items()}


# --- from start to end ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_of_it_and_once_more_from_its_files(tmp_path, versus, monkeypatch, capsys):
    write_set(tmp_path / "data" / "mnist", train=260)
    arguments = ("--dataset", "mnist", "--epochs", 1, "--seeds", 2, "--test-images", 10)
    code, out, err = run("vit_vs_cnn.py", *arguments, cwd=tmp_path)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "vit_vs_cnn-mnist"
    kept = [f"{name}-260-1-{seed}" for name in ("resnet8", "vit_nano_patch7_28") for seed in range(2)]
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "page.png", *kept]
    check_picture(folder / "page.png")

    last = json.loads(out.splitlines()[-1])
    said = {"example": "vit_vs_cnn", "dataset": "mnist", "cnn": "resnet8", "train_images": 260, "epochs": 1, "seeds": 2}
    assert {name: last[name] for name in said} == said
    assert not any("bias" in name or "conflict" in name for name in last)
    assert np.shape(last["cka_both"]) == (len(last["layers_vit"]), len(last["layers_cnn"])) == (5, 4)
    held = re.findall(r"^  (It held|It did not hold): ", out, re.MULTILINE)
    assert len(held) == sum(name.startswith("held_") for name in last)
    assert held.count("It held") == sum(value for name, value in last.items() if name.startswith("held_"))

    records = [json.loads(path.read_text()) for path in (folder / "figures").iterdir()]
    for kind, name in {"vit": "vit_nano_patch7_28", "cnn": "resnet8"}.items():
        trained = [one["figures"]["accuracy"] for one in records if one["job"].get("model") == name]
        measured = [one["figures"][f"accuracy_{kind}"] for one in records if kind in one["job"]]
        assert sorted(trained) == pytest.approx(sorted(measured)) and len(measured) == 2
        assert last[f"accuracy_{kind}"] == pytest.approx(np.mean(trained))
    for one in records:  # pairs are of the same seed
        if "vit" in one["job"]:
            assert one["job"]["vit"][-10:] == one["job"]["cnn"][-10:]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(versus, "train_one", None)  # nothing is left to do
    monkeypatch.setattr(versus, "measure", None)
    monkeypatch.setattr(versus, "draw", lambda *args: None)
    again = versus.main([*map(str, arguments)])
    assert json.loads(json.dumps(again)) | {"seconds": 0} == last | {"seconds": 0}


def test_two_checkpoints_are_measured_without_training(versus, pair, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(versus, "sweep", None)
    monkeypatch.setattr(versus, "draw", lambda table, setting, path: drawn.append(path))
    size = ("--size", "16", "--train-images", "200", "--test-images", "20")
    files = ("--vit", pair["vit"], "--cnn", pair["cnn"], "--run-dir", str(tmp_path / "both"))
    last = versus.main([*size, *files])
    assert drawn == [tmp_path / "both" / "page.png"] and drawn[0].parent.is_dir()
    assert (last["seeds"], last["epochs"], last["vit"]) == (1, None, pair["vit"])
    assert "This was one pair of networks: ± 0 is not their spread" in capsys.readouterr().out
    assert last["accuracy_vit_sd"] == 0 and np.max(last["cka_cnn_sd"]) == 0
    assert last["start_cka_vit"] == last["cka_vit"]  # as nothing was learned
    assert 0 <= last["coverage_vit"] <= 1 and len(last["bias_by_class_cnn"]) == 10
    json.dumps(last, allow_nan=False)


# --- what is measured ----------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_two_networks(versus, pair):
    found = versus.measure(pair)
    assert json.loads(json.dumps(found)) == found
    _, test_set = versus.load_sets(pair)
    images, features = test_set.normalise(test_set.images), {}
    for kind in NAMES:
        model, _ = load_model(pair[kind])
        layers = versus.states(model)
        features[kind] = [x.reshape(20, -1) for x in read_batch(model, images, layers).values()]
        assert found[f"accuracy_{kind}"] == np.mean(predict(model, images).argmax(1) == test_set.labels)
        assert np.shape(found[f"few_shot_{kind}_mean"]) == (len(layers), 4)
    for a, b, name in (("vit", "vit", "vit"), ("cnn", "cnn", "cnn"), ("vit", "cnn", "both")):
        expected = [[features_cka(x, y) for y in features[b]] for x in features[a]]
        np.testing.assert_allclose(found[f"cka_{name}"], expected, rtol=1e-4, atol=1e-4)
    assert found["few_shot_vit_class"][0] == [0.1] * 4  # before the first block it is the same for all images
    assert np.shape(found["distance"]) == (4, 4) and found["distance"] == found["start_distance"]


def test_no_layer_is_counted_twice(versus):
    assert versus.states(create_model("resnet8")) == ["embedding", "layer1.0", "layer2.0", "layer3.0"]
    assert versus.states(create_model("vit_nano_patch7_28"))[-1] == "blocks.3"


def test_the_start_is_that_of_the_same_training(versus, tmp_path):
    train_set, _ = versus.load_sets(JOB)
    path = checkpoint(tmp_path / "vit.npz", NAMES["vit"], train_set)
    began, loaded = versus.untrained(path), load_model(path)[0]
    np.testing.assert_array_equal(began.head.weight.numpy(), loaded.head.weight.numpy())


def test_shapes_agree_with_textures_in_training_and_only_then_conflict(versus):
    train_set, test_set = versus.load_sets(JOB)
    conflict, members = versus.load_conflict(JOB, train_set)
    for data in (train_set, test_set):
        np.testing.assert_array_equal(data.labels, data.extra["texture"])
    assert (conflict.labels != conflict.extra["texture"]).all()
    np.testing.assert_array_equal(conflict.labels, test_set.labels)
    assert (conflict.images != test_set.images).any((1, 2, 3)).all()
    assert members == {name: [i] for i, name in enumerate(train_set.classes)}
    assert test_set.mean == train_set.mean and conflict.classes == train_set.classes


def test_answers_are_counted_by_the_cue_that_they_name(versus, monkeypatch):
    shape, texture = np.arange(6) % 3, (np.arange(6) + 1) % 3
    data = Dataset("odd", np.zeros((6, 1, 8, 8), np.uint8), shape, list("abc"), extra={"texture": texture})
    answers = {"vit": np.array([0, 1, 2, 0, 2, 1]), "cnn": np.array([0, *texture[1:]])}
    monkeypatch.setattr(versus, "predict", lambda model, images: np.eye(3)[answers[model]])
    found = versus.cues({"vit": "vit", "cnn": "cnn"}, data, {"a": [0], "b": [1], "c": [2]})
    assert (found["bias_vit"], found["coverage_vit"]) == (4 / 5, 5 / 6)
    assert (found["bias_by_class_vit"], found["coverage_by_class_vit"]) == ([1, 0.5, 1], [1, 1, 0.5])
    assert (found["bias_cnn"], found["coverage_cnn"]) == (1 / 6, 1)
    expected = 4 / 6 * 1 / 6 + 2 / 6 * 5 / 6  # by chance, where they agree on three of six
    assert found["kappa_conflict"] == pytest.approx((3 / 6 - expected) / (1 - expected))


def test_cue_conflict_images_are_those_that_the_classes_have_names_for(versus, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
    names = ("cat1-dog1", "cat2-boat1", "dog1-cat3", "boat1-cat1", "bear1-cat1", "cat4-cat5")
    for name, image in zip(names, pixels):
        path = tmp_path / re.match("[a-z]+", name)[0] / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    train_set = Dataset("few", np.zeros((3, 3, 16, 16), np.uint8), np.arange(3), ["ship", "cat", "frog"])
    job = JOB | {"dataset": "folder:few", "conflict": str(tmp_path)}
    data, members = versus.load_conflict(job, train_set)
    assert (len(data), data.classes, data.images.shape[1:]) == (2, ["boat", "cat"], (3, 16, 16))
    assert sorted(zip(data.labels, data.extra["texture"])) == [(0, 1), (1, 0)]
    assert (members["boat"], members["cat"]) == ([0], [1])
    assert versus.load_conflict(job | {"conflict": None}, train_set)[0] is None
    with pytest.raises(ValueError, match=r"no image of .* has shape and texture among none"):
        versus.load_conflict(job, Dataset("x", train_set.images, np.arange(3), ["0", "1", "2"]))


@pytest.mark.parametrize(("name", "side"), [("vit_nano_patch7_28", 28), ("vit_nano_patch4x8_32", 32)])
def test_a_head_that_looks_everywhere_alike(versus, name, side):
    model = create_model(name)
    down, across = model.patch_embed.patch_size
    places = [(y, x) for y in range(0, side, down) for x in range(0, side, across)]
    expected = np.mean([np.hypot(a[0] - b[0], a[1] - b[1]) for a in places for b in places])
    assert versus.evenly(model) == pytest.approx(expected, rel=1e-5)


def test_layers_of_fewer_heads_are_filled_up(versus, monkeypatch):
    layers = [np.array([1.0, 2.0]), np.array([3.0])]
    monkeypatch.setattr(versus, "measure_heads", lambda *args, **options: type("", (), {"distance": layers}))
    np.testing.assert_array_equal(versus.distances(None, None), [[1, 2], [3, np.nan]])


# --- what it cannot do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--seeds 1", "--seeds must be at least 2, as one alone has no spread; got 1$"),
        ("--test-images 3", "--test-images must be at least 4, got 3$"),
        ("--cnn resnet9", "--vit and --cnn must be names .*, got vit_nano_patch8_32 and resnet9$"),
        ("--vit resnet8", "--vit and --cnn must be names .*, got resnet8 and resnet8$"),
        ("--vit best.npz", "--vit and --cnn must be .* or both a checkpoint.*, got best.npz and resnet8$"),
        ("--conflict images", "--conflict is for data sets other than shapes, which has such images; got images$"),
        ("--train-images 0", "--train-images must be at least 1, got 0$"),
        ("--train-images 190", "--train-images must leave 20 images of every class .*; of circle there are 19$"),
        ("--epochs 0", "epochs must be at least 1, got 0$"),
        ("--train-images 200 --size 20", r"patch_size \(8, 8\) must divide img_size \(20, 20\)$"),
        ("--train-images 200 --vit no.npz --cnn none.npz", "the checkpoint no.npz cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_trained(versus, arguments, sentence, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match=f"^{sentence}"):
        versus.main(["--size", "16", *arguments.split(), "--run-dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_it_is_said_in_one_line(tmp_path):
    assert fails("vit_vs_cnn.py", "--seeds", 1, cwd=tmp_path).startswith("vit_vs_cnn: --seeds must be")


def test_checkpoints_must_be_a_pair_for_these_images(versus, pair, tmp_path):
    train_set, _ = versus.load_sets(JOB)

    def refused(message, **changes):
        with pytest.raises(ValueError, match=message):
            versus.load_networks(pair | changes, train_set)

    refused("--vit must be a checkpoint of a VisionTransformer, .*cnn.npz is of resnet8", vit=pair["cnn"])
    other = checkpoint(tmp_path / "other.npz", "resnet8", train_set, mean=[0.5] * 3)
    refused("--vit and --cnn must be trained on the same images", cnn=other)
    other = checkpoint(tmp_path / "other.npz", "resnet8", train_set, classes=list("abcdefghij"))
    refused("--cnn must be a checkpoint for the images and classes of .*shapes.*, .* the classes a, b, c", cnn=other)
    larger = Dataset("shapes", np.zeros((1, 3, 24, 24), np.uint8), np.zeros(1, int), train_set.classes)
    other = checkpoint(tmp_path / "other.npz", "vit_nano_patch8_32", larger)
    refused("--vit must be a checkpoint for .* 3×24×24 pixels", vit=other)
    assert Path(pair["vit"]).exists() and len(versus.load_networks(pair, train_set)[0]) == 2
