"""Where an array lives: NumPy on the CPU, CuPy on an NVIDIA GPU.

There is no global ``xp``. An op asks the array it was given, so NumPy and CuPy work side by side in one
process; a device is named only where arrays are created or moved.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray


def array_module(array: Array) -> ModuleType:
    """The module whose functions compute on ``array``: the package that defines its type, ``numpy`` or ``cupy``.

    >>> array_module(np.zeros(3)).__name__
    'numpy'
    """
    return sys.modules[type(array).__module__.partition(".")[0]]


def device_of(array: Array) -> str:
    """``"cpu"`` for a NumPy array, ``"cuda:0"`` (its number) for a CuPy array.

    >>> device_of(np.zeros(3))
    'cpu'
    """
    device = getattr(array, "device", "cpu")
    return "cpu" if device == "cpu" else f"cuda:{device.id}"


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
    return cupy, int(number or 0)
