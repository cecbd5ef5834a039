"""Normalisation layers."""

import numpy as np

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.nn.module import Module


class LayerNorm(Module):
    """Layer normalisation of each token, ``weight`` and ``bias`` (dim,): see ``ops.layer_norm``.

    >>> x = LayerNorm(2)(Tensor([[1.0, 3.0]]))
    >>> x.numpy().round(3)
    array([[-1.,  1.]], dtype=float32)
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        self.eps = eps
        self.weight = Parameter(np.ones(dim, np.float32))
        self.bias = Parameter(np.zeros(dim, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def of_sum(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """LN(z) and z = x + branch: see ``ops.add_layer_norm``. As a layer's output, observers are shown LN(z)."""
        y, z = ops.add_layer_norm(x, branch, self.weight, self.bias, self.eps)
        self.observed((x, branch), y)
        return y, z

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"


class LayerScale(Module):
    """γ ⊙ x, one learned factor a channel, small at first: a deep residual network starts near the identity.

    Touvron et al., "Going deeper with Image Transformers", 2021 (arXiv:2103.17239), section 2; ``gamma`` (dim,).

    >>> LayerScale(2, 0.1)(Tensor([[1.0, 2.0]])).numpy()
    array([[0.1, 0.2]], dtype=float32)
    """

    def __init__(self, dim: int, init_values: float = 1e-5):
        self.gamma = Parameter(np.full(dim, init_values, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Identity(Module):
    """Passes its input on: stands where an option is off.

    >>> Identity()(5)
    5
    """

    def forward(self, x):
        return x
