"""``probe.py``: the figures are those of ``analysis/probe.py`` on the features of the encoder."""

import json
import re

import numpy as np
import pytest

from minivit.analysis.probe import features, knn, linear_probe, ridge_probe
from minivit.data import Loader
from minivit.data.shapes import shapes
from tests.data.test_idx import write_set
from tests.examples import fails, run, succeeds
from tests.examples.test_transfer import KINDS, SMALL, write

MAE = "mae_nano_patch4_28"


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A masked autoencoder for shapes of 16 pixels, probed with 40 of them: its checkpoint, and what was printed."""
    cwd = tmp_path_factory.mktemp("probed")
    path = cwd / "mae.npz"
    write(path, MAE, KINDS[MAE] | {"in_chans": 3}, mean=[0.4] * 3, std=[0.2] * 3)
    code, out, err = run(
        "probe.py", path, "--dataset", "shapes", "--train-images", 40, "--steps", 50, "--neighbours", 3, cwd=cwd
    )
    assert (code, err) == (0, "")
    return path, out


def test_the_figures_are_those_of_the_probes(probed):
    from transfer import as_pretrained_on, build, read_pretrained, take_encoder

    from minivit.data import SHAPES_TEST

    path, out = probed
    pretrained = read_pretrained(path)
    model = build(pretrained, num_classes=0)
    take_encoder(model, pretrained)
    sets = shapes(40, 0, 16), shapes(SHAPES_TEST, 0, 16, split="test")
    loaders = (Loader(as_pretrained_on(data, pretrained), 500, shuffle=False) for data in sets)
    train, test = (features(model, loader) for loader in loaders)
    figures = json.loads(out.splitlines()[-1])
    expected = {
        "example": "probe", "dataset": "shapes", "model": "vit_nano_patch4_28", "seed": 0, "layer": None,
        "pretraining": "masked patches", "labels": 40, "test_images": SHAPES_TEST,
    }  # fmt: skip
    for pool in ("cls", "mean"):
        data = getattr(train, pool), train.labels, getattr(test, pool), test.labels
        accuracy, l2 = ridge_probe(*data)
        found = {"linear": linear_probe(*data, steps=50), "ridge": accuracy, "knn": knn(*data, k=3), "ridge_l2": l2}
        expected |= {f"{name}_{pool}": pytest.approx(value, abs=0.005) for name, value in found.items()}
    assert figures.keys() == expected.keys() | {"seconds"}
    assert {name: figures[name] for name in expected} == expected


def test_people_see_a_table(probed):
    data, model, _, heads, *rows, _, last = probed[1].splitlines()
    assert data == "Dataset('shapes', 40 images of 3×16×16, 10 classes), 4000 to test"
    assert model == "vit_nano_patch4_28, pretraining: masked patches"
    assert re.fullmatch(r"test accuracy, % +class token +mean of patches", heads)
    figures = json.loads(last)
    for row, name in zip(rows, ("linear", "ridge", "knn"), strict=True):
        assert [float(x) for x in re.findall(r"\d+\.\d\d", row)] == pytest.approx(
            [100 * figures[f"{name}_cls"], 100 * figures[f"{name}_mean"]], abs=0.005
        )


def test_random_weights_without_a_class_token_at_another_size(tmp_path):
    write_set(tmp_path / "data" / "mnist", train=60, test=20)
    arguments = SMALL | {"class_token": False, "global_pool": "avg", "num_classes": 3}
    write(tmp_path / "vit.npz", "vit_nano_patch4_28", arguments)
    options = ("--dataset", "mnist", "--labels", "17%", "--layer", 1, "--steps", 20, "--from-scratch")
    figures = succeeds("probe.py", "vit.npz", *options, cwd=tmp_path)
    assert (figures["pretraining"], figures["labels"], figures["layer"]) == ("none", 10, 1)
    assert "ridge_mean" in figures and "ridge_cls" not in figures
    assert all(0 <= figures[f"{name}_mean"] <= 1 for name in ("linear", "ridge", "knn"))
    assert not list(tmp_path.glob("runs"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("nothing.npz", "the checkpoint nothing.npz cannot be read: No such file or directory"),
        ("vit.npz --layer 7", "layer must lie in 1 … 2, the blocks of this network, got 7"),
    ],
)
def test_what_cannot_be_done_gets_one_line(arguments, sentence, tmp_path):
    write_set(tmp_path / "data" / "mnist", train=20, test=5)
    write(tmp_path / "vit.npz", "vit_nano_patch4_28", SMALL | {"img_size": 28})
    line = fails("probe.py", *arguments.split(), "--dataset", "mnist", cwd=tmp_path)
    assert line == f"probe: {sentence}"


def test_the_table_is_made_for_any_pools():
    from probe import as_text

    figures = {"linear": 0.5, "ridge": 0.25, "knn": 1.0, "ridge_l2": 0.1}
    head, *rows = as_text({"mean": figures}).splitlines()
    assert head.split()[-3:] == ["mean", "of", "patches"]
    assert np.array([row.split()[-1] for row in rows], float).tolist() == [50.0, 25.0, 100.0]
