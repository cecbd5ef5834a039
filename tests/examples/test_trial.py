"""``trial.py``: what all comparisons do in the same way."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import pytest

from minivit.data import Dataset
from minivit.distillation import FeatureDistillation, Teacher
from minivit.models import create_model
from minivit.training import load_model
from tests.data.test_idx import write_set

JOB = {"dataset": "shapes", "data_dir": "data", "size": 16, "train_images": 30, "test_images": 10, "epochs": 1}
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture
def trial():
    import trial

    return trial


def parsed(trial, *arguments):
    parser = ArgumentParser()
    trial.trial_options(parser, train_images=40)
    return trial.settle_trial(parser.parse_args([*map(str, arguments)]), "example", at_least=3)


def test_what_is_left_open_is_filled_in(trial):
    args = parsed(trial)
    assert trial.images_of(args) == {
        "dataset": "shapes", "data_dir": "data", "size": None, "train_images": 40, "test_images": 2000,
    }  # fmt: skip
    assert (args.seeds, args.train_images, args.run_dir) == (3, 40, Path("runs/example-shapes"))
    assert parsed(trial, "--dataset", "folder:some/birds").run_dir == Path("runs/example-birds")


@pytest.mark.parametrize(("arguments", "words"), [(("--seeds", 1), "seeds"), (("--test-images", 2), "test-images")])
def test_what_cannot_be_is_said(trial, arguments, words):
    with pytest.raises(ValueError, match=f"^--{words} must be at least"):
        parsed(trial, *arguments)


def test_images_are_read_once_and_are_those_that_were_asked_for(trial, tmp_path, monkeypatch):
    from train_vit import load_data

    read = []
    monkeypatch.setattr(trial, "load_data", lambda args: read.append(args) or load_data(args))
    write_set(tmp_path / "a" / "mnist", train=60, test=20)
    write_set(tmp_path / "b" / "a" / "mnist", train=40, test=20)
    job = JOB | {"dataset": "mnist", "data_dir": "a", "size": None}
    monkeypatch.chdir(tmp_path)
    (train, test), (train_1, test_1) = (trial.load_images(job | {"seed": seed}) for seed in (0, 1))
    assert (len(train), len(test), len(read)) == (30, 10, 1) and train is train_1 and test is test_1
    whole = load_data(Namespace(**job | {"train_images": None, "seed": 5}))[1]
    assert {image.tobytes() for image in test.images} <= {image.tobytes() for image in whole.images}
    assert len(trial.load_images(job | {"test_images": 5})[1]) == 5 and len(read) == 2
    monkeypatch.chdir(tmp_path / "b")  # its folder "a" is another one
    assert len(trial.load_images(job | {"train_images": None, "test_images": 5})[0]) == 40 and len(read) == 3


def test_a_run_is_kept_with_what_builds_the_network_again(trial, tmp_path):
    train_set, test_set = trial.load_images(JOB)
    arguments = SMALL | trial.made_for(train_set)
    model = create_model("vit_nano_patch8_32", **arguments)
    meta = {"model": "vit_nano_patch8_32", "arguments": arguments}
    result = trial.train(model, train_set, test_set, JOB | {"seed": 3}, folder=tmp_path, meta=meta)
    loaded, found = load_model(tmp_path / "last.npz")
    assert found["settings"]["seed"] == 3 and 0 <= result.test_accuracy <= 1
    np.testing.assert_array_equal(loaded.head.weight.numpy(), model.head.weight.numpy())


def test_what_the_objective_brings_along_is_trained_too(trial):
    train_set, test_set = trial.load_images(JOB)
    student, teacher = (
        create_model("vit_nano_patch8_32", **SMALL | {"embed_dim": width}, seed=width) for width in (16, 24)
    )
    image = train_set.normalise(train_set.images[:1])
    objective = FeatureDistillation(Teacher(teacher), student, image)
    before = [p.numpy().copy() for p in objective.module.parameters()]
    trial.train(student, train_set, test_set, JOB | {"seed": 0}, objective)
    assert all((p.numpy() != old).any() for p, old in zip(objective.module.parameters(), before, strict=True))


@pytest.mark.parametrize("count", [2, 5, 12])
def test_visits_are_as_many_as_asked_for_and_no_image_is_preferred(trial, count):
    data = Dataset("blank", np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1), np.arange(5), list("abcde"))
    visited = trial.visits(data, count)
    assert len(visited) == count
    times = np.bincount(visited.labels, minlength=5)
    assert times.max() - times.min() <= 1
    np.testing.assert_array_equal(visited.images.ravel(), visited.labels)
