"""Stochastic gradient descent, with momentum."""

from typing import Any

from minivit.backend import Array, array_module
from minivit.optim.optimizer import Optimizer, scaled
from minivit.optim.parameters import Groups


def sgd(numbers: Array, scale: Array | None, p: Array, g: Array, b: Array, scratch: Array | None = None) -> None:
    """One step of ``SGD`` in place, p ← p − η₁ g − η₂ b; λ, μ, η₁ and η₂ are the ``numbers``."""
    if scale is not None:
        return scaled(sgd, numbers, scale, p, g, b)
    xp = array_module(p)
    scratch = xp.empty_like(p) if scratch is None else scratch
    decay, momentum, rate_of_g, rate_of_b = numbers
    xp.multiply(p, decay, out=scratch)
    scratch += g
    b *= momentum
    b += scratch
    scratch *= rate_of_g  # 0 without nesterov
    p -= scratch
    xp.multiply(b, rate_of_b, out=scratch)
    p -= scratch


class SGD(Optimizer):
    """Downhill along the gradient, or along a decaying sum of the gradients so far.

    With rate η, momentum μ and weight decay λ, which here is the gradient of the penalty ½ λ‖p‖²:

        g ← ∇L(p) + λ p
        b ← μ b + g                     b = 0 at the start
        p ← p − η b                     μ = 0: plain gradient descent
        p ← p − η (g + μ b)             with nesterov: look one step of b ahead

    A constant gradient makes b grow to g / (1 − μ): momentum 0.9 walks ten times as far along a valley, while
    gradients that change sign cancel. As in PyTorch, η stands outside of b, so a change of the rate acts at once.
    Sutskever et al., "On the importance of initialization and momentum in deep learning" (ICML 2013).

    Raises ValueError for negative options, momentum outside [0, 1), or nesterov without momentum.

    >>> p = Parameter([1.0])
    >>> optimizer = SGD([p], lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     (3.0 * p).sum().backward()
    ...     optimizer.step()
    >>> round(p.item(), 4)   # 1 − 0.1 · 3 − 0.1 · (0.9 · 3 + 3)
    0.13
    """

    state_names = ("momentum_buffer",)
    formula = staticmethod(sgd)

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        if nesterov and momentum == 0:
            raise ValueError("nesterov looks ahead along the momentum: it needs momentum above 0")
        super().__init__(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        lr, momentum = group["lr"], group["momentum"]
        rates = (lr, lr * momentum) if group["nesterov"] else (0.0, lr)
        return group["weight_decay"], momentum, *rates
