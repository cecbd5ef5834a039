"""``train_vit.py``: what a run prints and leaves, how it is stopped and resumed, and what it says when it cannot."""

import json
import os
import re
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from minivit.data import load
from minivit.data.shapes import shapes
from minivit.diversity import HeadPenalties
from minivit.objective import Classification
from minivit.training import load_checkpoint, read_log
from tests.data.test_folder import write_tree
from tests.data.test_idx import write_set
from tests.examples import ROOT, check_picture, fails, run, start, succeeds
from tests.training.test_ranks import under_mpi

PICTURES = ["attention.png", "curves.png", "positions.png", "predictions.png"]


# --- a run from start to end ---------------------------------------------------------------------------------------


def test_the_last_line_has_the_figures_of_the_run(trained):
    from train_vit import RECIPES

    figures, model = json.loads(trained[1].splitlines()[-1]), RECIPES["shapes"].model
    expected = {
        "example": "train_vit", "dataset": "shapes", "model": model, "seed": 0, "epochs": 1, "train_images": 200,
        "device": "cpu", "ranks": 1, "run_dir": str(Path("runs", f"shapes-{model}-0")),
    }  # fmt: skip
    measured = {"test_accuracy", "test_loss", "seconds", "images_per_second", "workers", "micro_batch"}
    assert figures.keys() == expected.keys() | measured
    assert {name: figures[name] for name in expected} == expected
    assert 0 < figures["test_accuracy"] < 1 and all(figures[name] > 0 for name in measured)


def test_it_leaves_a_log_two_checkpoints_and_four_pictures_and_nothing_else(trained):
    folder, out = trained
    assert sorted(path.name for path in folder.iterdir()) == sorted([*PICTURES, "best.npz", "last.npz", "log.jsonl"])
    for name in PICTURES:
        check_picture(folder / name)
    (epoch,), figures = read_log(folder / "log.jsonl"), json.loads(out.splitlines()[-1])
    assert epoch["test_accuracy"] == figures["test_accuracy"]
    for name in ("best.npz", "last.npz"):
        meta = load_checkpoint(folder / name).meta
        assert meta["model"] == figures["model"] and meta["classes"][0] == "circle"
        assert meta["arguments"]["img_size"] == [16, 16]


def test_people_see_what_is_trained_and_a_line_for_each_epoch(trained):
    data, model, layout, folder, epoch, pictures, _ = trained[1].splitlines()
    assert data == "Dataset('shapes', 200 images of 3×16×16, 10 classes)"
    assert re.fullmatch(r"vit_\w+: [\d,]+ parameters, on cpu", model)
    assert re.fullmatch(r"Layout\(ranks=1, workers=\d+, micro_batch=\d+\)", layout)
    assert epoch.startswith("epoch 1/1  train loss ")
    assert pictures == f"pictures in {folder}: curves, predictions, attention, positions"


def test_a_folder_that_holds_a_run_is_left_alone(trained):
    folder, _ = trained
    before = (folder / "last.npz").read_bytes(), (folder / "log.jsonl").read_bytes()
    line = fails("train_vit.py", "--train-images", 20, "--size", 16, cwd=folder.parents[1])
    assert line.startswith("train_vit: ") and "holds a run already: the same command with --resume goes on" in line
    assert ((folder / "last.npz").read_bytes(), (folder / "log.jsonl").read_bytes()) == before


def test_a_run_stopped_by_ctrl_c_is_resumed_to_its_end(tmp_path):
    """On grey images from files; the signal comes in the second of 30 epochs."""
    write_set(tmp_path / "data" / "mnist")
    arguments = ("--dataset", "mnist", "--epochs", 30, "--batch-size", 10)
    with start("train_vit.py", *arguments, cwd=tmp_path) as process:
        for line in process.stdout:
            if line.startswith("epoch 1/30"):
                os.kill(process.pid, signal.SIGINT)
                break
        out, err = process.communicate()
    (folder,) = (tmp_path / "runs").iterdir()
    assert process.returncode == 1, out
    assert "Traceback" not in err
    note, last = filter(None, err.splitlines())
    assert note.startswith("Finishing this step, then saving.")
    done = re.fullmatch(
        r"interrupted by SIGINT after (\d+) of 90 steps, and saved: "
        r"the same command with --resume goes on from (.*)",
        last,
    )
    assert 3 <= int(done[1]) < 90
    assert tmp_path / done[2] == folder / "last.npz"
    assert not list(folder.glob("*.png"))

    figures = succeeds("train_vit.py", *arguments, "--resume", cwd=tmp_path)
    assert (figures["epochs"], figures["train_images"]) == (30, 30)
    assert [line["epoch"] for line in read_log(folder / "log.jsonl")] == list(range(1, 31))
    for name in PICTURES:
        check_picture(folder / name)


@pytest.mark.slow
@under_mpi
def test_two_ranks_under_mpiexec(tmp_path):
    """Everything is said once, by rank 0, and Ctrl-C, which mpiexec passes on, ends both."""
    write_set(tmp_path / "data" / "mnist")
    arguments = ("--dataset", "mnist", "--epochs", 40, "--batch-size", 10)
    with start("train_vit.py", *arguments, cwd=tmp_path, ranks=2) as process:
        for line in process.stdout:
            if line.startswith("epoch 1/40"):
                process.send_signal(signal.SIGINT)
                break
        _, err = process.communicate()
    assert len(re.findall("interrupted by SIGINT after", err)) == 1 and "Traceback" not in err
    with start("train_vit.py", *arguments, "--resume", cwd=tmp_path, ranks=2) as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    figures = json.loads(out.splitlines()[-1])
    assert figures["ranks"] == 2 and out.count("pictures in") == out.count("epoch 40/40") == 1
    assert len(read_log(tmp_path / figures["run_dir"] / "log.jsonl")) == 40


def test_options_and_your_own_images(tmp_path):
    """In a folder that holds another run, which is to be overwritten; one of the images is damaged."""
    write_tree(tmp_path / "animals", count=20)
    (tmp_path / "animals" / "cat" / "broken.png").write_bytes(b"no image")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "last.npz").write_bytes(b"old")
    code, out, err = run(
        "train_vit.py", "--dataset", "folder:animals", "--train-images", 21, "--model", "vit_nano_patch7_28",
        "--size", 28, "--epochs", 2, "--batch-size", 8, "--micro-batch", 3, "--lr", 1e-3, "--ema", 0.9, "--flip",
        "--drop-path", 0.1, "--label-smoothing", 0.1, "--crop", 2, "--weight-decay", 0.1, "--warmup", 0.5, "--clip", 5,
        "--seed", 3, "--run-dir", "here", "--overwrite", "--pos-embed", "rope_axial", "--attn-layer", "lsa",
        "--embed-layer", "spt", "--penalty", "margin=0.1", "--penalty", "disagreement_output=0.2", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0
    assert "broken.png cannot be read and is left out" in err and "Traceback" not in err
    figures = json.loads(out.splitlines()[-1])
    expected = {"dataset": "folder", "seed": 3, "train_images": 21, "run_dir": "here", "model": "vit_nano_patch7_28"}
    assert {key: figures[key] for key in expected} == expected
    settings = load_checkpoint(tmp_path / "here" / "last.npz").meta["settings"]
    expected = {"lr": 1e-3, "ema": 0.9, "clip": 5.0, "warmup_epochs": 1.0, "seed": 3}
    assert {key: settings[key] for key in expected} == expected
    assert settings["augment"] == ["RandomCrop(padding=2, mode='constant')", "RandomHorizontalFlip(p=0.5)"]
    penalties = HeadPenalties({"margin": 0.1, "disagreement_output": 0.2})
    assert settings["objective"] == repr(Classification(0.1, penalties))
    chosen = {"pos_embed": "rope_axial", "attn_layer": "lsa", "embed_layer": "spt", "drop_path_rate": 0.1}
    assert {key: settings["arguments"][key] for key in chosen} == chosen
    assert settings["arguments"]["num_classes"] == 2
    for picture in (p for p in PICTURES if p != "positions.png"):  # there is no table
        check_picture(tmp_path / "here" / picture)


# --- what it cannot do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--dataset imagenet", "data set must be shapes, mnist, .* or folder:PATH, got 'imagenet'$"),
        ("--dataset folder:nowhere", "nowhere is no folder$"),
        ("--model vit_bok", "there is no model 'vit_bok'; perhaps vit_book$"),
        ("--device tpu", "device must be 'cpu', 'cuda' or 'cuda:<number>', got 'tpu'$"),
        ("--train-images 0", "--train-images must be at least 1, got 0$"),
        ("--train-images 10 --size 20 --model vit_book", r"patch_size \(16, 16\) must divide img_size \(20, 20\)$"),
        ("--train-images 10 --epochs 0", "epochs must be at least 1, got 0$"),
        ("--train-images 10 --resume", "the checkpoint runs.* cannot be read: No such file or directory$"),
    ],
)
def test_what_cannot_be_done_gets_one_line(arguments, sentence, tmp_path):
    line = fails("train_vit.py", *arguments.split(), cwd=tmp_path)
    assert re.match(f"train_vit: {sentence}", line), line


def test_a_run_that_diverges_ends_with_one_line_and_the_last_good_weights(tmp_path):
    options = ("--train-images", 40, "--size", 16, "--batch-size", 10, "--epochs", 1, "--warmup", 0, "--lr", 1e30)
    line = fails("train_vit.py", *options, "--run-dir", "here", cwd=tmp_path)
    assert re.match(r"train_vit: the loss is (nan|inf) in step \d: the first to be not finite is the output of ", line)
    assert f"in {Path('here', 'nonfinite.npz')}" in line
    load_checkpoint(tmp_path / "here" / "nonfinite.npz")


def test_ctrl_c_before_the_training_gets_one_line(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("minivit.data.load", interrupted)
    monkeypatch.setattr("minivit.backend.reuse_freed_memory", lambda: False)
    monkeypatch.setattr("sys.argv", ["train_vit.py"])
    with pytest.raises(SystemExit, match=r"^train_vit: stopped at once; what was saved before is as it was$"):
        runpy.run_path(str(ROOT / "examples" / "train_vit.py"), run_name="__main__")


def test_a_full_memory_gets_one_line_with_the_way_out(monkeypatch):
    def full(*args):
        raise MemoryError("out of 12,884,901,888 bytes")

    monkeypatch.setattr("minivit.data.load", full)
    monkeypatch.setattr("minivit.backend.reuse_freed_memory", lambda: False)
    monkeypatch.setattr("sys.argv", ["train_vit.py"])
    with pytest.raises(SystemExit, match=r"^train_vit: the memory is full \(out of .* smaller --micro-batch, or --rec"):
        runpy.run_path(str(ROOT / "examples" / "train_vit.py"), run_name="__main__")


def test_without_matplotlib_no_pictures_are_drawn(monkeypatch, capsys, tmp_path):
    from train_vit import draw

    monkeypatch.setitem(sys.modules, "figures", None)
    draw(None, None, tmp_path)
    assert capsys.readouterr().out.startswith("no pictures were drawn: they need matplotlib, pip install ")


def test_a_gpu_without_cupy_gets_the_way_out(tmp_path):
    try:
        import cupy  # noqa: F401
    except ImportError:
        line = fails("train_vit.py", "--device", "cuda", cwd=tmp_path)
        assert line.startswith("train_vit: device 'cuda' needs CuPy: pip install 'minivit[cuda12]' or")
    else:
        pytest.skip("CuPy is installed")


# --- its parts -----------------------------------------------------------------------------------------------------


def test_recipes_fill_in_what_is_not_given():
    from train_vit import RECIPES, parse

    for name, recipe in RECIPES.items():
        args = parse(["--dataset", f"{name}:some/where" if name == "folder" else name])
        assert all(getattr(args, field) == value for field, value in recipe._asdict().items())
        label = "where" if name == "folder" else name
        assert args.run_dir == Path("runs", f"{label}-{recipe.model}-0")
    args = parse(["--dataset", "cifar10", "--no-flip", "--crop", "0", "--lr", "1", "--epochs", "2", "--seed", "5"])
    assert (args.flip, args.crop, args.lr, args.epochs) == (False, 0, 1.0, 2)
    assert args.run_dir.name == f"cifar10-{RECIPES['cifar10'].model}-5"


@pytest.mark.parametrize("count", [20, 200])
def test_fewer_shapes_are_the_first_ones_and_of_all_classes(count):
    from train_vit import load_data, parse

    train, test = load_data(parse(["--train-images", str(count), "--size", "8", "--seed", "2"]))
    np.testing.assert_array_equal(train.images, shapes(count, seed=2, size=8).images)
    assert (np.bincount(train.labels) == count / 10).all()
    assert len(test) > 1000 and (test.mean, test.std) == (train.mean, train.std)


def test_fewer_images_of_other_sets_are_chosen_by_the_seed(tmp_path):
    from train_vit import load_data, parse

    write_tree(tmp_path, count=40)
    whole, _ = load(f"folder:{tmp_path}", size=8)

    def chosen(count, seed):
        arguments = [
            "--dataset",
            f"folder:{tmp_path}",
            "--size",
            "8",
            "--train-images",
            str(count),
            "--seed",
            str(seed),
        ]
        train, _ = load_data(parse(arguments))
        assert (train.mean, train.std) == (whole.mean, whole.std)
        return train

    first, again, other, all_of_it = (chosen(*case) for case in ((20, 0), (20, 0), (20, 1), (999, 0)))
    assert len(first) == 20 and len({image.tobytes() for image in first.images}) == 20
    assert set(first.labels) == {0, 1}
    np.testing.assert_array_equal(first.images, again.images)
    assert (first.images != other.images).any()
    np.testing.assert_array_equal(all_of_it.images, whole.images)


def test_the_pictures_show_classes_in_turn():
    from train_vit import first_of_each_class

    assert first_of_each_class([2, 0, 0, 1, 0, 2], 5) == [1, 3, 0, 2, 5]
    assert first_of_each_class([0, 1], 9) == [0, 1]


def test_a_cnn_is_trained_by_the_same_program(tmp_path):
    arguments = (
        "--train-images",
        40,
        "--size",
        16,
        "--epochs",
        1,
        "--batch-size",
        20,
        "--augment",
        "randaugment,mixup",
    )
    figures = succeeds("train_vit.py", "--model", "resnet8", *arguments, cwd=tmp_path)
    folder = tmp_path / figures["run_dir"]
    assert figures["model"] == "resnet8"
    assert sorted(path.name for path in folder.glob("*.png")) == ["curves.png", "predictions.png"]


def test_a_network_that_does_not_answer_with_one_head_gets_a_sentence(tmp_path):
    line = fails("train_vit.py", "--model", "mae_nano_patch4_32", cwd=tmp_path)
    assert line == "train_vit: --model must be a Vision Transformer or a ResNet with one head, got mae_nano_patch4_32"
