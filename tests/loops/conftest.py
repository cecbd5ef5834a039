"""Each test of loops runs on them as Python runs them, and compiled, where Numba is installed."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from minivit.backend import ENABLED
from tests.loops import plain

COMPILED = ENABLED and bool(importlib.util.find_spec("numba"))
needs_numba = pytest.mark.skipif(not COMPILED, reason="needs Numba: pip install 'minivit[fast]'")


@pytest.fixture(scope="session", params=["python", pytest.param("numba", marks=needs_numba)])
def loops(request) -> SimpleNamespace:
    """``gelu``, ``layer_norm``, … by name."""
    if request.param == "python":
        return SimpleNamespace(**vars(plain.loops()), compiled=False)
    modules = [importlib.import_module(f"minivit.loops.{name}") for name in plain.FILES]
    stand_ins = {key: value for module in modules for key, value in vars(module).items() if hasattr(value, "formula")}
    return SimpleNamespace(**stand_ins, exp=compiled_exp(), compiled=True)


@functools.cache
def compiled_exp() -> Callable[[np.float32], np.float32]:
    from numba import njit

    from minivit.loops.compiler import exp

    compiled = njit(lambda x: exp(x))
    return lambda x: np.float32(compiled(x))
