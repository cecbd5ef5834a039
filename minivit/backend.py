"""Where an array lives: NumPy on the CPU, CuPy on an NVIDIA GPU.

There is no global ``xp``. An op asks the array it was given, so NumPy and CuPy work side by side in one
process; a device is named only where arrays are created or moved.

A formula (the function of arrays under an op, an optimizer's update, …) is the specification, and runs on both. Beside
it may stand something faster that computes the same, to rounding: loops compiled by Numba for a CPU
(``minivit/loops``), kernels in CUDA C++ for a GPU (``minivit/cuda``).

    @stands_in_for(ops.layer_norm.raw, LOOPS)
    def layer_norm(x, weight, bias, eps=1e-6): …      the same arguments, the same result

A stand-in goes back to the formula for what it does not know: other types, odd shapes. The environment variable
``MINIVIT_FUSED=0`` leaves all formulas in their places.
"""

import ctypes
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray
LOOPS: dict[Callable, Callable] = {}  # formulas, and the loops that stand in for them on a CPU
FUSED: dict[Callable, Callable] = {}  # formulas, and the CUDA kernels that stand in for them on a GPU
ENABLED = os.environ.get("MINIVIT_FUSED", "1") != "0"


def array_module(array: Array) -> ModuleType:
    """The module whose functions compute on ``array``: the package that defines its type, ``numpy`` or ``cupy``.

    >>> array_module(np.zeros(3)).__name__
    'numpy'
    """
    return sys.modules[type(array).__module__.partition(".")[0]]


def implementation(formula: Callable, *arrays: Array) -> Callable:
    """What computes ``formula`` where ``arrays`` lie: what stands in for it there, or itself.

    >>> implementation(np.tanh, np.zeros(3)) is np.tanh
    True
    """
    on_host = any(isinstance(array, np.ndarray) for array in arrays)
    return (LOOPS if on_host else FUSED).get(formula, formula)


def stands_in_for(formula: Callable, table: dict[Callable, Callable]) -> Callable[[Callable], Callable]:
    """Register the decorated function as the stand-in of ``formula`` in ``table``, LOOPS or FUSED."""

    def register(stand_in: Callable) -> Callable:
        stand_in.formula = formula
        if ENABLED:
            table[formula] = stand_in
        return stand_in

    return register


@contextmanager
def formulas_only() -> Iterator[None]:
    """Inside: nothing stands in for anything. For comparisons.

    >>> with formulas_only():
    ...     print(len(LOOPS), len(FUSED))
    0 0
    """
    registered = [(table, dict(table)) for table in (LOOPS, FUSED)]
    for table, _ in registered:
        table.clear()
    try:
        yield
    finally:
        for table, stand_ins in registered:
            table.update(stand_ins)


def device_of(array: Array) -> str:
    """``"cpu"`` for a NumPy array, ``"cuda:0"`` (its number) for a CuPy array.

    >>> device_of(np.zeros(3))
    'cpu'
    """
    device = getattr(array, "device", "cpu")
    return "cpu" if device == "cpu" else f"cuda:{device.id}"


def cache_blocks(array: Array, bytes_per_block: int = 2**22) -> list[slice]:
    """Slices that cut a flat array into pieces small enough to stay in the CPU's cache over several passes.

    Large arrays come and go through main memory once a pass, which costs more than the arithmetic. But each call of
    NumPy is also a moment at which threads wait for one another (it takes the interpreter's lock to begin and to end),
    so blocks are for the third-level cache. A GPU's array is one piece: there a pass is a kernel launch.

    >>> cache_blocks(np.zeros(1_500_000, np.float32))
    [slice(0, 1048576, None), slice(1048576, 1500000, None)]
    """
    length = max(1, bytes_per_block // array.dtype.itemsize if isinstance(array, np.ndarray) else array.size)
    return [slice(start, min(start + length, array.size)) for start in range(0, array.size, length)]


def reuse_freed_memory(reuse: bool = True) -> bool:
    """Tell the C allocator to keep freed memory for the next array; True where it could be told (Linux with glibc).

    A training step frees and allocates the same hundreds of megabytes again and again. glibc gives large blocks back
    to the system each time, and every page of a new one costs a page fault, more than the arithmetic on it. The
    process then holds its peak memory until it ends, so a program decides this, not ``import minivit``. With
    ``reuse=False`` glibc has again what it comes to by itself, and blocks of 32 MB and more go back at once.

    >>> reuse_freed_memory() in (True, False)
    True
    """
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # from malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    large = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
    usual = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_TOP_PAD: 0}
    options = large if reuse else usual
    return all(mallopt(option, value) for option, value in options.items())


def to_device(array: Array, device: str) -> Array:
    """``array`` on ``device`` (``"cpu"``, ``"cuda"`` or ``"cuda:1"``); itself where it is there already.

    Raises ValueError for any other name, and RuntimeError with the way out where CuPy or a GPU is missing.

    >>> to_device(np.zeros(3), "cpu")
    array([0., 0., 0.])
    """
    if device == "cpu":
        return array if isinstance(array, np.ndarray) else array.get()
    cupy, number = _cupy(device)
    with cupy.cuda.Device(number):
        return cupy.asarray(array)


def _cupy(device: str) -> tuple[ModuleType, int]:
    name, _, number = device.partition(":")
    if name != "cuda" or not (number or "0").isdigit():
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:<number>', got {device!r}")
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        raise RuntimeError(
            "device 'cuda' needs CuPy: pip install 'minivit[cuda12]' or 'minivit[cuda13]', "
            "whichever matches the CUDA version that nvidia-smi prints"
        ) from None
    if not cupy.cuda.is_available():
        raise RuntimeError("device 'cuda' needs an NVIDIA GPU and its driver; CuPy is installed, but finds none")
    if (count := cupy.cuda.runtime.getDeviceCount()) <= int(number or 0):
        raise RuntimeError(f"there is no device {device!r}: this machine has {count}, cuda:0 to cuda:{count - 1}")
    return cupy, int(number or 0)
