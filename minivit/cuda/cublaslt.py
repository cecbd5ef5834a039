"""The C library cublasLt, NVIDIA's matrix products: its functions and numbers, and how a product is described to it.

The library has objects for a product, for each of its matrices, and for what to look for in a kernel. They are made
with ``make``, carry numbered attributes, and are referred to by address. Every function returns a status. The numbers
are those of the headers cublasLt.h, cublas_api.h and library_types.h, the same in CUDA 12 and 13.

It has hundreds of kernels, and a heuristic that proposes some for given shapes, types and alignments. A ``Plan`` is a
product's objects with one of them. The heuristic must not be asked during the capture of a CUDA graph.
"""

import ctypes
import functools
from collections.abc import Mapping
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

WORKSPACE = 32 * 2**20  # bytes of scratch memory that a kernel may use: what NVIDIA advises for Hopper

TYPES = {"float32": 0, "bfloat16": 14}  # cudaDataType
FLOAT32, FAST_TF32 = 68, 77  # cublasComputeType_t: sums in float32, of products as they are or rounded to TF32
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER, BIAS_DATA_TYPE = 3, 4, 7, 8, 26  # attributes of a product
NOTHING, ADD_BIAS = 1, 4  # epilogues: what is done to a result before it is written
BATCH_COUNT, STRIDED_BATCH_OFFSET = 5, 6  # attributes of a matrix
MAX_WORKSPACE_BYTES, MIN_ALIGNMENTS = 1, (5, 6, 7, 8)  # attributes of a wish for a kernel; of the matrices A, B, C, D
STATUS = {
    1: "not initialized (is there a GPU, and its driver?)",
    3: "out of memory",
    7: "invalid value",
    8: "this GPU lacks what it needs",
    13: "the kernel failed",
    14: "internal error",
    15: "not supported",
}

SIGNATURES = {
    "cublasLtCreate": [c_void_p],
    "cublasLtMatmulDescCreate": [c_void_p, c_int, c_int],
    "cublasLtMatmulDescSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatrixLayoutCreate": [c_void_p, c_int, c_uint64, c_uint64, c_int64],
    "cublasLtMatrixLayoutSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulPreferenceCreate": [c_void_p],
    "cublasLtMatmulPreferenceSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulAlgoGetHeuristic": [*[c_void_p] * 7, c_int, c_void_p, c_void_p],
    "cublasLtMatmul": [*[c_void_p] * 14, c_size_t, c_void_p],
}


@functools.cache
def library() -> Any:
    """The library with the types of its arguments, or None where it cannot be loaded."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # comes with CuPy

        loaded = ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)
    except (ImportError, RuntimeError, OSError):
        return None
    for name, types in SIGNATURES.items():
        getattr(loaded, name).argtypes = types
    return loaded


def call(function: str, purpose: object, *args: Any) -> None:
    """Call a function of the library.

    Raises RuntimeError, with the purpose in words, where the function reports an error or there is no library.
    """
    if library() is None:
        raise RuntimeError(
            "NVIDIA's library cublasLt, which multiplies matrices in TF32 and bfloat16, could not be loaded: "
            "pip install nvidia-cublas (for CUDA 12 nvidia-cublas-cu12), or use the precision fp32"
        )
    status = getattr(library(), function)(*args)
    if status:
        raise RuntimeError(f"{function} for {purpose}: {STATUS.get(status, 'unknown error')} (cuBLAS status {status})")


def make(kind: str, purpose: object, *args: Any, attributes: Mapping[int, Any] | None = None) -> c_void_p:
    """A new object, "MatmulDesc", "MatrixLayout" or "MatmulPreference" (or "", a handle), with its attributes."""
    made = c_void_p()
    call(f"cublasLt{kind}Create", purpose, byref(made), *args)
    for attribute, value in (attributes or {}).items():
        set_attribute(kind, purpose, made, attribute, value)
    return made


def set_attribute(kind: str, purpose: object, made: c_void_p, attribute: int, value: Any) -> None:
    """Write an attribute of an object. ``value`` is a number of ctypes, of just the size that the header gives."""
    call(f"cublasLt{kind}SetAttribute", purpose, made, attribute, byref(value), ctypes.sizeof(value))


class Proposal(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``: a kernel with its settings, in 64 opaque bytes, and what it needs."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class Layout(NamedTuple):
    """How a matrix, or a batch of them, lies in memory, counted in elements. Neighbours make a column."""

    type: int
    rows: int
    columns: int
    leading: int  # dimension: from a column to the next
    batch: int
    stride: int  # from a matrix of the batch to the next; 0 where all are the same one
    transposed: bool  # is the transpose of this matrix the operand?


class Product(NamedTuple):
    """D = α op(A) op(B) + β C + bias, with C and D in one place. Alignments, of A, B, D and the bias, are in bytes.

    >>> y, x, z = Layout(0, 5, 3, 5, 1, 0, False), Layout(0, 3, 2, 3, 1, 0, False), Layout(0, 5, 2, 5, 1, 0, False)
    >>> print(Product(y, x, z, FLOAT32, (256, 256, 256, 0)))
    (2, 3) @ (3, 5), float32 to float32
    """

    a: Layout
    b: Layout
    d: Layout
    compute: int
    alignments: tuple[int, int, int, int]  # the last is 0 where there is no bias

    def __str__(self) -> str:
        names = {number: name for name, number in TYPES.items()}
        inner = self.b.columns if self.b.transposed else self.b.rows
        batch = f"{self.d.batch} times " if self.d.batch > 1 else ""
        bias = " + bias" if self.alignments[3] else ""
        rows, columns = self.d.columns, self.d.rows  # as the arrays have them: see blas.py
        return f"{batch}({rows}, {inner}) @ ({inner}, {columns}){bias}, {names[self.a.type]} to {names[self.d.type]}"


class Plan(NamedTuple):
    """cublasLt's objects for a product and its matrices, and a kernel."""

    product: c_void_p
    a: c_void_p
    b: c_void_p
    d: c_void_p
    kernel: Proposal


def describe(product: Product, bias: int) -> tuple[c_void_p, c_void_p, c_void_p, c_void_p]:
    """The objects for a product and its matrices. ``bias`` is an address (0: none); the heuristic looks at it."""
    attributes = {TRANSA: c_int32(product.a.transposed), TRANSB: c_int32(product.b.transposed)}
    attributes[EPILOGUE] = c_uint32(ADD_BIAS if bias else NOTHING)
    if bias:  # of the type of the result: no other is allowed
        attributes |= {BIAS_POINTER: c_uint64(bias), BIAS_DATA_TYPE: c_int32(product.d.type)}
    description = make("MatmulDesc", product, product.compute, TYPES["float32"], attributes=attributes)
    matrices = []
    for x in (product.a, product.b, product.d):
        batch = {BATCH_COUNT: c_int32(x.batch), STRIDED_BATCH_OFFSET: c_int64(x.stride)}
        matrices.append(make("MatrixLayout", product, x.type, x.rows, x.columns, x.leading, attributes=batch))
    return description, *matrices


def plans(handle: c_void_p, product: Product, bias: int, count: int = 1) -> list[Plan]:
    """A plan for each of the kernels that the heuristic proposes, its favourite first, ``count`` at most.

    Raises RuntimeError where it knows none.
    """
    description, a, b, d = describe(product, bias)
    of_a, of_b, of_d, _ = product.alignments
    attributes = {key: c_uint32(n) for key, n in zip(MIN_ALIGNMENTS, (of_a, of_b, of_d, of_d))}
    wish = make("MatmulPreference", product, attributes={MAX_WORKSPACE_BYTES: c_uint64(WORKSPACE), **attributes})
    proposals, found = (Proposal * count)(), c_int()
    arguments = handle, description, a, b, d, d, wish, count, proposals, byref(found)
    call("cublasLtMatmulAlgoGetHeuristic", product, *arguments)
    usable = [proposal for proposal in proposals[: found.value] if proposal.status == 0]
    if not usable:
        raise RuntimeError(f"cublasLt has no kernel for {product}")
    return [Plan(description, a, b, d, proposal) for proposal in usable]
