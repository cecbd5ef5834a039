"""Capture: what a GPU was told to do once is recorded as a CUDA graph, and told again with a single call.

A training step is a few hundred kernels, and Python needs some microseconds for each: it walks through the layers, asks
for memory, and puts the kernel in the GPU's queue. Where the network is small, a kernel is over before the next one is
in the queue, and the GPU waits for Python. Between ``begin_capture`` and ``end_capture`` CUDA runs nothing and writes
down what it is asked for; the *graph* that comes of it is launched with one call, however long it is.

A graph repeats everything as it was: the same kernels at the same addresses with the same arguments. Therefore

- what goes in lies in arrays that stay where they are, and are filled anew before each launch,
- what changes from step to step, learning rates and keys of random numbers, goes in that way too,
- memory that the step takes and gives back belongs to the graph: it comes from a pool that serves nobody else,
- nothing may be read on the way: Python is not there any more.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from minivit.backend import Array


class Captured:
    """``step()`` as a CUDA graph. Calling it launches the graph in the current stream, and gives the step's result.

    The result's arrays are the same in each call, and hold what they are given by the latest. ``step`` is called some
    times before it is recorded (``warmup``): then kernels are compiled, cublasLt chooses its own, and the pool grows to
    its size. Those calls do what they do; the arrays ``kept`` get back afterwards what they held before. All that
    outlives a step, as weights and gradients do, must be there before.

    Raises what CUDA or CuPy raise where a step cannot be recorded, because it reads a number, copies from or to the
    host, or calls cuBLAS or cuRAND.

    >>> x = cupy.zeros(3)                           # doctest: +SKIP
    >>> add = Captured(lambda: x.__iadd__(1))       # doctest: +SKIP
    >>> add(), add()                                # doctest: +SKIP
    (array([5., 5., 5.]), array([5., 5., 5.]))
    """

    def __init__(self, step: Callable[[], Any], kept: Sequence[Array] = (), warmup: int = 3):
        import cupy

        self._pool = cupy.cuda.MemoryPool()
        stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be recorded
        before = [array.copy() for array in kept]
        cupy.cuda.get_current_stream().synchronize()
        with stream, cupy.cuda.using_allocator(self._pool.malloc):
            try:
                for _ in range(warmup):
                    step()
            finally:
                for array, old in zip(kept, before):
                    array[...] = old
                stream.synchronize()
            with _no_garbage_collection():
                stream.begin_capture()
                try:
                    self.result = step()
                except BaseException:
                    with contextlib.suppress(Exception):  # the recording is broken, and this would say so
                        stream.end_capture()
                    raise
                self._graph = stream.end_capture()

    def __call__(self) -> Any:
        self._graph.launch()
        return self.result


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python could free an old array or event in the middle of a capture, which CUDA takes for a part of the step."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
