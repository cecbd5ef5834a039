"""Ranks: processes that train one model together, on one machine or on many.

    mpiexec -n 4 python examples/train_vit.py

starts the same program four times, as ranks 0 to 3. Each has the whole model and takes its share of every batch. After
backward each has the gradient of its share; one sum over the ranks (*all-reduce*) gives all of them the gradient of the
batch, and as they start from the same weights and make the same step, they stay equal without a word about weights:

    rank 0   images   0 … 24 ─▶ gradient ─╮         ╭─▶ the same step
    rank 1   images  25 … 49 ─▶ gradient ─┤         ├─▶ the same step
    rank 2   images  50 … 74 ─▶ gradient ─┼── sum ──┼─▶ the same step
    rank 3   images  75 … 99 ─▶ gradient ─╯         ╰─▶ the same step

Arrays on the CPU go through MPI (``pip install 'minivit[mpi]'``), arrays on GPUs, one a rank, through NVIDIA's NCCL.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np

from minivit.backend import Array, array_module

WORLD_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # what the mpiexec of MPICH and its kin, and of Open MPI, sets
TEXT_BYTES = 2048


class Ranks:
    """A process by itself: rank 0 of 1, where there is nothing to add up, and nobody to agree with.

    ``neighbours``: how many ranks share this machine, and so its cores; ``place``: this rank's number among them.

    >>> alone, gradient = Ranks(), np.ones(3)
    >>> alone.sum(gradient)
    >>> gradient, alone.any(True), alone.gather("here")
    (array([1., 1., 1.]), True, ['here'])
    """

    rank, size = 0, 1
    place, neighbours = 0, 1

    def sum(self, array: Array) -> None:
        """Replace a contiguous array by its sum over the ranks, the same bits in each of them."""

    def broadcast(self, array: Array) -> None:
        """Replace a contiguous array by that of rank 0."""

    def gather(self, text: str) -> list[str]:
        """What every rank says, in order; a text is cut off after 2,048 bytes."""
        return [text]

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""
        votes = np.array([flag], np.float64)
        self.sum(votes)
        return bool(votes[0])

    @contextmanager
    def together(self, agreed: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
        """Inside, rank 0 alone prints, and an exception in one rank ends them all, instead of leaving them waiting.

        Exceptions of the types ``agreed`` pass, and so does ``sys.exit``: they come in all ranks in the same moment.
        """
        yield


class MPIRanks(Ranks):
    """The processes that ``mpiexec`` started, by way of mpi4py. GPU arrays are summed by NCCL.

    ``world``: an MPI communicator, by default that of all processes.
    """

    def __init__(self, world: Any = None):
        from mpi4py import MPI  # initialises MPI, which only a program under mpiexec should do

        self._mpi = MPI
        self._world = world or MPI.COMM_WORLD
        self._nccl: Any = None
        self.rank, self.size = self._world.rank, self._world.size
        machine = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        self.place, self.neighbours = machine.rank, machine.size
        machine.Free()

    def sum(self, array: Array) -> None:
        if isinstance(array, np.ndarray):
            self._world.Allreduce(self._mpi.IN_PLACE, array, self._mpi.SUM)
        else:
            nccl, where = self._on_gpu(array)
            self._nccl.allReduce(where[0], *where, nccl.NCCL_SUM, _stream(array))

    def broadcast(self, array: Array) -> None:
        if isinstance(array, np.ndarray):
            self._world.Bcast(array, root=0)
        else:
            _, where = self._on_gpu(array)
            self._nccl.broadcast(where[0], *where, 0, _stream(array))

    def gather(self, text: str) -> list[str]:
        own, all_texts = np.zeros(TEXT_BYTES, np.uint8), np.empty((self.size, TEXT_BYTES), np.uint8)
        encoded = np.frombuffer(text.encode()[:TEXT_BYTES], np.uint8)
        own[: encoded.size] = encoded
        self._world.Allgather(own, all_texts)
        return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in all_texts]

    @contextmanager
    def together(self, agreed: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
        speak = sys.stderr
        try:
            with ExitStack() as silence:
                if self.rank:
                    nowhere = silence.enter_context(open(os.devnull, "w"))
                    silence.enter_context(redirect_stdout(nowhere))
                    silence.enter_context(redirect_stderr(nowhere))
                yield
        except agreed:
            raise
        except SystemExit as end:
            raise SystemExit(bool(end.code) if self.rank else end.code) from None
        except BaseException as error:
            if self.rank:
                time.sleep(1)  # what ails all ranks is told by rank 0, which ends them
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            sys.stdout.flush()
            print(f"rank {self.rank} of {self.size} failed, and ends all: {reason}", file=speak, flush=True)
            time.sleep(0.5)  # for mpiexec to pass this on, before Abort ends it too
            self._world.Abort(1)
            raise

    def _on_gpu(self, array: Array) -> tuple[Any, tuple[int, int, int]]:
        """NCCL, joined by all ranks at the first call, and what it wants to know of an array: address, size, type."""
        nccl = array_module(array).cuda.nccl
        if self._nccl is None:
            name = np.array(nccl.get_unique_id(), np.int64)
            self._world.Bcast(name, root=0)
            self._nccl = nccl.NcclCommunicator(self.size, tuple(name.tolist()), self.rank)
        kind = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}[array.dtype.name]
        return nccl, (array.data.ptr, array.size, kind)


def connect() -> Ranks:
    """The ranks of this program: those that ``mpiexec`` started, or this process alone.

    Raises RuntimeError with the way out where mpi4py is missing, or is of another MPI than ``mpiexec``.
    """
    started = max(int(os.environ.get(name, 0)) for name in WORLD_SIZES)
    if started < 2:
        return Ranks()
    try:
        ranks = MPIRanks()
    except ImportError as error:
        raise RuntimeError(
            f"mpiexec started {started} processes, which need mpi4py to talk: pip install 'minivit[mpi]' ({error})"
        ) from None
    if ranks.size != started:
        raise RuntimeError(
            f"mpiexec started {started} processes, but mpi4py knows of {ranks.size}: they are of different MPI "
            "libraries; use the mpiexec that lies beside python"
        )
    return ranks


def _stream(array: Array) -> int:
    return array_module(array).cuda.get_current_stream().ptr
