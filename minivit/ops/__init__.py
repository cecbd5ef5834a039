"""Every op of the project, and the operators of Tensor, which are ops under another name."""

from minivit.autograd import Tensor
from minivit.ops.activation import gelu, log_softmax, relu, sigmoid, softmax
from minivit.ops.arithmetic import add, div, exp, log, mul, neg, power, scale, sqrt, sub
from minivit.ops.attention import scaled_dot_product_attention, self_attention
from minivit.ops.batch_norm import batch_norm
from minivit.ops.convolution import avg_pool2d, conv2d, max_pool2d
from minivit.ops.linear import linear, matmul
from minivit.ops.loss import cross_entropy, mse_loss
from minivit.ops.mlp import mlp
from minivit.ops.normalization import add_layer_norm, layer_norm, rms_norm
from minivit.ops.position import by_distance, relative_bias, rotate, sum_by_distance
from minivit.ops.reduction import amax, mean, sum
from minivit.ops.shape import (
    broadcast_to,
    concatenate,
    getitem,
    patchify,
    put_tokens,
    reshape,
    shift,
    take_tokens,
    transpose,
)

__all__ = [
    "add", "add_layer_norm", "amax", "avg_pool2d", "batch_norm", "broadcast_to", "by_distance", "concatenate",
    "conv2d", "cross_entropy", "div", "exp", "gelu", "getitem", "layer_norm", "linear", "log", "log_softmax", "matmul",
    "max_pool2d", "mean", "mlp", "mse_loss", "mul", "neg", "patchify", "power", "put_tokens", "relative_bias", "relu",
    "reshape", "rms_norm", "rotate", "scale", "scaled_dot_product_attention", "self_attention", "shift", "sigmoid",
    "softmax", "sqrt", "sub", "sum", "sum_by_distance", "take_tokens", "transpose",
]  # fmt: skip


def _number(x) -> bool:
    return isinstance(x, (int, float))


def _axes(x: Tensor, axes: tuple) -> tuple:
    """transpose() reverses, transpose(0, 2, 1) and transpose((0, 2, 1)) permute, as in NumPy."""
    return tuple(reversed(range(x.ndim))) if not axes else axes[0] if isinstance(axes[0], tuple) else axes


Tensor.__add__ = Tensor.__radd__ = lambda x, y: add(x, y)
Tensor.__sub__ = lambda x, y: sub(x, y)
Tensor.__rsub__ = lambda x, y: sub(y, x)
Tensor.__mul__ = Tensor.__rmul__ = lambda x, y: scale(x, y) if _number(y) else mul(x, y)
Tensor.__truediv__ = lambda x, y: scale(x, 1 / y) if _number(y) else div(x, y)
Tensor.__rtruediv__ = lambda x, y: div(y, x)
Tensor.__neg__ = neg
Tensor.__pow__ = power
Tensor.__matmul__ = lambda x, y: matmul(x, y)
Tensor.__rmatmul__ = lambda x, y: matmul(y, x)
Tensor.__getitem__ = getitem
Tensor.exp, Tensor.log, Tensor.sqrt = exp, log, sqrt
Tensor.sum, Tensor.mean, Tensor.amax = sum, mean, amax
Tensor.reshape = lambda x, *shape: reshape(x, shape[0] if isinstance(shape[0], tuple) else shape)
Tensor.transpose = lambda x, *axes: transpose(x, _axes(x, axes))
Tensor.T = property(lambda x: transpose(x, _axes(x, ())))
