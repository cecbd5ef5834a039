"""Layer normalisation on a GPU: ``kernels/layer_norm.cu`` for the formula in ``ops/normalization.py``."""

from minivit import ops
from minivit.backend import Array, array_module
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
    width = x.shape[-1]
    if not fits(x) or width > MAX_WIDTH or not weight.shape == bias.shape == (width,) or weight.dtype != "float32":
        return ops.layer_norm.raw(x, weight, bias, eps)
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    rows = x.size // width
    y = xp.empty(x.shape, working_type(x))
    mean, rstd = xp.empty(rows, "float32"), xp.empty(rows, "float32")
    sizes = {"X": x.dtype, "Y": y.dtype, "WIDTH": width}
    grid = blocks_for(rows, THREADS // 32)
    launch("layer_norm", "layer_norm", grid, THREADS, x, weight, bias, y, mean, rstd, eps, rows, **sizes)

    def pullback(dy):
        dy, dx = xp.ascontiguousarray(dy), xp.empty_like(x)
        warps = min(PARTS, blocks_for(rows, 4) * 4)
        dweight, dbias = xp.empty((warps, width), "float32"), xp.empty((warps, width), "float32")
        arrays = dy, x, weight, mean, rstd, dx, dweight, dbias
        launch("layer_norm", "layer_norm_backward", warps * 32 // THREADS, THREADS, *arrays, rows, **sizes)
        return dx, column_sums(dweight), column_sums(dbias)

    return y, pullback
