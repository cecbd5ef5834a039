"""From a ``.cu`` file to a running kernel: compiled at its first use, for the types and sizes of that use.

CuPy hands the source to NVRTC, the compiler that comes with CUDA's runtime, and keeps what it made on disk. Types and
sizes are given as constants of the compilation, so that loops have a known length and rows fit in registers.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from minivit.backend import Array, array_module

FOLDER = Path(__file__).parent / "kernels"
TYPES = {"float32": "float", "bfloat16": "bf16", "uint8": "unsigned char", "int64": "long long", "int32": "int"}


def source(file: str) -> str:
    """The text of ``kernels/<file>.cu`` after ``common.cuh``, with the lines numbered as in the files.

    >>> source("reduce").startswith('#line 1 "common.cuh"')
    True
    """
    names = "common.cuh", f"{file}.cu"
    return "\n".join(f'#line 1 "{name}"\n{(FOLDER / name).read_text(encoding="utf-8")}' for name in names)


def options(constants: dict[str, Any]) -> tuple[str, ...]:
    """The compiler's options: each constant as a macro, a dtype by its name in C.

    >>> options({"X": np.dtype("float32"), "WIDTH": 384})
    ('-std=c++17', '-DX=float', '-DWIDTH=384')
    """
    return ("-std=c++17", *(f"-D{name}={TYPES.get(str(value), value)}" for name, value in constants.items()))


@functools.cache
def _compiled(xp: Any, device: int, file: str, kernel: str, macros: tuple[str, ...]) -> Any:
    return xp.RawModule(code=source(file), options=macros).get_function(kernel)


def launch(file: str, kernel: str, grid: Any, block: int, *args: Any, shared: int = 0, **constants: Any) -> None:
    """Start ``kernel`` of ``kernels/<file>.cu`` on ``grid`` blocks (a number or a tuple) of ``block`` threads.

    ``args`` are CuPy arrays, whose memory the kernel reads and writes without asking for strides, whole numbers (of 32
    bits) and numbers; None is a null pointer. ``constants`` (dtypes and whole numbers) are those of the compilation;
    ``shared`` are the bytes of shared memory that the kernel does not declare itself.

    Raises ValueError for an array that is not contiguous.
    """
    plain = []
    for i, arg in enumerate(args):
        if hasattr(arg, "flags"):
            if not arg.flags.c_contiguous:
                raise ValueError(f"argument {i} of the kernel {kernel} must be contiguous, got strides {arg.strides}")
            plain.append(arg)
        elif arg is None:
            plain.append(np.uint64(0))
        else:
            plain.append(np.float32(arg) if isinstance(arg, float) else np.int32(arg))
    array: Array = next(arg for arg in args if hasattr(arg, "flags"))
    function = _compiled(array_module(array), array.device.id, file, kernel, options(constants))
    if shared > 48 * 1024:  # what every block may have; more is to be asked for
        function.max_dynamic_shared_size_bytes = shared
    function(grid if isinstance(grid, tuple) else (grid,), (block,), tuple(plain), shared_mem=shared)
