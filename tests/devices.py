"""One test for the CuPy twin and for CuPy: what they are asked for in the same words.

A test that takes the fixture ``gpu`` runs on the twin, and under the marker ``gpu`` on an NVIDIA GPU; ``import cupy``
gives the one that it runs on.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.cupy_twin import forbid_synchronisation, installed, twin, wrap


@contextmanager
def standing_in(name: str) -> Iterator[ModuleType]:
    """Inside, ``import cupy`` gives the "twin", or else CuPy itself; the test is skipped where that finds no GPU."""
    if name == "twin":
        with installed():
            yield twin
        return
    cupy = pytest.importorskip("cupy", reason="no CuPy")
    if not cupy.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    importlib.import_module("minivit.cuda")  # with its kernels
    yield cupy


def cupy() -> ModuleType:
    """The twin or CuPy, whichever it is now."""
    return importlib.import_module("cupy")


def moved(x: Any) -> Any:
    """An array on the GPU; all else as it is. On the twin in the same places of memory, and read-only if it was."""
    if not isinstance(x, np.ndarray):
        return x
    return wrap(x) if cupy() is twin else cupy().asarray(x)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, it is an error if the host waits for the GPU. CuPy sees fewer causes than the twin."""
    if cupy() is twin:
        with forbid_synchronisation():
            yield
        return
    from cupyx import allow_synchronize

    with ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it cannot see every cause
            stack.enter_context(allow_synchronize(False))
        yield
