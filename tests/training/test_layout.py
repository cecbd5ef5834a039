"""The cut: it covers the batch, it gives the same training whatever it is, and it leaves the threads as they were."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from minivit import Tensor
from minivit.models import create_model
from minivit.nn import Linear
from minivit.training import Layout, Ranks, available_cores, choose_layout
from minivit.training.layout import _cgroup, _size_of_an_image
from tests.training.short_run import CUTS, distance, train

layouts = st.builds(Layout, workers=st.integers(1, 4), micro_batch=st.none() | st.integers(1, 60))


@given(st.integers(0, 50), layouts, st.booleans())
def test_pieces_cover_the_batch_once_and_nearly_equally(size, layout, graph):
    pieces = layout.pieces(size, graph)
    largest = (layout.micro_batch or size) * (1 if graph else 2)
    assert [i for piece in pieces for i in range(size)[piece]] == list(range(size))
    sizes = {piece.stop - piece.start for piece in pieces}
    assert not sizes or (0 < min(sizes) and max(sizes) <= min(sizes) + 1 and max(sizes) <= largest)
    assert len(pieces) == size or len(pieces) % layout.workers == 0


@given(st.integers(0, 20), layouts)
def test_results_come_in_the_order_of_the_pieces_and_workers_take_turns(size, layout):
    with layout:
        results = layout.map(lambda worker, piece: (worker, piece, threading.get_ident()), size)
    assert [piece for _, piece, _ in results] == layout.pieces(size)
    assert [worker for worker, _, _ in results] == [i % layout.workers for i in range(len(results))]


def test_workers_run_at_the_same_time():
    barrier = threading.Barrier(3, timeout=20)
    with Layout(workers=3) as layout:
        assert sorted(layout.map(lambda worker, piece: barrier.wait(), 3)) == [0, 1, 2]


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(CUTS), st.integers(0, 2**32 - 1))
def test_the_layout_does_not_change_the_training(cut, seed):
    """Twenty steps with augmentation, dropout, drop-path and uneven last batches, against one piece in one thread."""
    assert distance(train(Layout(*cut), seed), train(Layout(), seed)) < 1e-5


def test_the_distance_sees_a_different_training():
    assert distance(train(Layout(), seed=0, steps=2), train(Layout(), seed=1, steps=2)) > 1e-2
    assert distance(train(Layout(), seed=0, steps=2), train(Layout(), seed=0, steps=3)) > 1e-4


@pytest.mark.parametrize("cut", [(2, 4), (3, 2)])
def test_a_layout_gives_the_same_bits_each_time(cut):
    first, second = (train(Layout(*cut), seed=0, steps=5) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_an_exception_of_a_worker_arrives_when_all_have_ended():
    started, ended = [], []

    def work(worker, piece):
        started.append(worker)
        if worker == 0:
            raise KeyError("the first")
        threading.Event().wait(0.05)
        ended.append(worker)

    with Layout(workers=3) as layout, pytest.raises(KeyError, match="the first"):
        layout.map(work, 3)
    assert sorted(started) == [0, 1, 2] and sorted(ended) == [1, 2]


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_blas_is_held_at_one_thread_and_let_go_after_an_exception_too():
    """In a process where BLAS has two threads: in that of the tests it has one."""
    program = (
        "import numpy; from tests.training.test_layout import blas_threads, Layout\n"
        "def work(worker, piece): raise KeyError\n"
        "before = blas_threads()\n"
        "with Layout(1): alone = blas_threads()\n"
        "try:\n"
        "    with Layout(2) as layout:\n"
        "        inside = layout.map(lambda worker, piece: blas_threads(), 2)\n"
        "        layout.map(work, 2)\n"
        "except KeyError: pass\n"
        "import json; print(json.dumps([before, alone, inside, blas_threads()]))"
    )
    env = {"OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": ":".join(filter(None, sys.path))}
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=root)
    before, alone, inside, after = json.loads(result.stdout)
    assert before == alone == after and max(before) == min(2, available_cores())
    assert inside == [[1] * len(before)] * 2


@given(st.integers(0, 30), st.integers(1, 4))
def test_workers_share_items(count, workers):
    done = []
    with Layout(workers) as layout:
        layout.share(done.append, range(count))
    assert sorted(done) == list(range(count))
    for worker in range(workers):
        assert [item for item in done if item % workers == worker] == list(range(worker, count, workers))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_exception_of_a_shared_item_is_raised(workers):
    with Layout(workers) as layout, pytest.raises(ZeroDivisionError):
        layout.share(lambda item: 1 // item, [2, 1, 0, 3])
    done = []
    Layout(3).share(done.append, "abc")  # outside of the with statement there are no threads
    assert done == ["a", "b", "c"]


def test_several_workers_need_a_with_statement():
    layout = Layout(workers=2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside a with statement only"):
            layout.map(lambda worker, piece: None, 2)
        with layout:
            pass


def test_a_layout_of_nothing_gets_a_sentence():
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        Layout(workers=0)
    with pytest.raises(ValueError, match="micro_batch must be at least 1, got -3"):
        Layout(micro_batch=-3)


def test_the_size_of_an_image():
    model = create_model("vit_nano_patch7_28")
    activation, operations = _size_of_an_image(model, np.zeros((1, 1, 28, 28), np.float32))
    assert activation == 17 * len(model.blocks[0].mlp.fc1.weight.data) * 4
    assert (
        12 < operations / (2 * model.num_parameters()) < 17
    )  # of 17 tokens, as the last block and the head compute only one
    assert model.training and model(np.zeros((1, 1, 28, 28), np.float32)).requires_grad


class Wide(Linear):
    """A layer of 4 weights with 2 MB of output an image, each weight used ``uses`` times."""

    def __init__(self, uses):
        super().__init__(2, 2, bias=False)
        self.uses = uses

    def forward(self, x):
        return Tensor(np.zeros((len(x), 2**19), np.float32))

    def flops(self, inputs, output):
        return 2 * 4 * self.uses


def test_a_layout_is_chosen_by_cores_batch_and_model(monkeypatch):
    """Pieces are of about the size that is asked for, and every worker has as many."""
    monkeypatch.setattr("minivit.training.layout.available_cores", lambda: 4)
    monkeypatch.setattr("minivit.training.layout.PIECE_OPERATIONS", 80_000)
    images = np.zeros((1, 2), np.float32)
    for model, size, options, workers, micro_batch in [
        (Linear(2, 2), 100, {}, 1, 100),
        (Linear(2, 2), 100, {"workers": 4}, 4, 25),
        (Wide(uses=20_000), 100, {}, 4, 1),  # 160,000 operations an image
        (Wide(uses=20_000), 3, {}, 3, 1),
        (Wide(uses=2000), 100, {}, 4, 5),  # 16,000
        (Wide(uses=1000), 100, {}, 4, 13),  # 8,000: ten at a time, and 25 are two and a half times ten
        (Wide(uses=1000), 96, {}, 4, 12),
        (Wide(uses=1000), 100, {"micro_batch": 7}, 4, 7),
        (Wide(uses=1000), 100, {"workers": 1}, 1, 10),
        (Wide(uses=1000), 100, {"ranks": Neighbours()}, 2, 13),
        (Wide(uses=10), 600, {}, 4, 150),  # 1,000 by operations, 80 by uses
        (Wide(uses=50), 1600, {"workers": 1}, 1, 200),  # 200, 16
    ]:
        chosen = choose_layout(model, images, size, **options)
        assert (chosen.workers, chosen.micro_batch) == (workers, micro_batch)


class Neighbours(Ranks):
    size, neighbours = 2, 2


def test_a_container_limits_the_cores(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _cgroup("cpu.max", root=tmp_path) == (150000, 100000)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _cgroup("cpu.max", root=tmp_path) == (0, 1)
    assert _cgroup("quota", "period", root=tmp_path) == (0, 1)
    (tmp_path / "quota").write_text("-1\n")
    (tmp_path / "period").write_text("100000\n")
    assert _cgroup("quota", "period", root=tmp_path) == (-1, 100000)

    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8), raising=False)
    for limits, cores in [((0, 1), 8), ((-1, 100000), 8), ((250000, 100000), 2), ((50000, 100000), 1)]:
        monkeypatch.setattr("minivit.training.layout._cgroup", lambda *names, limits=limits: limits)
        assert available_cores() == cores
