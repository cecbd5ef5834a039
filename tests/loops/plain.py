"""Loops run by Python, number by number: what they compute, without the compiler, and without the need of one.

``loops()`` loads the files of ``minivit/loops`` anew with stand-ins for Numba, which leaves functions as they are, and
for BLAS, whose product is NumPy's. An index that leaves an array is then an IndexError.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

import minivit.loops
from minivit.backend import LOOPS

FOLDER = Path(minivit.loops.__file__).parent
FILES = "activation", "normalization", "batch_norm", "convolution", "optim", "attention", "linear", "mlp"


def loops(changed: dict[str, CodeType] | None = None) -> SimpleNamespace:
    """The stand-ins by name, ``loops().gelu`` and so on, and ``exp``; ``changed`` is other code for some files."""
    compiler = ModuleType("minivit.loops.compiler")
    blas = ModuleType("minivit.loops.blas")
    vars(blas).update(multiply=multiply, readable=lambda array: True)
    found = {}
    with mock.patch.dict(sys.modules, _numba()), mock.patch.dict(LOOPS):
        _run("compiler", compiler, changed)
        vars(compiler).update(larger=np.maximum, float_of_bits=lambda bits: np.int32(bits).view(np.float32))
        vars(compiler).update(in_widest_vectors=lambda: None)
        with mock.patch.dict(sys.modules, {compiler.__name__: compiler, blas.__name__: blas}):
            for name in FILES:
                _run(name, module := ModuleType(name), changed)
                found |= {key: value for key, value in vars(module).items() if hasattr(value, "formula")}
    return SimpleNamespace(**found, exp=compiler.exp)


@contextmanager
def new_memory_is_nan() -> Iterator[None]:
    """Inside: a number that a loop forgets to write is seen."""
    empty, empty_like = np.empty, np.empty_like
    with mock.patch.multiple(
        np, empty=lambda *a, **k: nan(empty(*a, **k)), empty_like=lambda *a, **k: nan(empty_like(*a, **k))
    ):
        yield


def nan(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        array.fill(np.nan)
    return array


def multiply(alpha: float, a: np.ndarray, a_transposed: bool, b: np.ndarray, b_transposed: bool, c: np.ndarray) -> None:
    """As ``minivit.loops.blas.multiply``."""
    c[...] = np.float32(alpha) * ((a.T if a_transposed else a) @ (b.T if b_transposed else b))


def _run(name: str, module: ModuleType, changed: dict[str, CodeType] | None) -> None:
    path = FOLDER / f"{name}.py"
    code = (changed or {}).get(name) or compile(path.read_text(encoding="utf-8"), str(path), "exec")
    exec(code, vars(module))


def _numba() -> dict[str, Any]:
    """Modules with what ``compiler.py`` imports."""
    numba = SimpleNamespace(njit=lambda **options: lambda function: function, types=None)
    extending = SimpleNamespace(intrinsic=lambda function: function)
    return {"numba": numba, "numba.extending": extending, "llvmlite": SimpleNamespace(ir=None)}
