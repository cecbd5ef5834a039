"""AdamW: a step for every parameter in units of its own gradient's size."""

import math
from typing import Any

from minivit.backend import Array, array_module
from minivit.optim.optimizer import Optimizer, scaled
from minivit.optim.parameters import Groups


def adamw(
    numbers: Array, scale: Array | None, p: Array, g: Array, m: Array, v: Array, scratch: Array | None = None
) -> None:
    """One step of ``AdamW`` in place: 1 − ηλ, β₁, 1 − β₁, β₂, 1 − β₂, ε√c₂ and η√c₂/c₁ are the ``numbers``."""
    if scale is not None:
        return scaled(adamw, numbers, scale, p, g, m, v)
    xp = array_module(p)
    scratch = xp.empty_like(p) if scratch is None else scratch
    decay, beta1, rest1, beta2, rest2, eps, rate = numbers
    p *= decay
    m *= beta1
    xp.multiply(g, rest1, out=scratch)
    m += scratch
    v *= beta2
    xp.multiply(g, g, out=scratch)
    scratch *= rest2
    v += scratch
    xp.sqrt(v, out=scratch)
    scratch += eps
    xp.divide(m, scratch, out=scratch)
    scratch *= rate
    p -= scratch


class AdamW(Optimizer):
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980) with decoupled weight decay (Loshchilov and Hutter, 2019,
    arXiv:1711.05101, algorithm 2), in PyTorch's form: the decay is multiplied by the learning rate.

    With rate η, decay λ, β₁ and β₂, in step t = 1, 2, …:

        p ← (1 − η λ) p                     decay shrinks the weight itself …
        m ← β₁ m + (1 − β₁) g               … and never enters m and v: "decoupled"
        v ← β₂ v + (1 − β₂) g²
        m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
        p ← p − η m̂ / (√v̂ + ε)

    *Why the corrections.* m starts at 0, so after t steps m = (1 − β₁) Σᵢ β₁ᵗ⁻ⁱ gᵢ, whose weights add up to
    1 − β₁ᵗ instead of 1. Dividing by that sum makes m̂ a true weighted mean of the gradients, from the first step on,
    where m̂ = g and the step is η g/|g|. Likewise for v.

    *Why the ratio.* m̂ and √v̂ both scale with g, so a loss multiplied by 100 gives the same steps; where gradients
    agree in sign the step is about η, where they cancel it is small.

    *In the code*, with c₁ = 1 − β₁ᵗ and c₂ = 1 − β₂ᵗ, the fraction is multiplied by √c₂ above and below, which
    saves a pass over the array:  η m̂ / (√v̂ + ε) = (η √c₂ / c₁) · m / (√v + ε √c₂).

    Raises ValueError for negative options, betas outside [0, 1), or eps that is not above 0.

    >>> p = Parameter([1.0, 1.0])
    >>> optimizer = AdamW([p], lr=0.1, weight_decay=0.0)
    >>> (p * Tensor([0.25, 64.0])).sum().backward()
    >>> optimizer.step()
    >>> p.data.round(4)                    # the first step is η, whatever the size of the gradient
    array([0.9, 0.9], dtype=float32)
    """

    state_names = ("exp_avg", "exp_avg_sq")
    formula = staticmethod(adamw)

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        c1, root_c2 = 1 - beta1**self.steps, math.sqrt(1 - beta2**self.steps)
        decay, rate = 1 - group["lr"] * group["weight_decay"], group["lr"] * root_c2 / c1
        return decay, beta1, 1 - beta1, beta2, 1 - beta2, group["eps"] * root_c2, rate
