"""The benchmarks run, compare the same work, and print the line that programs read. No test asserts a time."""

import doctest
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minivit.models import create_model
from minivit.nn import summary
from minivit.training import available_cores

ROOT = Path(__file__).parents[1]
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
mpi_works = Path(sys.executable).with_name("mpiexec").exists() and available_cores() > 1
under_mpi = pytest.mark.skipif(not mpi_works, reason="needs mpiexec beside python, and two cores")


@pytest.fixture
def module(monkeypatch):
    """Import one of the benchmarks by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def run(*command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)


def report(*command: str) -> dict:
    result = run(*command)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


# --- each of them, in its quick mode ---------------------------------------------------------------------------------


@needs_torch
@pytest.mark.slow
def test_train_step_reports_ratios_memory_and_share():
    found = report("benchmarks/train_step.py", "--quick")
    assert found["benchmark"] == "train_step"
    assert [row["mode"] for row in found["rows"]] == ["training", "inference"]
    for row in found["rows"]:
        assert row["name"] == "vit_nano_patch7_28"
        assert row["logits_difference"] < 1e-5
        assert row["gradients_difference"] < 1e-4
        low, high = row["spread"]
        assert 0 < low <= row["speedup_vs_torch_eager"] <= high
        assert row["memory_vs_torch_eager"] > 0 or not sys.platform.startswith("linux")
        assert 0 < row["sgemm_share_computed"] < row["sgemm_share"] < 1
        assert 1 <= row["workers"] <= row["threads"] == available_cores()


@needs_torch
@pytest.mark.slow
def test_mae_step_compares_the_same_loss_and_gradients():
    (row,) = report("benchmarks/mae_step.py", "--quick")["rows"]
    assert row["name"] == "mae_nano_patch4_28"
    assert row["loss_difference"] < 1e-5
    assert row["gradients_difference"] < 1e-4
    for other in ("torch_eager", "whole_encoder"):
        low, high = row[f"spread_vs_{other}"]
        assert 0 < low <= row[f"speedup_vs_{other}"] <= high


def test_growth_measures_each_quantity(tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "new" / "growth.png"
    found = report("benchmarks/growth.py", "--quick", "--no-torch", "--threads", "1", "--picture", str(picture))
    assert (found["benchmark"], found["threads"]) == ("growth", 1)
    points = [(row["varied"], row["value"]) for row in found["rows"]]
    assert points == [("batch", 2), ("batch", 4), ("tokens", 5), ("tokens", 17), ("depth", 2), ("depth", 4)]
    for row in found["rows"]:
        assert row["seconds"] > 0
        assert row["peak_bytes"] is None or row["peak_bytes"] > 0
    assert {f"time_exponent_{quantity}" for quantity in ("batch", "tokens", "depth")} <= set(found)
    assert picture.stat().st_size > 5000


@needs_torch
@pytest.mark.slow
def test_growth_with_pytorch(tmp_path):
    found = report("benchmarks/growth.py", "--quick", "--picture", str(tmp_path / "growth.png"))
    assert {row["contender"] for row in found["rows"]} == {"minivit", "torch_eager"}
    assert "torch_eager_time_exponent_depth" in found


@under_mpi
def test_scaling_compares_workers_with_ranks(tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "scaling.png"
    found = report("benchmarks/scaling.py", "--quick", "--threads", "2", "--picture", str(picture))
    assert [(row["ranks"], row["workers"]) for row in found["rows"]] == [(1, 1), (1, 2), (2, 1)]
    low, high = found["spread_ranks_2_vs_workers_2"]
    assert 0 < low <= found["ranks_2_vs_workers_2"] <= high
    assert found["speedup_2_workers"] > 0 < found["speedup_2_ranks"]
    assert found["all_reduce_seconds"] > 0
    assert found["gradient_bytes"] >= 4 * create_model("vit_nano_patch7_28").num_parameters()
    assert picture.stat().st_size > 5000


def test_all_reduce_prints_a_table_and_rows():
    result = run("benchmarks/all_reduce.py", "--quick", "--gflops", "50", "--batch", "8")
    assert result.returncode == 0, result.stderr
    assert "| network | model | gradient | computing | 8 ranks | 64 ranks | 1,024 ranks |" in result.stdout
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["gflops"], found["batch"]) == (50, 8)
    assert {row["ranks"] for row in found["rows"]} == {8, 64, 1024}
    for row in found["rows"]:
        assert 0 < row["overlap_share"] <= row["all_reduce_share"] < 1


def test_overlap_compares_sums_afterwards_with_sums_on_the_way():
    found = report("benchmarks/overlap.py", "--quick", "--ranks", "4")
    assert [row["network"] for row in found["rows"]] == ["Ethernet, 1 Gb/s", "Ethernet, 10 Gb/s"]
    for row in found["rows"]:
        assert row["afterwards_seconds"] > row["all_reduce_seconds"] > 0 < row["alone_seconds"]
        assert 0 < row["spread"][0] <= row["speedup"] <= row["spread"][1] and row["ranks"] == 4


@under_mpi
def test_all_reduce_measures_shared_memory(module):
    network = module("all_reduce").measure_network()
    assert 0 < network.latency < 1
    assert network.bandwidth > 0
    assert network.measured


# --- what they refuse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train_step", "mae_step"])
def test_a_comparison_without_pytorch_says_what_to_install(name):
    hide = f"import sys; sys.modules['torch'] = None; sys.path[0] = 'benchmarks'; import {name}; {name}.main([])"
    result = run("-c", hide)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("pip install torch")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("train_step", "--batch"), ("train_step", "--rounds"), ("train_step", "--micro-batch"),
        ("mae_step", "--batch"), ("mae_step", "--rounds"),
        ("train_step", "--workers"), ("train_step", "--threads"), ("growth", "--batch"), ("growth", "--threads"),
        ("scaling", "--rounds"), ("scaling", "--steps"), ("all_reduce", "--batch"), ("all_reduce", "--gflops"),
    ],
)  # fmt: skip
def test_numbers_below_one_are_refused(module, capsys, name, argument):
    with pytest.raises(SystemExit) as ending:
        module(name).parse([argument, "0"])
    assert ending.value.code == 2
    assert f"argument {argument}: must be at least 1, got 0" in capsys.readouterr().err


def test_more_threads_than_cores_are_refused(module):
    with pytest.raises(SystemExit, match=rf"--threads 9999 is more than the {available_cores()} cores"):
        module("growth").main(["--threads", "9999"])


def test_a_child_that_fails_is_told_of(module):
    with pytest.raises(SystemExit, match=r"(?s)failed:.*no such luck"):
        module("measuring").run_child([sys.executable, "-c", "raise OSError('no such luck')"])


@needs_torch
@pytest.mark.parametrize(
    ("model", "micro_batch", "changed", "other"),
    [("vit_nano_patch7_28", 1, "gelu", "relu"), ("resnet8", None, "relu", "gelu")],
)
def test_train_step_refuses_to_time_a_different_network(module, monkeypatch, model, micro_batch, changed, other):
    contenders = module("contenders")
    job = contenders.Job(model, 4, workers=2, micro_batch=micro_batch)
    assert contenders.compare(job)["gradients_difference"] < 1e-4
    functions = module("torch_vit").F
    monkeypatch.setattr(functions, changed, getattr(functions, other))
    with pytest.raises(SystemExit, match="minivit and PyTorch differ"):
        contenders.compare(job)


# --- what they count -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["measuring", "growth", "scaling", "all_reduce"])
def test_the_examples_in_the_docstrings(module, name):
    result = doctest.testmod(module(name))
    assert result.attempted > 0 == result.failed


def test_turns_alternate_each_inside_its_own_context(module):
    seen = []

    @contextmanager
    def inside(name):
        seen.append(f"in {name}")
        yield
        seen.append(f"out {name}")

    class Inside:  # to be entered again and again
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            self.current = inside(self.name)
            self.current.__enter__()

        def __exit__(self, *exception):
            self.current.__exit__(*exception)

    tasks = {name: (Inside(name), lambda name=name: seen.append(name)) for name in "ab"}
    seconds = module("measuring").take_turns(tasks, rounds=2, title="")
    assert seen == 3 * ["in a", "a", "out a", "in b", "b", "out b"]
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 2, "b": 2}


def test_a_warm_turn_begins_with_a_run_that_is_not_timed(module):
    seen = []

    class Inside:
        def __enter__(self):
            seen.append("in")

        def __exit__(self, *exception):
            seen.append("out")

    warm = module("measuring").Warm
    seconds = module("measuring").take_turns({"a": (warm(Inside(), lambda: seen.append("warm")), seen.clear)}, 1, "")
    assert (seen, len(seconds["a"])) == (["out"], 1)
    with warm(Inside(), lambda: seen.append("warm")):
        assert seen == ["out", "in", "warm"]

    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), warm(Inside(), fails):
        pass
    assert seen[-2:] == ["in", "out"]  # the threads that the context started are not left behind


def test_flops_are_counted_as_by_summary(module):
    contenders = module("contenders")
    job = contenders.Job("vit_nano_patch7_28", 1, mode="inference")
    image = np.zeros((1, 1, 28, 28), np.float32)
    layers = {layer.name: layer.flops for layer in summary(create_model(job.model), image)}
    assert contenders.flops_per_image(job, whole=False) == layers[""]
    training = replace(job, mode="training")
    assert contenders.flops_per_image(training, whole=False) == 3 * layers[""] - layers["patch_embed"]
    tokens, width, depth = 17, 64, 4  # all tokens through all blocks: 12 D² weights a token, Q Kᵀ and A V
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    assert contenders.flops_per_image(job) == depth * block + 2 * 16 * 49 * width + 2 * width * 10


def test_flops_of_a_residual_network_by_hand(module):
    contenders = module("contenders")
    job = contenders.Job("resnet8", 1, mode="inference")
    first, stage_1 = 3 * 16 * 9 * 32**2, 2 * 16 * 16 * 9 * 32**2
    stage_2, stage_3 = (16 * 32 + 32 * 32) * 9 * 16**2, (32 * 64 + 64 * 64) * 9 * 8**2
    whole = 2 * (first + stage_1 + stage_2 + stage_3 + 64 * 10)
    assert contenders.flops_per_image(job) == whole
    assert contenders.flops_per_image(replace(job, mode="training"), whole=False) == 3 * whole - 2 * first


def test_all_reduce_by_hand(module):
    arithmetic = module("all_reduce")
    network = arithmetic.Network("", latency=1e-5, bandwidth=1e9)
    small, large = 1e3, 1e8  # 1 µs and 100 ms on this network
    assert arithmetic.ring(8, large, network) == pytest.approx(14e-5 + 14 / 8 * 0.1)
    assert arithmetic.recursive_doubling(8, large, network) == pytest.approx(3 * (1e-5 + 0.1))
    assert arithmetic.rabenseifner(8, large, network) == pytest.approx(6e-5 + 14 / 8 * 0.1)
    assert arithmetic.rabenseifner(1024, large, network) == pytest.approx(20e-5 + 2046 / 1024 * 0.1)
    assert arithmetic.all_reduce(8, large, network) == arithmetic.rabenseifner(8, large, network)
    assert arithmetic.all_reduce(8, small, network) == pytest.approx(3 * (1e-5 + 1e-6))  # latency counts: doubling
    assert arithmetic.all_reduce(2, large, network) == pytest.approx(1e-5 + 0.1)
    assert arithmetic.shares(computing=0.9, summing=0.1) == pytest.approx((0.1, 0.1))
    assert arithmetic.shares(computing=0.3, summing=0.7) == pytest.approx((0.7, 0.2))


def test_scaling_takes_ratios_within_a_round(module):
    scaling = module("scaling")
    seconds = {(1, 1): (1.0, 2.0, 4.0), (1, 2): (0.5, 1.0, 2.0), (2, 1): (0.5, 2.0, 4.0)}
    turns = {
        cut: [{"step_seconds": s, "all_reduce_seconds": 0.1, "micro_batch": 4} for s in own]
        for cut, own in seconds.items()
    }
    rows = scaling.rows_of(turns, batch=8)
    assert [row["images_per_second"] for row in rows] == [4, 8, 4]
    found = scaling.claims(turns, rows, batch=8)
    assert (found["speedup_2_workers"], found["spread_2_workers"]) == (2, [2, 2])
    assert (found["speedup_2_ranks"], found["ranks_2_vs_workers_2"]) == (1, 0.5)
    assert found["spread_ranks_2_vs_workers_2"] == [0.5, 0.75]
    assert found["all_reduce_seconds"] == 0.1


def test_scaling_without_mpiexec_measures_workers_alone(module, monkeypatch, capsys, tmp_path):
    scaling = module("scaling")
    turn = {"step_seconds": 1.0, "all_reduce_seconds": 0.0, "micro_batch": 4, "gradient_bytes": 12}
    monkeypatch.setattr(scaling, "mpiexec", lambda: None)
    monkeypatch.setattr(scaling, "measure", lambda cut, options: turn)
    scaling.main(["--quick", "--picture", str(tmp_path / "scaling.png")])
    out, err = capsys.readouterr()
    assert "no mpiexec beside python; pip install 'minivit[mpi]'" in err
    assert {row["ranks"] for row in json.loads(out.splitlines()[-1])["rows"]} == {1}


@needs_torch
def test_micro_batches_of_the_torch_twin_give_the_same_gradients(module):
    images, labels = module("contenders").Job("vit_nano_patch7_28", 5).make_batch()
    model = create_model("vit_nano_patch7_28")
    whole, pieces = (module("torch_vit").TorchContender(model, size) for size in (5, 2))
    for contender in (whole, pieces):
        contender.training(images, labels)
    np.testing.assert_allclose(pieces.inference(images), whole.inference(images), rtol=0, atol=1e-2)
    for name, gradient in whole.gradients().items():
        np.testing.assert_allclose(
            pieces.gradients()[name], gradient, rtol=0, atol=1e-5 * np.abs(gradient).max() + 1e-9
        )
