"""How a batch is cut: over processes, over threads, and into pieces that go through the network at a time.

    the batch ── ranks ──▶ processes, on one machine or many, each with its own copy of the model
              ── workers ─▶ threads that share the process's model, each with its own graph and its own gradient
              ── micro-batches ──▶ pieces whose activations fit in the cache

NumPy lets go of Python's lock while it computes, so threads run side by side, and the BLAS library is held at one
thread meanwhile: two products at a time, one core each, waste less than one product on two cores, which has to be cut,
started and waited for hundreds of times a step. Small pieces keep what backward reads close, and divide the memory that
it needs.

BatchNorm takes its mean and variance of the whole batch. Then the pieces have to be computed at the same time, one by
each worker of each rank, and meet at every such layer to add up what they know (see ``minivit/shared.py``).

Nothing here is left to chance: worker w takes the pieces w, w + W, w + 2W, …, and results come back in the order of the
pieces, so a layout gives the same bits from run to run.
"""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from minivit.autograd import Tensor
from minivit.backend import Array
from minivit.nn import Module, evaluating, observe
from minivit.optim.parameters import one_by_one
from minivit.shared import sharing
from minivit.training.ranks import Ranks

Result = TypeVar("Result")

PIECE_USES = 800  # of each weight in a micro-batch: adding its gradient to those before costs little beside them
PIECE_OPERATIONS = 5.5e9  # of a micro-batch on its way forward, if it has so many: beside them Python's time is small
LARGER = 2  # times as many images in a piece of which no graph is kept, only what the next layer reads
WORKER_BYTES = 2**19  # of a worker's largest activation: with less, it waits for Python's lock more than it computes


class Layout:
    """The cut of a batch over ``ranks``, ``workers`` and micro-batches of at most ``micro_batch`` images.

    ``workers``: threads of this process; ``micro_batch``: None takes a worker's share in one piece; ``ranks``: see
    ``minivit.training.ranks``, by default this process is alone; ``overlap``: sum gradients over ranks while backward
    is on its way (``all_reduce.py``), by default where ranks are on several machines. Use it in a ``with`` statement:
    inside there are threads, and BLAS is held at one each; afterwards, whatever happened, BLAS has its own threads
    again. (A single worker leaves BLAS its threads, or those of its share of the cores beside other ranks, and needs no
    ``with``.)

    Raises ValueError for less than one worker or image.

    >>> with Layout(workers=2, micro_batch=2) as layout:
    ...     layout.map(lambda worker, piece: (worker, piece.start, piece.stop), 7)
    [(0, 0, 1), (1, 1, 3), (0, 3, 5), (1, 5, 7)]
    """

    def __init__(
        self, workers: int = 1, micro_batch: int | None = None, ranks: Ranks | None = None, overlap: bool | None = None
    ):
        for name, value in (("workers", workers), ("micro_batch", 1 if micro_batch is None else micro_batch)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.workers = workers
        self.micro_batch = micro_batch
        self.ranks = ranks or Ranks()
        self.overlap = self.ranks.size > self.ranks.neighbours if overlap is None else overlap
        self._threads: ThreadPoolExecutor | None = None
        self._inside = ExitStack()

    def __repr__(self) -> str:
        size = self.micro_batch or "all"
        return f"Layout(ranks={self.ranks.size}, workers={self.workers}, micro_batch={size})"

    def __enter__(self) -> "Layout":
        if self.workers > 1:
            self._inside.enter_context(threadpool_limits(1, "blas"))
            limit = threadpool_limits, (1, "blas")  # in each thread too: MKL's is a thread's own
            self._threads = self._inside.enter_context(ThreadPoolExecutor(self.workers, "worker", *limit))
        elif self.ranks.neighbours > 1:
            share = max(1, available_cores() // self.ranks.neighbours)
            self._inside.enter_context(threadpool_limits(share, "blas"))
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads = None
        self._inside.close()

    def pieces(self, size: int, graph: bool = True) -> list[slice]:
        """The micro-batches of ``size`` images of this process, nearly equal: as few as are a multiple of the workers.

        Without a ``graph``, which keeps what backward needs, they may be larger, and take less memory all the same.

        >>> Layout(micro_batch=4).pieces(9)
        [slice(0, 3, None), slice(3, 6, None), slice(6, 9, None)]
        """
        largest = min((self.micro_batch or size) * (1 if graph else LARGER), size)
        count = -(-size // largest) if size else 0
        count = min(size, -(-count // self.workers) * self.workers)
        return [slice(i * size // count, (i + 1) * size // count) for i in range(count)]

    def map(
        self, function: Callable[[int, slice], Result], size: int, together: bool = False, graph: bool = True
    ) -> list[Result]:
        """``function(worker, piece)`` of every piece of ``size`` images, in order; those of one worker one by one.

        ``graph``: does the function keep a graph of its piece? See ``pieces``. With ``together`` the pieces are
        computed at the same time, and layers may ask for totals over all of them, of all ranks: see
        ``needs_whole_batch``.

        An exception is raised here, when no thread is at work any more: the one of the first worker that had any.
        Raises RuntimeError where several workers are wanted outside of the ``with`` statement, and ValueError where
        pieces that have to be together cannot be: there are more than workers, or none in this rank.
        """
        pieces = self.pieces(size, graph)
        meeting = None
        if together:
            self.check_together(pieces)
            if len(pieces) > 1 or self.ranks.size > 1:
                meeting = _Meeting(len(pieces), self.ranks)

        def work(worker: int) -> list[Result]:
            mine = pieces[worker :: self.workers]
            with meeting.joined(worker) if meeting and mine else nullcontext():
                return [function(worker, piece) for piece in mine]

        if self.workers == 1:
            return work(0)
        if self._threads is None:
            raise RuntimeError("a Layout of several workers has its threads inside a with statement only")
        futures = [self._threads.submit(work, worker) for worker in range(self.workers)]
        wait(futures)
        errors = [error for future in futures if (error := future.exception())]
        if errors:  # who waited for the one that failed has an error too, and it says nothing
            raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
        done = [future.result() for future in futures]
        return [done[i % self.workers][i // self.workers] for i in range(len(pieces))]

    def share(self, function: Callable[[Any], object], items: Iterable[Any]) -> None:
        """``function(item)`` of every item, in any order: worker w takes the items w, w + W, w + 2W, …"""
        items = list(items)
        if self._threads is None:
            return one_by_one(function, items)
        shares = [items[worker :: self.workers] for worker in range(self.workers)]
        futures = [self._threads.submit(one_by_one, function, share) for share in shares]
        wait(futures)
        for future in futures:
            future.result()  # or its exception

    def check_together(self, pieces: list[slice]) -> None:
        """Raise ValueError where these pieces of a batch cannot be computed at the same time, by all ranks."""
        if len(pieces) > self.workers:
            raise ValueError(
                f"BatchNorm in training needs the whole batch at once, but {self} cuts it into {len(pieces)} pieces, "
                "which would be computed one after another: leave micro_batch at None"
            )
        if not pieces and self.ranks.size > 1:
            raise ValueError(
                f"BatchNorm in training needs all {self.ranks.size} ranks at every layer, but this batch has no image "
                "for one of them: give a larger batch, or make a Loader with drop_last=True"
            )


class _Meeting:
    """Where the pieces of a batch add up arrays: each brings one and waits; when all are there, each gets the sum."""

    def __init__(self, pieces: int, ranks: Ranks):
        self.ranks = ranks
        self.brought: list[Array] = [None] * pieces
        self.sum: Array = None
        self.barrier = threading.Barrier(pieces, action=self.add_up)

    def add_up(self) -> None:
        """In the order of the pieces. The thread that comes last does it, while the others wait."""
        self.sum = self.brought[0].copy()
        for array in self.brought[1:]:
            self.sum += array
        self.ranks.sum(self.sum)

    @contextmanager
    def joined(self, piece: int) -> Iterator[None]:
        """Inside, the thread computes this piece. If that fails, the others do not wait for it."""

        def total(array: Array) -> Array:
            self.brought[piece] = array
            self.barrier.wait()
            return self.sum  # replaced only when all have come again

        try:
            with sharing(total, first=piece == 0):
                yield
        except BaseException:
            self.barrier.abort()
            raise


def needs_whole_batch(*models: Module | None) -> bool:
    """Does a layer of a model, in the mode in which it is, need totals over all pieces of a batch?

    >>> from minivit.nn import BatchNorm1d
    >>> layer = BatchNorm1d(2)
    >>> needs_whole_batch(layer, None), needs_whole_batch(layer.eval())
    (True, False)
    """
    layers = (layer for model in models if model for _, layer in model.named_modules())
    return any(layer.whole_batch and layer.training for layer in layers)


def choose_layout(
    model: Module,
    images: Array,
    batch_size: int,
    workers: int | None = None,
    micro_batch: int | None = None,
    ranks: Ranks | None = None,
) -> Layout:
    """A layout for batches of ``batch_size`` like ``images`` (at least one is needed), where none was asked for.

    One image is sent through the network, to find out how large its activations are and how often it uses a weight (as
    often as it has tokens, in a Vision Transformer). Then micro-batches are as small as they may be nearly without a
    price: 800 uses of each weight, and 5.5 thousand million operations. A worker for every core that this process has
    for itself, as long as each has half a megabyte in the largest activation. (A network that is too small for threads
    is none too small for ranks, which share no lock.) With BatchNorm a worker takes its share in one piece. So does a
    GPU, unless ``micro_batch`` is given, which saves memory: its own cores share the work out among themselves.

    Raises ValueError for several workers on a GPU, and for a ``micro_batch`` that BatchNorm cannot have.

    >>> from minivit.models import create_model
    >>> choose_layout(create_model("vit_tiny_patch16_224"), np.zeros((1, 3, 224, 224), np.float32), 64, workers=2)
    Layout(ranks=1, workers=2, micro_batch=4)
    """
    ranks = ranks or Ranks()
    share = -(-batch_size // ranks.size)
    whole = needs_whole_batch(model)
    if model.device != "cpu":
        if workers not in (None, 1):
            raise ValueError(
                f"workers must be 1 for a model on {model.device}, got {workers}: threads are for the cores of a CPU; "
                "for several GPUs start several ranks, and for less memory give a smaller micro_batch"
            )
        layout = Layout(1, micro_batch, ranks)
    else:
        activation, operations = _size_of_an_image(model, images[:1])
        if workers is None:
            workers = max(1, min(available_cores() // ranks.neighbours, share, share * activation // WORKER_BYTES))
        uses = operations / (2 * max(1, model.num_parameters()))
        fits = max(math.ceil(PIECE_USES / max(1.0, uses)), int(PIECE_OPERATIONS // operations))
        each = -(-share // workers)  # of the batch, for a worker; it takes its pieces of one size
        pieces = 1 if whole else max(1, round(each / fits))
        layout = Layout(workers, micro_batch or (None if whole else -(-each // pieces)), ranks)
    if whole:
        layout.check_together(layout.pieces(share))
    return layout


def _size_of_an_image(model: Module, image: Array) -> tuple[int, int]:
    """Bytes of the largest output of any layer, and operations in all, when an image goes through."""
    sizes, operations = [image.nbytes], 0

    def look(module: Module, inputs: tuple, output: Any) -> None:
        nonlocal operations
        operations += module.flops(inputs, output)
        if isinstance(output, Tensor):
            sizes.append(output.data.nbytes)

    with evaluating(model), observe(look):
        model(image)
    return max(sizes), max(1, operations)


def available_cores() -> int:
    """How many cores this process may use: what the machine has, less what affinity and a container's quota take away.

    >>> available_cores() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in (_cgroup("cpu.max"), _cgroup("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        if quota > 0:
            cores = min(cores, max(1, quota // period))
    return cores


def _cgroup(*names: str, root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Microseconds of computing time that this process's group has in each period; (0, 1) where there is no limit."""
    try:
        quota, period = (int(word) for name in names for word in (root / name).read_text().split())
    except (OSError, ValueError):  # no such file, or "max 100000"
        return 0, 1
    return quota, period
