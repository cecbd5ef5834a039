"""The global norm of the gradient, and a bound on it."""

import math

import numpy as np

from minivit.backend import Array, array_module, implementation
from minivit.optim.optimizer import Optimizer
from minivit.optim.parameters import FlatParameters


def clip_grad_norm(parameters: Optimizer | FlatParameters, max_norm: float = math.inf) -> float | Array:
    """Scale the gradient to length ``max_norm`` where it is longer, and return the length that it had.

    The length is that of all gradients as one vector, ‖g‖ = √Σ gᵢ², so its direction is kept:
    g ← g · max_norm / (‖g‖ + 10⁻⁶), as in ``torch.nn.utils.clip_grad_norm_``. Pascanu et al., "On the difficulty of
    training recurrent neural networks" (2013, arXiv:1211.5063, algorithm 1). A gradient whose length is not finite is
    left as it is, for the caller to look at. Without ``max_norm``, only the length is measured.

    On a GPU nothing is waited for: the length comes as an array of no axes that lies there, and ``float`` reads it.

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
    if isinstance(flat.grad, np.ndarray):
        norm = math.sqrt(sum(float(g @ g) for g in (flat.grad[block] for block in flat.blocks())))
        if max_norm < norm < math.inf:
            flat.grad *= max_norm / (norm + 1e-6)
        return norm
    xp = array_module(flat.grad)
    norm, scale = implementation(norm_and_scale, flat.grad)(flat.grad, max_norm)
    if max_norm < math.inf:  # whether the gradient is longer is not known here, so it is always multiplied
        flat.grad *= xp.where(scale > 0, scale, xp.ones_like(scale))
    return norm


def norm_and_scale(g: Array, max_norm: float = math.inf) -> tuple[Array, Array]:
    """‖g‖ of g (n,), and what clipping multiplies g by, two arrays of no axes that lie where g lies.

        scale = min(1, max_norm / (‖g‖ + 10⁻⁶)), and 0 where ‖g‖ is not finite: along such a gradient no step is made.

    With ``optimizer.apply(scale)`` a GPU clips, and decides whether to step, without waiting for Python.

    >>> [float(x) for x in norm_and_scale(np.array([3.0, 4.0]), max_norm=2.5)]
    [5.0, 0.49...]
    """
    xp = array_module(g)
    norm = xp.sqrt(xp.asarray(g @ g))
    scale = xp.minimum(max_norm / (norm + 1e-6), 1.0)
    return norm, xp.where(norm < math.inf, scale, xp.zeros_like(scale))
