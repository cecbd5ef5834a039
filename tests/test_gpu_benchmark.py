"""``benchmarks/gpu.py`` without a GPU: the twin stands in for CuPy, and PyTorch computes on the CPU."""

import importlib
import importlib.util
import json
import math
import sys
import time
from types import SimpleNamespace
from unittest import mock

import ml_dtypes  # noqa: F401  NumPy knows the name "bfloat16" from here on
import numpy as np
import pytest

from minivit.backend import FUSED
from tests.cuda import fake_cublaslt
from tests.cuda.graph import graphs
from tests.cupy_twin import installed, twin
from tests.test_benchmarks import ROOT, run

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
SMALL = ["--model", "vit_nano_patch7_28", "--batch", "4", "--rounds", "2", "--steps", "1"]
FREE, ALL = 3 * 2**30, 4 * 2**30


class Event:
    """``cupy.cuda.Event`` of a GPU that has always done everything."""

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass


@pytest.fixture
def benchmark(monkeypatch):
    """The module, on the twin with graphs and cublasLt, but with formulas for kernels; and without PyTorch."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    contenders, module = (importlib.import_module(name) for name in ("gpu_contenders", "gpu"))
    with installed(), graphs(), fake_cublaslt.installed():
        for owner, name, value in [
            (twin, "get_default_memory_pool", lambda: SimpleNamespace(free_all_blocks=lambda: None)),
            (twin.cuda, "Event", Event),
            (twin.cuda, "get_elapsed_time", lambda start, end: 1000 * (end.time - start.time)),
            (twin.cuda.runtime, "memGetInfo", lambda: (FREE, ALL)),
            (twin.cuda.runtime, "getDeviceProperties", lambda number: {"name": b"the twin"}),
        ]:
            monkeypatch.setattr(owner, name, value, raising=False)
        monkeypatch.setattr(contenders, "SIDE", 16)
        monkeypatch.setattr(contenders, "TORCH_DEVICE", "cpu")
        monkeypatch.setattr(module, "available", lambda: ["minivit", "captured"])
        yield module


def report(benchmark, capsys, *arguments, status=0) -> dict:
    with pytest.raises(SystemExit) as ending:
        benchmark.main(list(arguments))
    assert ending.value.code == status
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def check(row, contenders):
    for who in contenders:
        assert row[f"{who}_images_per_second"] > 0
        assert row[f"{who}_tflops"] > 0 < row[f"{who}_product_share"]
        assert row[f"{who}_memory_bytes"] == 0
    assert row["product_tflops"] > 0
    assert 0.5 < row["computed_share"] < 1


def test_without_a_gpu_it_says_so():
    hide = "import sys; sys.modules['cupy'] = None; sys.path[0] = 'benchmarks'; import gpu; gpu.main([])"
    result = run("-c", hide)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("this benchmark measures a GPU: device 'cuda' needs CuPy")
    assert len(result.stderr.splitlines()) == 1


def test_minivit_op_by_op_and_captured(benchmark, capsys):
    found = report(benchmark, capsys, *SMALL, "--precision", "bf16")
    assert (found["benchmark"], found["gpu"], len(found["rows"])) == ("gpu", "the twin", 1)
    (row,) = found["rows"]
    assert (row["name"], row["batch"], row["precision"]) == ("vit_nano_patch7_28", 4, "bf16")
    check(row, ["minivit", "captured"])


def test_the_ladder_has_predictions_beside_measurements(benchmark, capsys):
    found = report(benchmark, capsys, *SMALL, "--ladder")
    assert [row["predicted"] for row in found["rows"]] == [rung[1] for rung in benchmark.LADDER]
    assert all(row["milliseconds"] > 0 for row in found["rows"])


@pytest.mark.parametrize("names, inside", [(set(), []), ({"linear"}, ["linear"]), (None, ["gelu", "linear"])])
def test_a_rung_has_its_kernels_only(benchmark, names, inside):
    kernels = {name: SimpleNamespace(__name__=name) for name in ("gelu", "linear")}
    with mock.patch.dict(FUSED, kernels):
        with benchmark.Rung(names, ("products",)):
            assert sorted(kernel.__name__ for kernel in FUSED.values()) == inside
            assert benchmark.attention.MAX_TOKENS == 0
        assert FUSED == kernels
    assert benchmark.attention.MAX_TOKENS > 0


def test_time_and_failures_are_told(benchmark, capsys, monkeypatch):
    """What there is no time for is named, what fails too, and the rest is measured."""
    monkeypatch.setattr(benchmark, "SHORTEST", math.inf)
    made = benchmark.make_contender

    def failing(job, name):
        if job.contender == "captured":
            raise MemoryError("no room")
        return made(job, name)

    monkeypatch.setattr(benchmark, "make_contender", failing)
    found = report(benchmark, capsys, *SMALL)
    assert found["left_out"] == [["vit_nano_patch7_28", 4, "tf32"]]
    check(found["rows"][0], ["minivit"])
    assert found["rows"][0]["failed"] == {"captured": "MemoryError: no room"}
    monkeypatch.setattr(benchmark, "large_product", None)
    found = report(benchmark, capsys, *SMALL, "--precision", "tf32", status=1)
    assert found["rows"][0]["error"].startswith("TypeError")


def test_the_rows_asked_for(benchmark):
    rows = [benchmark.chosen(benchmark.parse(arguments.split())) for arguments in ("", "--batch 8", "--precision tf32")]
    assert rows[0] == benchmark.WORK
    assert len(rows[1]) == 6 and {batch for _, batch, _ in rows[1]} == {8}
    assert rows[2] == [row for row in benchmark.WORK if row[2] == "tf32"]
    assert benchmark.chosen(benchmark.parse(["--model", "vit_book"])) == [
        ("vit_book", 64, "bf16"),
        ("vit_book", 64, "tf32"),
    ]


@needs_torch
def test_against_pytorch(benchmark, capsys, monkeypatch):
    who = ["minivit", "captured", "torch_eager"]
    monkeypatch.setattr(benchmark, "available", lambda: who)
    (row,) = report(benchmark, capsys, *SMALL, "--precision", "tf32")["rows"]
    check(row, who)
    assert row["torch_network"] in ("timm", "torch_vit")
    for ours in ("minivit", "captured"):
        low, high = row[f"{ours}_vs_torch_eager_spread"]
        assert 0 < low <= row[f"{ours}_vs_torch_eager"] <= high
    for what in ("logits", "gradients"):  # both compute in float32 here
        assert row[f"minivit_{what}_error"] < 1e-5 > row[f"torch_{what}_error"]
    (row,) = report(benchmark, capsys, *SMALL, "--precision", "bf16")["rows"]
    assert 1e-3 < row["torch_gradients_error"] < 0.1


@needs_torch
def test_another_network_is_not_timed(benchmark, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "available", lambda: ["minivit", "torch_eager"])
    torch_vit = importlib.import_module("torch_vit")
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    monkeypatch.setattr(torch_vit.F, "gelu", torch_vit.F.relu)
    seen = torch_vit.TorchOnGpu.seen
    monkeypatch.setattr(torch_vit.TorchOnGpu, "seen", lambda *args: {n: np.abs(x) for n, x in seen(*args).items()})
    (row,) = report(benchmark, capsys, *SMALL, "--precision", "tf32", status=1)["rows"]
    assert row["error"].startswith("ValueError: the logits of minivit differ from those in float64 by")
