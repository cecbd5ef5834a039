"""The examples with ``--device cuda``, in this process, where the strict twin takes CuPy's place."""

import json

import numpy as np
import pytest
from PIL import Image

from minivit import backend
from minivit.training import Interrupted, Ranks, load_checkpoint, loop, read_log
from tests.examples import check_picture

pytestmark = pytest.mark.usefixtures("cupy_twin")
SMALL = ("--train-images", "30", "--size", "16", "--batch-size", "10", "--epochs", "2", "--ema", "0.9", "--crop", "1")


@pytest.fixture
def train_vit(tmp_path, monkeypatch):
    """The program, in a folder of its own, with few test images."""
    import train_vit

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_vit, "SHAPES_TEST", 30)
    monkeypatch.setattr(backend, "reuse_freed_memory", lambda: False)
    return train_vit


@pytest.fixture
def train(train_vit, capsys):
    """A run by these arguments: its figures, and the lines printed before them."""

    def run(*arguments):
        capsys.readouterr()
        train_vit.main([*SMALL, *arguments])
        *lines, figures = capsys.readouterr().out.splitlines()
        return json.loads(figures), lines

    return run


def weights(folder):
    return load_checkpoint(f"{folder}/last.npz").model


@pytest.mark.slow
def test_training_on_a_gpu_is_the_training_on_the_cpu(train, tmp_path):
    figures, lines = train("--device", "cuda:1", "--run-dir", "gpu", "--flip")
    expected, _ = train("--run-dir", "cpu", "--workers", "1", "--micro-batch", "10", "--flip")
    assert figures["device"] == "cuda:1" and lines[1].endswith("on cuda:1")
    assert lines[2] == "Layout(ranks=1, workers=1, micro_batch=all)"
    assert (figures["workers"], figures["micro_batch"]) == (1, 10)
    assert figures["test_accuracy"] == expected["test_accuracy"]
    assert figures["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-5)
    found, wanted = weights("gpu"), weights("cpu")
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-4)
    for name in ("attention.png", "curves.png", "positions.png", "predictions.png"):
        check_picture(tmp_path / "gpu" / name)


def test_a_run_goes_on_elsewhere(train_vit, train, monkeypatch):
    """Begun on a GPU, stopped after the first epoch, and ended on the CPU."""

    def stop(run, interrupt):
        finish(run, interrupt)
        raise Interrupted("stopped")

    finish = loop._Run.finish_epoch
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="stopped after 3 of 6 steps, and saved"):
        patch.setattr(loop._Run, "finish_epoch", stop)
        train_vit.main([*SMALL, "--device", "cuda", "--run-dir", "here", "--micro-batch", "4"])
    figures, _ = train("--run-dir", "here", "--resume")
    assert figures["device"] == "cpu" and [line["epoch"] for line in read_log("here/log.jsonl")] == [1, 2]


def test_several_threads_on_a_gpu_get_a_sentence(train_vit):
    with pytest.raises(
        ValueError, match="workers must be 1 for a model on cuda:0, got 2: threads are for the cores of"
    ):
        train_vit.main([*SMALL, "--device", "cuda", "--workers", "2"])


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(train_vit):
    class Second(Ranks):
        size, place, neighbours = 2, 1, 2

    arguments = train_vit.parse([*SMALL, "--device", "cuda", "--run-dir", "second"])
    assert train_vit.train(arguments, Second())["device"] == "cuda:1"


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_predictions_are_those_of_the_cpu(trained, tmp_path, monkeypatch, device):
    import predict

    monkeypatch.chdir(tmp_path)
    checkpoint = str(trained[0] / "best.npz")
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(f"{seed}.png")
    figures = predict.main([checkpoint, "0.png", "1.png", "--device", device, "--out", "gpu.png"])
    assert figures == predict.main([checkpoint, "0.png", "1.png", "--out", "cpu.png"])
    check_picture(tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes() == (tmp_path / "cpu.png").read_bytes()
