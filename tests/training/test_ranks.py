"""Several processes under mpiexec: the same training, one that speaks, and nobody left waiting."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minivit.training import Layout, Ranks, connect, load_checkpoint
from minivit.training.ranks import MPIRanks
from tests.training.short_run import distance, train
from tests.training.test_loop import contents

ROOT = Path(__file__).parents[2]
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
under_mpi = pytest.mark.skipif(MPIEXEC is None, reason="needs mpiexec: pip install 'minivit[mpi]'")


def run(ranks, *command):
    """Exit code, standard output and standard error. The time limit is for a program that hangs."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, command)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    return result.returncode, result.stdout, result.stderr


def speaking(program):
    """``program`` after the ranks have found one another, as the argument of ``python -c``."""
    return f"import os, sys, numpy as np\nfrom minivit.training import connect\nranks = connect()\n{program}"


@under_mpi
@pytest.mark.parametrize("options", [(2,), (4,), (3, "overlap")], ids=str)
def test_the_number_of_ranks_does_not_change_the_training(tmp_path, options):
    ranks, *overlap = options
    code, _, err = run(ranks, "-m", "tests.training.short_run", tmp_path / "end.npz", *overlap)
    assert (code, err) == (0, "")
    assert distance(dict(np.load(tmp_path / "end.npz")), train(Layout(), seed=0)) < 1e-5


@under_mpi
def test_what_ranks_say_to_one_another():
    program = speaking(
        "a = np.full(3, ranks.rank + 1.0, np.float32); ranks.sum(a)\n"
        "b = np.full(2, ranks.rank + 5.0); ranks.broadcast(b)\n"
        "votes = ranks.any(ranks.rank == 2), ranks.any(False)\n"
        "said = ranks.gather('é' * ranks.rank)\n"
        "assert (a.tolist(), b.tolist(), votes, said) == ([6.0] * 3, [5.0] * 2, (True, False), ['', 'é', 'éé'])\n"
        "assert len(ranks.gather('é' * 5000)[1]) == 1024\n"
        "with ranks.together(): print(ranks.size, ranks.neighbours)"
    )
    assert run(3, "-c", program) == (0, "3 3\n", "")


@under_mpi
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_raises_ends_all(failing):
    program = speaking(
        f"with ranks.together():\n"
        f"    if ranks.rank == {failing}: raise ValueError('no such thing')\n"
        "    ranks.any(True)"
    )
    code, _, err = run(2, "-c", program)
    assert code != 0 and f"rank {failing} of 2 failed, and ends all: ValueError: no such thing" in err


@under_mpi
def test_what_fails_everywhere_is_told_once():
    code, _, err = run(2, "-c", speaking("with ranks.together(): raise KeyError('all')"))
    assert code != 0 and err.count("failed, and ends all: KeyError: 'all'") == 1


@under_mpi
def test_rank_0_alone_prints():
    program = speaking("with ranks.together(): print('here', file=sys.stderr); print('there')")
    assert run(3, "-c", program) == (0, "there\n", "here\n")


@under_mpi
def test_a_rank_that_dies_ends_all():
    program = speaking(
        "with ranks.together():\n    if ranks.rank == 1: os.kill(os.getpid(), 9)\n    ranks.any(True); print('alive')"
    )
    code, out, err = run(2, "-c", program)
    assert code != 0 and "alive" not in out and "Killed (signal 9)" in out + err


@under_mpi
def test_sys_exit_is_said_by_rank_0():
    program = speaking("with ranks.together(): sys.exit('so it ends')")
    code, _, err = run(2, "-c", program)
    assert code == 1 and err == "so it ends\n"


STAGE = """
import signal, sys
from pathlib import Path
from minivit.training import Interrupted, Layout, connect, loop
from tests.training.test_loop import run

ranks, train_step = connect(), loop.train_step

def stopping(model, objective, batch, optimizer, seed, step, *rest, **options):
    result = train_step(model, objective, batch, optimizer, seed, step, *rest, **options)
    if step == int(sys.argv[2]) and ranks.rank == ranks.size - 1:
        signal.raise_signal(signal.SIGINT)
    return result

loop.train_step = stopping
with ranks.together():
    try:
        run(Path(sys.argv[1]), resume=int(sys.argv[3]), layout=Layout(ranks=ranks))
    except Interrupted as stopped:
        sys.exit(str(stopped))
"""


@under_mpi
def test_a_run_stopped_on_4_ranks_goes_on_with_2_and_1(tmp_path):
    """A signal to one rank stops all after the same step. The end is that of one undisturbed process, to rounding."""
    for ranks, last, by, resume in [(4, 3, "a signal to another rank", 0), (2, 6, "a signal to another rank", 1)]:
        code, _, err = run(ranks, "-c", STAGE, tmp_path / "cut", last, resume)
        assert code == 1 and re.fullmatch(rf"interrupted by {by} after {last + 1} of 9 steps, and saved: .*\n", err)
        assert load_checkpoint(tmp_path / "cut" / "last.npz").meta["progress"]["step"] == last + 1
    assert run(1, "-c", STAGE, tmp_path / "cut", 99, 1)[0] == 0
    assert run(1, "-c", STAGE, tmp_path / "whole", 99, 0)[0] == 0

    ours, theirs = contents(tmp_path / "cut"), contents(tmp_path / "whole")
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert mine.pop("event") == other.pop("event") and mine == pytest.approx(other, rel=1e-4)
    ours, theirs = (load_checkpoint(tmp_path / name / "last.npz") for name in ("cut", "whole"))
    assert distance(ours.model, theirs.model) < 1e-5 and distance(ours.ema, theirs.ema) < 1e-5


OTHER_OBJECTIVES = """
import sys
from pathlib import Path
from minivit.training import Layout, connect
from tests.training.objectives import likeness
from tests.training.test_objectives import Net, reconstruct, run

ranks, objective = connect(), likeness()
layout = Layout(micro_batch=2, ranks=ranks)
objective.layer.bias.data[...] += ranks.rank  # what rank 0 has counts
with ranks.together():
    assert reconstruct(Path(sys.argv[1], "reconstruct"), layout=layout).best_accuracy is None
    run(Path(sys.argv[1], "imitate"), Net(), objective, layout=layout)
"""


@under_mpi
def test_ranks_train_for_other_objectives_too(tmp_path):
    """Without answers to count, with weights beside the model, and where a rank has no image of the last batch."""
    for ranks in (1, 3):
        assert run(ranks, "-c", OTHER_OBJECTIVES, tmp_path / str(ranks)) == (0, "", "")
    for name in ("reconstruct", "imitate"):
        ours, theirs = (load_checkpoint(tmp_path / ranks / name / "last.npz") for ranks in "31")
        assert distance(ours.model | ours.objective, theirs.model | theirs.objective) < 1e-4


def test_alone_without_mpiexec(monkeypatch):
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert type(connect()) is Ranks


def test_mpiexec_without_mpi4py_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(RuntimeError, match=r"mpiexec started 4 processes, .* pip install 'minivit\[mpi\]'"):
        connect()


@pytest.mark.skipif(MPIEXEC is None, reason="needs mpi4py")
def test_an_mpiexec_of_another_library_is_noticed(tmp_path):
    program = "from minivit.training import connect; connect()"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMPI_COMM_WORLD_SIZE": "3"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "mpiexec started 3 processes, but mpi4py knows of 1" in result.stderr


class FakeNccl:
    """NCCL as CuPy offers it, of one rank: it notes what it is asked, and where the arrays lie."""

    NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 7, 8, 0

    def __init__(self):
        self.calls = []

    def get_unique_id(self):
        return tuple(range(-3, 3))

    def NcclCommunicator(self, size, name, rank):
        self.calls.append(("join", size, name, rank))
        return self

    def allReduce(self, *args):
        self.calls.append(("allReduce", *args))

    def broadcast(self, *args):
        self.calls.append(("broadcast", *args))


def test_arrays_on_a_gpu_are_summed_by_nccl(monkeypatch):
    """The calls only: that NCCL answers needs two GPUs."""
    from types import SimpleNamespace as Space

    nccl = FakeNccl()
    cupy = Space(cuda=Space(nccl=nccl, get_current_stream=lambda: Space(ptr=99)))
    monkeypatch.setattr("minivit.training.ranks.array_module", lambda array: cupy)
    array = Space(data=Space(ptr=1234), size=10, dtype=np.dtype(np.float32))
    ranks = MPIRanks.__new__(MPIRanks)
    ranks.rank, ranks.size, ranks._nccl, ranks._world = 0, 1, None, Space(Bcast=lambda array, root: None)
    ranks.sum(array)
    ranks.broadcast(array)
    assert nccl.calls == [
        ("join", 1, (-3, -2, -1, 0, 1, 2), 0),
        ("allReduce", 1234, 1234, 10, 7, 0, 99),
        ("broadcast", 1234, 1234, 10, 7, 0, 99),
    ]
