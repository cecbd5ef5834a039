"""The fully connected layer."""

import math

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.nn import init
from minivit.nn.module import Module


class Linear(Module):
    """y = x Wᵀ + b on the last axis: (…, in_features) → (…, out_features); ``weight`` (out, in), ``bias`` (out,).

    With ``rows``, a slice, only those of the outputs are computed.

    >>> Linear(3, 2)(Tensor(np.ones((4, 5, 3), np.float32))).shape
    (4, 5, 2)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        self.weight = Parameter(init.default((out_features, in_features), in_features))
        self.bias = Parameter(init.default((out_features,), in_features)) if bias else None

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        if rows is None:
            return ops.linear(x, self.weight, self.bias)
        return ops.linear(x, self.weight[rows], None if self.bias is None else self.bias[rows])

    def flops(self, inputs: tuple, output: Tensor) -> int:
        return 2 * output.size * math.prod(self.weight.shape[1:])
