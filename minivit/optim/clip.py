"""The global norm of the gradient, and a bound on it."""

import math

from minivit.optim.optimizer import Optimizer
from minivit.optim.parameters import FlatParameters


def clip_grad_norm(parameters: Optimizer | FlatParameters, max_norm: float = math.inf) -> float:
    """Scale the gradient to length ``max_norm`` where it is longer, and return the length that it had.

    The length is that of all gradients as one vector, ‖g‖ = √Σ gᵢ², so its direction is kept:
    g ← g · max_norm / (‖g‖ + 10⁻⁶), as in ``torch.nn.utils.clip_grad_norm_``. Pascanu et al., "On the difficulty of
    training recurrent neural networks" (2013, arXiv:1211.5063, algorithm 1). A gradient whose length is not finite is
    left as it is, for the caller to look at. Without ``max_norm``, only the length is measured.

    Raises ValueError for a ``max_norm`` that is not above 0.

    >>> p = Parameter([0.0, 0.0])
    >>> flat = FlatParameters([p])
    >>> (p * Tensor([3.0, 4.0])).sum().backward()
    >>> clip_grad_norm(flat, max_norm=1.0)
    5.0
    >>> p.grad.round(4)
    array([0.6, 0.8], dtype=float32)
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}")
    flat = parameters.flat if isinstance(parameters, Optimizer) else parameters
    flat.check()
    blocks = [flat.grad[block] for block in flat.blocks()]
    norm = math.sqrt(sum(float(g @ g) for g in blocks))
    if max_norm < norm < math.inf:
        flat.grad *= max_norm / (norm + 1e-6)
    return norm
