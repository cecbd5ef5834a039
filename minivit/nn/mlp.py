"""The two-layer perceptron of a block: each token by itself."""

from collections.abc import Callable
from functools import partial

from minivit import ops
from minivit.autograd import Tensor
from minivit.backend import implementation
from minivit.nn.dropout import Dropout
from minivit.nn.linear import Linear
from minivit.nn.module import Module, observing

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": ops.gelu,
    "gelu_tanh": partial(ops.gelu, approximate="tanh"),
    "relu": ops.relu,
}


class Mlp(Module):
    """fc2(act(fc1(x))), (…, dim) → (…, dim) by way of ``hidden_dim`` channels; ``act`` "gelu", "gelu_tanh" or "relu".

    Raises ValueError for any other activation.

    >>> Mlp(4, 16)(Tensor(np.ones((2, 4), np.float32))).shape
    (2, 4)
    """

    def __init__(self, dim: int, hidden_dim: int, act: str = "gelu", drop: float = 0.0):
        if act not in ACTIVATIONS:
            raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
        self.act = act
        self.fc1 = Linear(dim, hidden_dim)
        self.drop1 = Dropout(drop)
        self.fc2 = Linear(hidden_dim, dim)
        self.drop2 = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused(x):
            return self.drop2(ops.mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias))
        x = self.drop1(ACTIVATIONS[self.act](self.fc1(x)))
        return self.drop2(self.fc2(x))

    def fused(self, x: Tensor) -> bool:
        """Does one op compute all? Where x is, it has to be faster than the layers, and nobody may see a difference."""
        as_made = all(type(layer) is Linear and layer.bias is not None for layer in (self.fc1, self.fc2))
        alone = self.act == "gelu" and as_made and not (self.training and self.drop1.p) and not observing()
        return alone and implementation(ops.mlp.raw, x.data) is not ops.mlp.raw

    def extra_repr(self) -> str:
        return self.act
