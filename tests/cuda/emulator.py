"""CUDA kernels on a CPU: compiled as C++ with ``shim.h``, and launched on arrays of the CuPy twin.

``RawModule`` has CuPy's interface, as far as ``minivit/cuda/launch.py`` uses it. So the Python code around the kernels
runs as it stands, and is tested with them.
"""

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

SHIM = Path(__file__).with_name("shim.h")
COMPILER = shutil.which("g++")
_folder = tempfile.TemporaryDirectory(prefix="minivit-kernels-")


@functools.cache
def compiled(code: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """The library of all kernels in ``code``; ``run_<kernel>`` launches one."""
    kernels = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", code)
    entries = [
        f'extern "C" void run_{name}(dim3* grid, dim3* block, size_t shared, void** argv) '
        f"{{ launch({name}, *grid, *block, shared, argv); }}\n"
        for name in kernels
    ]
    macros = [f"#define {option[2:].replace('=', ' ', 1)}\n" for option in options if option.startswith("-D")]
    stem = Path(_folder.name) / f"{abs(hash((code, options))):x}"
    text = ['#include "shim.h"\n', *macros, code, "\n", *entries]
    stem.with_suffix(".cpp").write_text("".join(text), encoding="utf-8")
    _compile([f"-I{prepared_shim()}", "-shared", str(stem.with_suffix(".cpp")), "-o", str(stem.with_suffix(".so"))])
    return ctypes.CDLL(str(stem.with_suffix(".so")))


@functools.cache
def prepared_shim() -> str:
    """A folder with the shim in the form in which the compiler has read it already, which halves its time."""
    shim = shutil.copy(SHIM, _folder.name)
    _compile(["-x", "c++-header", shim, "-o", f"{shim}.gch"])
    return _folder.name


def _compile(arguments: list[str]) -> None:
    command = [COMPILER, "-std=c++17", "-O1", "-fno-strict-aliasing", "-fPIC", "-w", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


class RawModule:
    """``cupy.RawModule`` on the CPU."""

    def __init__(self, code: str, options: tuple[str, ...] = ()):
        self.library = compiled(code, options)

    def get_function(self, name: str) -> "Kernel":
        return Kernel(getattr(self.library, f"run_{name}"))


class Kernel:
    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, run):
        self.run = run

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes <= 227 * 1024
        assert np.prod(block) <= 1024 and len(grid) <= 3 and all(0 < n < 2**31 for n in grid)
        assert all(n < 2**16 for n in grid[1:])
        values = [
            np.array(arg.data.ptr, np.uint64) if hasattr(arg, "data") and hasattr(arg.data, "ptr") else np.asarray(arg)
            for arg in args
        ]
        argv = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        self.run(_dim3(grid), _dim3(block), ctypes.c_size_t(shared_mem), argv)


def _dim3(sizes: tuple) -> ctypes.Array:
    return (ctypes.c_uint * 3)(*sizes, *(1,) * (3 - len(sizes)))
