"""Layers that drop something while training. What they drop is keyed by the sample: see ``minivit/random.py``."""

from minivit import ops, random
from minivit.autograd import Tensor
from minivit.backend import array_module
from minivit.nn.module import Module


class Dropout(Module):
    """Each element becomes 0 with probability p, and the others are divided by 1 − p, so the mean stays.

    Srivastava et al., 2014. The identity in evaluation mode. Raises ValueError for p outside [0, 1).

    >>> Dropout(0.5).eval()(Tensor([1.0, 2.0])).numpy()
    array([1., 2.], dtype=float32)
    """

    def __init__(self, p: float = 0.0):
        if not 0 <= p < 1:
            raise ValueError(f"the probability of {type(self).__name__} must lie in [0, 1), got {p}")
        self.p = p

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample's mask, for an input of ``shape``."""
        return shape[1:]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        shape = self.mask_shape(x.shape)
        kept = random.layer_uniform(x.shape[0], shape, array_module(x.data)) >= self.p
        return ops.scale(x, kept.astype(x.dtype) / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class DropPath(Dropout):
    """Stochastic depth: the whole sample becomes 0 with probability p, so that its residual branch is skipped.

    Huang et al., "Deep Networks with Stochastic Depth", 2016 (arXiv:1603.09382); kept samples are divided by 1 − p.

    >>> DropPath(0.1).eval()(Tensor([[1.0, 2.0]])).numpy()
    array([[1., 2.]], dtype=float32)
    """

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1,) * (len(shape) - 1)
