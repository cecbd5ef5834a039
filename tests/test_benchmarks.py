"""The benchmarks run, compare the same work, and print the line that programs read. No test asserts a time."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minivit.models import create_model

ROOT = Path(__file__).parents[1]
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")


def run(*command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)


@needs_torch
@pytest.mark.slow
def test_train_step_reports_ratios_and_memory():
    result = run("benchmarks/train_step.py", "--quick")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["benchmark"] == "train_step"
    (row,) = report["rows"]
    assert row["name"] == "vit_nano_patch7_28"
    assert row["logits_difference"] < 1e-5
    assert row["gradients_difference"] < 1e-4
    low, high = row["spread"]
    assert 0 < low <= row["speedup_vs_torch_eager"] <= high
    assert row["memory_vs_torch_eager"] > 0 or not sys.platform.startswith("linux")


def test_train_step_without_pytorch_says_what_to_install():
    hide = "import sys; sys.modules['torch'] = None; sys.path[0] = 'benchmarks'; import train_step; train_step.main([])"
    result = run("-c", hide)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("pip install torch")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("argument", ["--batch", "--pairs", "--micro-batch"])
def test_train_step_refuses_less_than_one(argument):
    result = run("benchmarks/train_step.py", argument, "0")
    assert result.returncode == 2
    assert f"argument {argument}: must be at least 1, got 0" in result.stderr


@needs_torch
def test_train_step_refuses_to_time_a_different_network(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import torch_vit
    import train_step

    options = train_step.parse(["--micro-batch", "3"])
    assert train_step.compare("vit_nano_patch7_28", options)["gradients_difference"] < 1e-4
    monkeypatch.setattr(torch_vit.F, "gelu", torch_vit.F.relu)
    with pytest.raises(SystemExit, match="minivit and PyTorch differ"):
        train_step.compare("vit_nano_patch7_28", options)


@needs_torch
def test_micro_batches_of_the_torch_twin_give_the_same_gradients(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import torch_vit
    import train_step

    images, labels = train_step.make_batch("vit_nano_patch7_28", 5)
    model = create_model("vit_nano_patch7_28")
    whole, pieces = (torch_vit.TorchStep(model, size, threads=1) for size in (5, 2))
    for step in (whole, pieces):
        step(images, labels)
    for name, gradient in whole.gradients().items():
        np.testing.assert_allclose(
            pieces.gradients()[name], gradient, rtol=0, atol=1e-5 * np.abs(gradient).max() + 1e-9
        )
