"""Linear layers and products of matrices on a GPU: the formulas of ``ops/linear.py`` in the precision in force.

    precision    operands               result      gradients of x or y    of the weight and the bias
    fp32, tf32   float32                float32     float32                float32
    bf16         rounded to bfloat16    bfloat16    the type of x or y     float32

Sums are float32 throughout. The gradient of a weight is a sum over all tokens of a batch, and is not rounded to
bfloat16.
"""

import numpy as np

from minivit import ops
from minivit.autograd import wanted
from minivit.backend import Array, array_module
from minivit.cuda import blas
from minivit.cuda.elementwise import cast
from minivit.cuda.precision import current, precision, working_type
from minivit.cuda.reduction import column_sums
from minivit.cuda.registry import stands_in_for


@stands_in_for(ops.linear.raw)
def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple:
    """Three products: forward, with the bias added on the way, and two back. x (…, I) → (…, O)."""
    if not _multiplies(x, weight) or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        return ops.linear.raw(x, weight, bias)
    if bias is not None and bias.shape != weight.shape[:1]:
        return ops.linear.raw(x, weight, bias)
    name, kind, shape, x_type = current(), working_type(x), x.shape, x.dtype
    rows, operand = cast(x.reshape(-1, shape[-1]), kind), cast(weight, kind)
    y = blas.matmul(rows, operand.T, bias=bias)
    rows_kept, weight_kept = rows if wanted(1) else None, operand if wanted(0) else None
    bias_wanted = bias is not None and wanted(2)

    def pullback(dy):
        dy = cast(dy.reshape(-1, dy.shape[-1]), kind)
        with precision(name):
            dx = None if weight_kept is None else blas.matmul(dy, weight_kept, dtype=x_type).reshape(shape)
            dweight = None if rows_kept is None else blas.matmul(dy.T, rows_kept, dtype="float32")
        return dx, dweight, column_sums(dy) if bias_wanted else None

    return y.reshape(shape[:-1] + y.shape[-1:]), pullback


@stands_in_for(ops.matmul.raw)
def matmul(x: Array, y: Array) -> tuple:
    """A matrix y serves all rows of x, (…, M, K) as one tall matrix; otherwise leading axes become one batch axis."""
    if not _multiplies(x, y) or min(x.ndim, y.ndim) < 2 or x.shape[-1] != y.shape[-2]:
        return ops.matmul.raw(x, y)
    name, kind, types = current(), working_type(x), (x.dtype, y.dtype)
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    shapes = batch + x.shape[-2:], y.shape if y.ndim == 2 else batch + y.shape[-2:]
    x, y = _flat(cast(x, kind), shapes[0], y.ndim == 2), _flat(cast(y, kind), shapes[1], y.ndim == 2)
    z = blas.matmul(x, y)
    shape = z.shape
    x_kept, y_kept = x if wanted(1) else None, y if wanted(0) else None

    def pullback(dz):
        dz = cast(dz, kind).reshape(shape)
        dx = dy = None
        with precision(name):
            if y_kept is not None:
                dx = blas.matmul(dz, y_kept.swapaxes(-1, -2), dtype=types[0]).reshape(shapes[0])
            if x_kept is not None:
                dy = blas.matmul(x_kept.swapaxes(-1, -2), dz, dtype=types[1]).reshape(shapes[1])
        return dx, dy

    return z.reshape(shapes[0][:-1] + shape[-1:]), pullback


def _flat(x: Array, shape: tuple[int, ...], rows: bool) -> Array:
    """x, broadcast to ``shape``, as a matrix of all its rows or as matrices on one batch axis."""
    return array_module(x).broadcast_to(x, shape).reshape(-1, *shape[-1 if rows else -2 :])


def _multiplies(x: Array, y: Array) -> bool:
    """Does cublasLt compute the product? If not, and the formula can, the formula does.

    Raises RuntimeError where a precision is asked for that only cublasLt has, and there is none.
    """
    types = {x.dtype.name, y.dtype.name}
    fits = types <= {"float32", "bfloat16"} if current() == "bf16" else types in ({"float32"}, {"bfloat16"})
    if not fits or not x.size or not y.size:
        return False
    return current() != "fp32" or blas.available()
