"""CUDA graphs for the CuPy twin: what it is asked for during a capture is written down, and done again at each launch.

Every function, operator and method of the twin and every kernel of the emulator is written down with its arguments and
its result, and what a later call gives is put into the memory of that result. So a graph repeats what it was, with the
numbers that lie in its inputs by then: what a step keeps on the host by mistake stays as it was in the capture, as on
a GPU. There nothing is done during a capture; here it is, and undone at its end. Memory that is freed is not reused.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType, SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import numpy as np

from minivit.cuda import blas
from tests.cuda import emulator
from tests.cupy_cuda import Stream as PlainStream
from tests.cupy_cuda import forbid_synchronisation
from tests.cupy_twin import ndarray, twin, ufunc

CUBLAS = ("dot", "inner", "matmul", "outer", "tensordot", "vdot", "__matmul__", "__rmatmul__", "__imatmul__")


class Graph:
    """``cupy.cuda.Graph``: a list of calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable, tuple, dict, Any]] = []
        self.launches = 0
        self._inside = False
        self._before: list[tuple[np.ndarray, np.ndarray]] = []  # memory that may be written to, and what it held

    def recorded(self, function: Callable) -> Callable:
        def call(*args, **options):
            if self._inside:  # a function of the twin that uses another
                return function(*args, **options)
            self._inside = True
            written = [x._array for x in _arrays((*args, *options.values())) if x._array.flags.writeable]
            self._before += [(memory, memory.copy()) for memory in written]
            try:
                result = function(*args, **options)
            finally:
                self._inside = False
            self.calls.append((function, args, options, result))
            return result

        return call

    def undo(self) -> None:
        for memory, before in reversed(self._before):
            memory[...] = before
        self._before.clear()

    def launch(self, stream: Any = None) -> None:
        self.launches += 1
        for function, args, options, result in self.calls:
            for new, own in zip(_arrays(function(*args, **options)), _arrays(result)):
                if not np.shares_memory(new._array, own._array):  # neither a view nor in place
                    own._array[...] = new._array


def _arrays(result: Any) -> Iterator[ndarray]:
    if isinstance(result, ndarray):
        yield result
    elif isinstance(result, (list, tuple)):
        for entry in result:
            yield from _arrays(entry)


class Stream(PlainStream):
    """A stream that can be recorded. ``log`` tells what was asked of streams and pools, in order."""

    log: ClassVar[list[str]] = []
    products = True  # during a capture: may cuBLAS be called, as in a formula that cublasLt would stand in for?

    def __init__(self, null: bool = False, non_blocking: bool = False):
        super().__init__(null, non_blocking)
        self.ptr = 0 if null else id(self)
        self._capture: ExitStack | None = None

    def synchronize(self) -> None:
        self.log.append("synchronize")
        super().synchronize()

    def record(self) -> SimpleNamespace:
        self.log.append("record")
        return SimpleNamespace(synchronize=lambda: None)

    def wait_event(self, event: Any) -> None:
        self.log.append("wait")

    def begin_capture(self) -> None:
        assert self.ptr, "the default stream cannot be captured"
        self.log.append("begin")
        self._graph, self._capture = Graph(), ExitStack()
        self._capture.enter_context(forbid_synchronisation())
        for owner, name, function in _everything():
            refused = name in CUBLAS and not self.products
            call = _refused(name) if refused else self._graph.recorded(function)
            call = _of_few(call) if name in ("stack", "concatenate") else call
            self._capture.enter_context(mock.patch.object(owner, name, call))

    def end_capture(self) -> Graph:
        self.log.append("end")
        self._capture.close()
        self._graph.undo()
        return self._graph


def _refused(name: str) -> Callable:
    def call(*args, **options):
        raise NotImplementedError(f"calling cuBLAS API during stream capture is currently unsupported: {name}")

    return call


def _of_few(function: Callable) -> Callable:
    """Of more than eight arrays CuPy copies the addresses to the GPU, which cannot be recorded."""

    def call(arrays, *args, **options):
        assert len(arrays) <= 8, f"{len(arrays)} arrays are put together during a capture"
        return function(arrays, *args, **options)

    return call


def _everything() -> Iterator[tuple[Any, str, Callable]]:
    """(where, name, function) of all that computes: of the twin, its arrays, cublasLt, and the kernels."""
    for name, value in vars(twin).items():
        if isinstance(value, (FunctionType, ufunc)):
            yield twin, name, value
    plain = ("__init__", "__len__", "__iter__", "__repr__", "__str__", "__format__")
    for name, value in vars(ndarray).items():
        if isinstance(value, FunctionType) and name not in plain and not name.startswith("__array"):
            yield ndarray, name, value
    yield blas, "matmul", blas.matmul
    yield emulator.Kernel, "__call__", emulator.Kernel.__call__


@contextmanager
def graphs() -> Iterator[type[Stream]]:
    """Inside, the twin has streams that can be captured, events and memory pools. Gives the class of the streams."""

    @contextmanager
    def using_allocator(malloc: Callable) -> Iterator[None]:
        Stream.log.append("pool")
        yield
        Stream.log.append("default pool")

    null = Stream(null=True)
    additions = {
        "Stream": Stream,
        "MemoryPool": lambda: SimpleNamespace(malloc=lambda size: None),
        "get_current_stream": lambda: null,
        "using_allocator": using_allocator,
    }
    Stream.log.clear()
    with ExitStack() as stack:
        for name, value in additions.items():
            stack.enter_context(mock.patch.object(twin.cuda, name, value, create=True))
        yield Stream
