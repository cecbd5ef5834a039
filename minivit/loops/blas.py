"""Matrix products inside of loops: the function ``cblas_sgemm`` of a BLAS library, called without Python.

A loop can so multiply, and use the product while it is in the cache. The library is the one that NumPy brought, or MKL
where that is installed (``pip install 'minivit[mkl]'``) and faster: it is on Intel's processors, and not on AMD's that
know no AVX-512, of which Zen 2 was measured (``benchmarks/README.md``). Small products, as of a head of 17 tokens, are
NumPy's in any case: OpenBLAS has code of its own for them, while MKL takes longer to prepare one than to multiply. Only
libraries are taken whose integers have 64 bits, as NumPy's from PyPI have. How many cores a product takes is the
library's affair, and threadpoolctl's, as with NumPy's own products.
"""

import ctypes
import functools
import importlib.metadata
from typing import Any

import numpy as np
from llvmlite import binding
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from threadpoolctl import threadpool_info

from minivit.loops.compiler import inlined

ROW_MAJOR, AS_IT_IS, TRANSPOSED = 101, 111, 112  # CBLAS's names for the order of memory, and for op(A)
NAMES = "cblas_sgemm_64", "scipy_cblas_sgemm64_", "cblas_sgemm64_"  # of MKL, of NumPy's OpenBLAS, of others
SMALL = 2**15  # multiplications of a small product


@functools.cache
def library() -> str | None:
    """The path of the library whose products loops use; None where there is none, and formulas have to do."""
    found, numpys = [], [info["filepath"] for info in threadpool_info() if info["user_api"] == "blas"]
    for path in _fastest_first(binding.get_host_cpu_name(), numpys, _mkl()):
        try:
            blas = ctypes.CDLL(path)
        except OSError:
            continue
        found += [(path, name, getattr(blas, name)) for name in NAMES if hasattr(blas, name)]
    if not found:
        return None
    small = [sgemm for _, name, sgemm in found if name != NAMES[0]]
    path, _, large = found[0]
    for symbol, sgemm in (("minivit_sgemm", large), ("minivit_small_sgemm", (small or [large])[0])):
        binding.add_symbol(symbol, ctypes.cast(sgemm, ctypes.c_void_p).value)
    return path


def _mkl() -> list[str]:
    """Where pip has put MKL, if it has."""
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [str(file.locate()) for file in files if file.name.startswith(("libmkl_rt.so", "mkl_rt."))]


def _fastest_first(processor: str, numpys: list[str], mkl: list[str]) -> list[str]:
    """By LLVM's name of the processor, and not by the clock, so that each run of a program computes with the same.

    >>> _fastest_first("sapphirerapids", ["OpenBLAS"], ["MKL"]), _fastest_first("znver2", ["OpenBLAS"], ["MKL"])
    (['MKL', 'OpenBLAS'], ['OpenBLAS', 'MKL'])
    """
    return numpys + mkl if processor in ("znver1", "znver2", "znver3") else mkl + numpys


_int, _long, _float, _pointer = types.int32, types.int64, types.float32, types.voidptr
_signature = types.void(  # of order, op(A), op(B), M, N, K, α, A and its row's length, B and its, β, C and its
    *(_int, _int, _int), *(_long, _long, _long), _float, *(_pointer, _long) * 2, _float, *(_pointer, _long)
)
_sgemm = types.ExternalFunction("minivit_sgemm", _signature)
_small_sgemm = types.ExternalFunction("minivit_small_sgemm", _signature)


@intrinsic
def _address(context: Any, array: Any) -> tuple:
    """Where an array lies in memory."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.bitcast(data, cgutils.voidptr_t)

    return types.voidptr(array), code


@inlined
def multiply(alpha, a, a_transposed, b, b_transposed, c):
    """C = α op(A) op(B), where op transposes or not. Of each matrix, float32, a row is contiguous: see ``readable``."""
    m, n = c.shape
    k = a.shape[0] if a_transposed else a.shape[1]
    arguments = (
        np.int32(ROW_MAJOR),
        np.int32(TRANSPOSED if a_transposed else AS_IT_IS),
        np.int32(TRANSPOSED if b_transposed else AS_IT_IS),
        m, n, k, np.float32(alpha), _address(a), a.strides[0] // 4, _address(b), b.strides[0] // 4,
        np.float32(0), _address(c), c.strides[0] // 4,
    )  # fmt: skip
    if m * n * k < SMALL:
        _small_sgemm(*arguments)
    else:
        _sgemm(*arguments)


def readable(array: np.ndarray) -> bool:
    """Can BLAS read the matrices that are the last two axes? Rows are contiguous, one beginning after another's end.

    >>> x = np.ones((4, 6), np.float32)
    >>> readable(x[:, 2:4]), readable(x.T)
    (True, False)
    """
    return array.strides[-1] == array.itemsize and array.strides[-2] >= array.itemsize * array.shape[-1]
