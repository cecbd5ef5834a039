"""Layer normalisation on a GPU: ``kernels/layer_norm.cu`` for the formulas in ``ops/normalization.py``."""

from typing import Any

from minivit import ops
from minivit.backend import Array, array_module
from minivit.cuda.elementwise import sum_type
from minivit.cuda.launch import launch
from minivit.cuda.precision import working_type
from minivit.cuda.reduction import column_sums
from minivit.cuda.registry import blocks_for, fits, stands_in_for

THREADS = 128  # a block: four warps, of a row each
MAX_WIDTH = 2048  # a row in the registers of a warp: 64 numbers a thread
PARTS = 512  # warps that add up the gradients of γ and β, each over its share of the rows


@stands_in_for(ops.layer_norm.raw)
def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-6) -> tuple:
    """One pass forward, one and a sum back. The result has the type that the precision in force works in."""
    if not _known(x, weight, bias):
        return ops.layer_norm.raw(x, weight, bias, eps)
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    y, mean, rstd, rows = _outputs(x)
    types = {"X": x.dtype, "B": x.dtype, "Z": x.dtype, "Y": y.dtype, "WIDTH": x.shape[-1]}
    arrays = x, weight, bias, y, mean, rstd
    launch("layer_norm", "layer_norm", blocks_for(rows, THREADS // 32), THREADS, *arrays, eps, rows, **types)

    def pullback(dy):
        dx = xp.empty_like(x)
        return dx, *_backward("layer_norm_backward", dy, x, weight, mean, rstd, dx, **types)

    return y, pullback


@stands_in_for(ops.add_layer_norm.raw)
def add_layer_norm(x: Array, branch: Array, weight: Array, bias: Array, eps: float = 1e-6) -> tuple:
    """One pass each way as well, and the sum stays float32 where either of its parts is."""
    if not (_known(x, weight, bias) and fits(branch) and x.shape == branch.shape):
        return ops.add_layer_norm.raw(x, branch, weight, bias, eps)
    xp = array_module(x)
    x, branch = xp.ascontiguousarray(x), xp.ascontiguousarray(branch)
    z = xp.empty(x.shape, sum_type(x, branch))
    y, mean, rstd, rows = _outputs(z)
    types = {"X": x.dtype, "B": branch.dtype, "Z": z.dtype, "Y": y.dtype, "WIDTH": x.shape[-1]}
    arrays = x, branch, weight, bias, y, z, mean, rstd
    launch("layer_norm", "add_layer_norm", blocks_for(rows, THREADS // 32), THREADS, *arrays, eps, rows, **types)

    def pullback(dy, dz):
        dx = xp.empty(z.shape, types["X"])
        dbranch = None if types["B"] == types["X"] else xp.empty(z.shape, types["B"])
        arrays = xp.ascontiguousarray(dz), z, weight, mean, rstd, dx, dbranch
        sums = _backward("add_layer_norm_backward", dy, *arrays, **types)
        return dx, dx if dbranch is None else dbranch, *sums

    return (y, z), pullback


def _known(x: Array, weight: Array, bias: Array) -> bool:
    width = x.shape[-1]
    return fits(x) and width <= MAX_WIDTH and weight.shape == bias.shape == (width,) and weight.dtype == "float32"


def _outputs(z: Array) -> tuple[Array, Array, Array, int]:
    """Room for the norm of z, for the mean and 1/deviation of each of its rows, and how many rows it has."""
    xp, rows = array_module(z), z.size // z.shape[-1]
    return xp.empty(z.shape, working_type(z)), xp.empty(rows, "float32"), xp.empty(rows, "float32"), rows


def _backward(kernel: str, dy: Array, *arrays: Array, **types: Any) -> tuple[Array, Array]:
    """Start a kernel, which writes to the last of ``arrays``; dγ and dβ are the sums of what its warps found."""
    xp, width = array_module(dy), dy.shape[-1]
    rows = dy.size // width
    warps = min(PARTS, blocks_for(rows, 4) * 4)
    dweight, dbias = xp.empty((warps, width), "float32"), xp.empty((warps, width), "float32")
    arrays = xp.ascontiguousarray(dy), *arrays, dweight, dbias
    launch("layer_norm", kernel, warps * 32 // THREADS, THREADS, *arrays, rows, **types)
    return column_sums(dweight), column_sums(dbias)
