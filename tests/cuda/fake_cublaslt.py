"""cublasLt on a CPU: what the C library would do with the descriptions that it is given, done by NumPy.

Each function is a C function pointer that leads back to Python, so arguments pass through ctypes as on their way to the
library. The numbers are written here once more, from the headers: nothing of ``minivit/cuda/cublaslt.py`` is believed
but its signatures. What the library would refuse, or read wrongly without a word, is refused, and ``refused`` says why.
"""

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from minivit.cuda import blas, cublaslt
from tests.cupy_twin import twin

SUCCESS, NOT_INITIALIZED, INVALID_VALUE, NOT_SUPPORTED = 0, 1, 7, 15
DTYPES = {0: np.dtype(np.float32), 14: np.dtype(ml_dtypes.bfloat16)}
COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 68, 77
SIZES = {  # of the attributes, in bytes
    "MatmulDesc": {3: 4, 4: 4, 7: 4, 8: 8, 10: 8, 26: 4},
    "MatrixLayout": {0: 4, 1: 4, 2: 8, 3: 8, 4: 8, 5: 4, 6: 8},
    "MatmulPreference": {1: 8, 5: 4, 6: 4, 7: 4, 8: 4},
}
DEFAULTS = {
    "MatmulDesc": {3: 0, 4: 0, 7: 1, 8: 0, 10: 0, 26: -1},
    "MatrixLayout": {1: 0, 5: 1, 6: 0},
    "MatmulPreference": {1: 0, 5: 256, 6: 256, 7: 256, 8: 256},
}
Object = dict[int, Any]  # the attributes of one of the library's objects


class Refused(Exception):
    """With the status that the library would return."""


def check(condition: bool, why: str, status: int = INVALID_VALUE) -> None:
    if not condition:
        raise Refused(status, why)


class FakeCublasLt:
    """The functions of ``cublaslt.SIGNATURES``, their calls in ``counts``, and the compute types of products run."""

    def __init__(self, proposals: int = 3):
        self.objects: dict[int, tuple[str, Object]] = {}
        self.kernels: list[tuple] = []  # what each proposed kernel was proposed for
        self.available = proposals
        self.counts: Counter[str] = Counter()
        self.refused: list[str] = []
        self.computes: list[int] = []  # of each product run
        self.workspaces: set[tuple[int, int]] = set()  # addresses and sizes given to them
        functions = {"cublasLtCreate": self.create, "cublasLtMatmulAlgoGetHeuristic": self.heuristic}
        functions |= {"cublasLtMatmul": self.matmul, "cublasLtMatmulDescCreate": self.create_product}
        functions |= {"cublasLtMatrixLayoutCreate": self.create_matrix}
        functions |= {"cublasLtMatmulPreferenceCreate": lambda made: self.new(made, "MatmulPreference", {})}
        for kind in SIZES:
            functions[f"cublasLt{kind}SetAttribute"] = self.setter(kind)
        for name, types in cublaslt.SIGNATURES.items():
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *types)(self.guarded(name, functions[name])))

    def guarded(self, name: str, function: Callable) -> Callable:
        def guarded(*args):
            self.counts[name] += 1
            try:
                function(*args)
                return SUCCESS
            except Refused as refusal:
                status, why = refusal.args
            except Exception as error:  # it cannot pass through C
                status, why = 14, repr(error)
            self.refused.append(f"{name}: {why}")
            return status

        return guarded

    # --- objects ---------------------------------------------------------------------------------------------------

    def new(self, made: int, kind: str, attributes: Object) -> None:
        address = 4096 + len(self.objects)
        self.objects[address] = kind, {**DEFAULTS.get(kind, {}), **attributes}
        ctypes.c_void_p.from_address(made).value = address

    def object(self, address: int, kind: str) -> Object:
        found, attributes = self.objects.get(address, ("nothing", {}))
        check(found == kind, f"{found} was given where {kind} belongs")
        return attributes

    def create(self, made: int) -> None:
        self.new(made, "handle", {})

    def create_product(self, made: int, compute: int, scale: int) -> None:
        check(compute in (COMPUTE_32F, COMPUTE_32F_FAST_TF32) and scale == 0, f"compute {compute}, scale type {scale}")
        self.new(made, "MatmulDesc", {"compute": compute})

    def create_matrix(self, made: int, dtype: int, rows: int, columns: int, leading: int) -> None:
        check(dtype in DTYPES and rows > 0 and columns > 0 and leading >= rows, f"{rows} × {columns}, ld {leading}")
        self.new(made, "MatrixLayout", {0: dtype, 2: rows, 3: columns, 4: leading})

    def setter(self, kind: str) -> Callable:
        def set_attribute(address: int, attribute: int, value: int, size: int) -> None:
            check(size == SIZES[kind].get(attribute), f"{size} bytes for attribute {attribute} of {kind}")
            number = {4: ctypes.c_int32, 8: ctypes.c_int64}[size].from_address(value).value
            self.object(address, kind)[attribute] = number

        return set_attribute

    # --- products --------------------------------------------------------------------------------------------------

    def described(self, product: int, matrices: tuple[int, ...]) -> tuple[Object, list[Object]]:
        """The objects at these addresses, A, B, C and D, after checking that they fit."""
        what = self.object(product, "MatmulDesc")
        a, b, c, d = objects = [self.object(matrix, "MatrixLayout") for matrix in matrices]
        (m, k), (k_b, n) = _turned((a[2], a[3]), what[3]), _turned((b[2], b[3]), what[4])
        check(k == k_b and (m, n) == (c[2], c[3]) == (d[2], d[3]), f"({m}, {k}) ({k_b}, {n}) to {d[2], d[3]}")
        check(len({x[5] for x in objects}) == 1, "matrices of different batch counts")
        check(c == d and all(x[1] == 0 for x in objects), "C and D must be alike, and all in column order")
        check(d[5] == 1 or abs(d[6]) >= (n - 1) * d[4] + m, "the matrices of a batch of results overlap")
        types = a[0], b[0], d[0]
        check(types in ((0, 0, 0), (14, 14, 14), (14, 14, 0)), f"types {types}", NOT_SUPPORTED)
        check(what["compute"] == COMPUTE_32F or types == (0, 0, 0), "TF32 of other types than float32", NOT_SUPPORTED)
        check(what[7] in (1, 4), f"epilogue {what[7]}", NOT_SUPPORTED)
        if what[7] == 4:
            check(what[8] != 0, "no address of the bias")
            check(what[26] in (-1, d[0]), f"a bias of type {what[26]} for a result of type {d[0]}", NOT_SUPPORTED)
        return what, objects

    def heuristic(self, handle, product, a, b, c, d, wish, count, results, found) -> None:
        self.object(handle, "handle")
        what, _ = self.described(product, (a, b, c, d))
        wishes = self.object(wish, "MatmulPreference")
        check(count > 0, "no place for a result")
        given = min(count, self.available)
        check(given > 0, "no kernel", NOT_SUPPORTED)
        for i in range(given):
            result = (ctypes.c_uint64 * 12).from_address(results + 96 * i)
            result[:] = [0] * 12
            result[0], result[8] = 1 + len(self.kernels), wishes[1] // 2  # the kernel's number; its workspace
            self.kernels.append((product, (a, b, c, d), wishes, _alignment(what[8]) if what[7] == 4 else 1))
        ctypes.c_int.from_address(found).value = given

    def matmul(self, handle, product, alpha, a, of_a, b, of_b, beta, c, of_c, d, of_d, kernel, scratch, size, stream):
        self.object(handle, "handle")
        matrices = of_a, of_b, of_c, of_d
        what, objects = self.described(product, matrices)
        number = ctypes.c_uint64.from_address(kernel).value
        check(0 < number <= len(self.kernels), "a kernel that was not proposed")
        planned, planned_matrices, wishes, bias_alignment = self.kernels[number - 1]
        check((planned, planned_matrices) == (product, matrices), "the kernel was proposed for another product")
        check(size >= wishes[1] // 2 and scratch % 16 == 0, f"a workspace of {size} bytes at {scratch}")
        for name, address, least in zip("ABCD", (a, b, c, d), (wishes[i] for i in (5, 6, 7, 8))):
            check(address % least == 0, f"{name} lies at {address}, and was to be a multiple of {least}")
        alpha, beta = (ctypes.c_float.from_address(x).value for x in (alpha, beta))
        left, right, before, result = (_array(x, memory) for x, memory in zip(objects, (a, b, c, d)))
        left, right = (x.swapaxes(-1, -2) if turned else x for x, turned in ((left, what[3]), (right, what[4])))
        if what["compute"] == COMPUTE_32F_FAST_TF32:
            left, right = tf32(left), tf32(right)
        total = alpha * (left.astype(np.float32) @ right.astype(np.float32))
        if beta:
            total += beta * before.astype(np.float32)
        if what[7] == 4:
            check(what[8] % max(16, bias_alignment) == 0, f"the bias lies at {what[8]}")
            bias = {2: objects[3][2], 3: 1, 4: objects[3][2], 0: objects[3][0], 5: 1, 6: 0}
            total += _array(bias, what[8])[0].astype(np.float32)  # a column, added to all columns
        result[...] = total.astype(result.dtype)
        self.computes.append(what["compute"])
        self.workspaces.add((scratch, size))


def tf32(x: np.ndarray) -> np.ndarray:
    """Rounded to 10 bits of mantissa."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def _alignment(address: int) -> int:
    return min(address & -address, 256)


def _turned(shape: tuple[int, int], transposed: int) -> tuple[int, int]:
    check(transposed in (0, 1), f"operation {transposed}")
    return shape[::-1] if transposed else shape


def _array(x: Object, address: int) -> np.ndarray:
    """The memory that a matrix object describes, (batch, rows, columns)."""
    dtype, rows, columns, leading, batch, stride = DTYPES[x[0]], *(x[i] for i in (2, 3, 4, 5, 6))
    length = stride * (batch - 1) + leading * (columns - 1) + rows
    memory = np.frombuffer((ctypes.c_char * (length * dtype.itemsize)).from_address(address), dtype)
    strides = (stride * dtype.itemsize, dtype.itemsize, leading * dtype.itemsize)
    return np.lib.stride_tricks.as_strided(memory, (batch, rows, columns), strides)


@contextmanager
def installed(xp: ModuleType = twin, **options: Any) -> Iterator[FakeCublasLt | None]:
    """Inside: ``minivit.cuda`` finds this in place of the library. CuPy keeps the library itself, and None is given."""
    if xp is not twin:
        yield None
        return
    fake, real = FakeCublasLt(**options), cublaslt.library
    blas.on_device.cache_clear()
    cublaslt.library = lambda: fake
    try:
        yield fake
    finally:
        cublaslt.library = real
        blas.on_device.cache_clear()
