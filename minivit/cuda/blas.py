"""Matrix products on a GPU, through NVIDIA's library cublasLt.

CuPy's own products cannot be part of a captured CUDA graph, and those of three axes copy their operands and know
neither bfloat16 nor TF32. cublasLt is handed the stream and its scratch memory with each call, so it can be captured;
it reads transposed views, batches and both types, and adds a bias on the way.

**Rows and columns.** cublasLt reads memory by columns, as Fortran does; the arrays here lie by rows. What is a matrix
by rows is its transpose by columns:

    memory  0 1 2 3 4 5        by rows  0 1 2        by columns  0 3
                                        3 4 5                    1 4
                                                                 2 5

So nothing is copied, but the operands change places: cublasLt sees xᵀ and yᵀ, and is asked for zᵀ.

    z   =   x      y                    zᵀ  =   yᵀ     xᵀ
    (M, N)  (M, K) (K, N)               (N, M)  (N, K) (K, M)

A view such as ``w.T`` lies by columns already; for it cublasLt has a flag, "take the transpose of what you see". The
*leading dimension* is the distance from one line in memory to the next. It may be longer than the line: then the matrix
is a part of a wider one.

**Plans.** What cublasLt is to be told of a product, and the kernel that it proposes for it, is kept for the next
product of the same shapes, strides, types and alignments. New ones must not come up during the capture of a CUDA graph:
run a step first, then capture it.

**Workspace.** The products of a device share 32 MiB of scratch memory, allocated at the first and never freed: a
captured graph has its address in it. So they must run one after another, in one stream or in streams that wait for each
other.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_float, c_uint64
from types import ModuleType
from typing import Any

from minivit.backend import Array, array_module
from minivit.cuda import cublaslt
from minivit.cuda.cublaslt import Layout, Plan, Product
from minivit.cuda.elementwise import cast
from minivit.cuda.precision import current

TYPES = [("float32",) * 3, ("bfloat16",) * 3, ("bfloat16", "bfloat16", "float32")]  # of operands and result


class _State(threading.local):
    candidates = 1


_state = _State()


@contextmanager
def tuned(candidates: int = 8) -> Iterator[None]:
    """Inside: a product that is new is timed with the first few kernels proposed, and the fastest is kept.

    For the warm-up of a long run. The choice, and with it the last bits of the results, may differ between runs.
    """
    outer, _state.candidates = _state.candidates, candidates
    try:
        yield
    finally:
        _state.candidates = outer


class Device:
    """What cublasLt has on one device: a handle, the workspace, and the plans made so far."""

    def __init__(self, xp: ModuleType):
        self.handle = cublaslt.make("", "the products of a device")
        self.workspace = xp.empty(cublaslt.WORKSPACE, "uint8")
        self.plans: dict[Product, Plan] = {}
        self.lock = threading.Lock()  # a plan holds the address of one bias, from setting it to the call


@functools.cache
def on_device(xp: ModuleType, number: int) -> Device:
    """cublasLt on the device of this number."""
    return Device(xp)


def available() -> bool:
    """Can cublasLt be loaded?

    >>> available() in (True, False)
    True
    """
    return cublaslt.library() is not None


def matmul(
    x: Array,
    y: Array,
    out: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    bias: Array | None = None,
    dtype: Any = None,
) -> Array:
    """out = α x y + β out + bias, with sums in float32; for CuPy arrays.

    x (M, K) and y (K, N) are both float32 or both bfloat16; either may have a batch axis in front, and what has none
    serves the whole batch. Views are read in place where the elements of a row or of a column are neighbours, as in
    slices and in ``w.T``; others are copied. ``bias`` (N,) is added to every row. The result, (M, N) or (batch, M, N),
    is ``out``, or new and of ``dtype``: by default that of x; that of bfloat16 operands may be float32. The bias is
    rounded to the type of the result. Under the precision "tf32" float32 operands are rounded to TF32.

    Raises ValueError and TypeError for shapes and types that do not fit, RuntimeError for what cublasLt refuses.
    """
    xp = array_module(x)
    shape = _shape_of_result(x, y, bias)
    if out is None:
        if beta:
            raise ValueError(f"beta={beta} needs an out to add to")
        out = xp.empty(shape, dtype or x.dtype)
    _check_types(x.dtype, y.dtype, out.dtype)
    if bias is not None:
        bias = xp.ascontiguousarray(cast(bias, out.dtype))
        bias = bias.copy() if bias.data.ptr % 16 else bias  # kernels may read 16 bytes of it at a time
    batch = shape[0] if len(shape) == 3 else 1
    (x, of_x), (y, of_y), of_out = _readable(x, batch), _readable(y, batch), layout(out, batch)
    if out.shape != shape or of_out is None or of_out.transposed:
        raise ValueError(f"out must have shape {shape} and contiguous rows, got {out.shape} with strides {out.strides}")
    compute = cublaslt.FAST_TF32 if current() == "tf32" and x.dtype == "float32" else cublaslt.FLOAT32
    address = 0 if bias is None else bias.data.ptr
    alignments = *map(_alignment, (y.data.ptr, x.data.ptr, out.data.ptr)), address and _alignment(address)
    product = Product(of_y, of_x, of_out, compute, alignments)
    device, stream = on_device(xp, x.device.id), xp.cuda.get_current_stream()

    def run(plan: Plan) -> None:
        a, b, d = (y.data.ptr, plan.a), (x.data.ptr, plan.b), (out.data.ptr, plan.d)
        scratch = device.workspace.data.ptr, cublaslt.WORKSPACE
        factors = byref(c_float(alpha)), byref(c_float(beta))
        arguments = factors[0], *a, *b, factors[1], *d, *d, byref(plan.kernel), *scratch, stream.ptr
        with device.lock:
            if address:
                cublaslt.set_attribute("MatmulDesc", product, plan.product, cublaslt.BIAS_POINTER, c_uint64(address))
            cublaslt.call("cublasLtMatmul", product, device.handle, plan.product, *arguments)

    if product not in device.plans:
        found = cublaslt.plans(device.handle, product, address, _state.candidates)
        if len(found) > 1:
            before = out.copy()
            found.sort(key=lambda plan: _seconds(run, plan, stream))
            out[...] = before
        device.plans[product] = found[0]
    run(device.plans[product])
    return out


def layout(x: Array, batch: int = 1) -> Layout | None:
    """How cublasLt can read ``x``, one of ``batch`` matrices or all of them; None where it cannot.

    >>> x = np.zeros((4, 6), np.float32)
    >>> layout(x)
    Layout(type=0, rows=6, columns=4, leading=6, batch=1, stride=0, transposed=False)
    >>> layout(x[:, :5].T)
    Layout(type=0, rows=5, columns=4, leading=6, batch=1, stride=0, transposed=True)
    >>> layout(x[:, ::2]) is None
    True
    """
    stride = x.strides[0] // x.itemsize if x.ndim == 3 and len(x) > 1 else 0
    for transposed, along, across in ((False, -1, -2), (True, -2, -1)):
        length, count = x.shape[along], x.shape[across]
        leading = x.strides[across] // x.itemsize if count > 1 else length
        if (x.strides[along] == x.itemsize or length == 1) and leading >= length and stride >= 0:
            return Layout(_type(x.dtype), length, count, leading, batch, stride, transposed)
    return None


def _readable(x: Array, batch: int) -> tuple[Array, Layout]:
    """``x``, or a copy where cublasLt could not read it, and its layout."""
    found = layout(x, batch)
    if found is None:
        x = x.copy(order="C")
        found = layout(x, batch)
    return x, found


def _shape_of_result(x: Array, y: Array, bias: Array | None) -> tuple[int, ...]:
    batches = {len(operand) for operand in (x, y) if operand.ndim == 3}
    fits = {x.ndim, y.ndim} <= {2, 3} and x.shape[-1] == y.shape[-2] and len(batches - {1}) < 2
    if not fits or not x.size or not y.size:
        raise ValueError(
            f"matmul needs x (M, K) and y (K, N), not empty, each with or without one batch axis in front, "
            f"got {x.shape} and {y.shape}"
        )
    if bias is not None and bias.shape != y.shape[-1:]:
        raise ValueError(f"bias must have shape {y.shape[-1:]}, one number for each column of y, got {bias.shape}")
    return (*((max(batches),) if batches else ()), x.shape[-2], y.shape[-1])


@functools.cache
def _check_types(x: Any, y: Any, out: Any) -> None:
    if (x.name, y.name, out.name) not in TYPES:
        raise TypeError(f"matmul multiplies float32 to float32, or bfloat16 to either, got {x} and {y} to {out}")


@functools.cache
def _type(dtype: Any) -> int:
    return cublaslt.TYPES[dtype.name]


def _alignment(address: int) -> int:
    """The largest power of two, up to 256 bytes, that divides an address.

    >>> _alignment(48)
    16
    """
    return min(address & -address, 256)


def _seconds(run: Callable[[Plan], None], plan: Plan, stream: Any) -> float:
    """How long ten runs take, after two that fill the caches."""
    for times in 2, 10:
        start = time.perf_counter()
        for _ in range(times):
            run(plan)
        stream.synchronize()
    return time.perf_counter() - start
