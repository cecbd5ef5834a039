"""LARS: a step for every layer in units of its own weights' size."""

from typing import Any

from minivit.backend import Array, array_module, implementation
from minivit.optim.optimizer import Optimizer, scaled
from minivit.optim.parameters import Groups, Share, one_by_one


def lars(numbers: Array, scale: Array | None, p: Array, g: Array, b: Array) -> None:
    """One step of ``LARS`` for one parameter, in place; η, μ, λ and τ are the ``numbers``."""
    if scale is not None:
        return scaled(lars, numbers, scale, p, g, b)
    rate, momentum, decay, trust = numbers
    if p.ndim > 1:
        g = g + decay * p
        g *= trust_ratio(trust, p, g)
    b *= momentum
    b += g
    p -= rate * b


def trust_ratio(trust: Array, p: Array, g: Array) -> Array:
    """τ ‖p‖ / ‖g‖, and 1 where either length is 0: an array of no axes that lies where p and g lie.

    >>> float(trust_ratio(0.5, np.array([[3.0, 4.0]]), np.array([[0.0, 2.0]])))
    1.25
    """
    xp = array_module(p)
    length_p, length_g = (xp.sqrt(xp.asarray(x.reshape(-1) @ x.reshape(-1))) for x in (p, g))
    ones = xp.ones_like(length_p)
    both = (length_p > 0) & (length_g > 0)
    return xp.where(both, trust * length_p / xp.where(both, length_g, ones), ones)


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks",
    2017, arXiv:1708.03888, equation 6): SGD with momentum, along gradients that are rescaled layer by layer.

    With rate η, momentum μ, weight decay λ and trust coefficient τ, for each parameter p of its own:

        g ← ∇L(p) + λ p                 λ as in ``SGD``, the gradient of ½ λ‖p‖²
        g ← τ ‖p‖ / ‖g‖ · g             now ‖g‖ = τ ‖p‖; left as it is where a length is 0
        b ← μ b + g
        p ← p − η b

    *Why.* With large batches and rates, a step can be longer than the weights of one layer while it is short for
    another: ‖p‖ / ‖g‖ differs between layers by orders of magnitude. The ratio makes every step a fraction η τ of the
    weights' own length, so one rate fits all layers, and a loss multiplied by 100 gives the same steps. For the same
    reason weights grow by at most a factor 1 + η τ / (1 − μ) a step: with few steps, or a small η, they get nowhere.

    Parameters of one axis, biases and gains of norms, are left to SGD: neither decay nor ratio, as in MoCo v3 and MAE,
    whose linear probes are trained with it.

    Lengths are of whole parameters, so a step goes parameter by parameter and not block by block. On a GPU nothing is
    read by Python, but no kernel is written for it, and a step is not meant to be captured as a CUDA graph.

    Raises ValueError for negative options, momentum outside [0, 1), or a trust coefficient that is not above 0.

    >>> p = Parameter([[3.0, 4.0]])
    >>> optimizer = LARS([p], lr=1.0, trust_coefficient=0.1)
    >>> (p * Tensor([[0.0, 700.0]])).sum().backward()
    >>> optimizer.step()
    >>> p.data                             # a step of a tenth of its length, whatever the size of the gradient
    array([[3. , 3.5]], dtype=float32)
    """

    state_names = ("momentum_buffer",)
    formula = staticmethod(lars)

    def __init__(
        self,
        params: Groups,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
    ):
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust_coefficient
        )
        for group in self.param_groups:
            if not group["trust_coefficient"] > 0:
                raise ValueError(f"trust_coefficient must be above 0, got {group['trust_coefficient']}")

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        return group["lr"], group["momentum"], group["weight_decay"], group["trust_coefficient"]

    def apply(self, scale: Array | None = None, share: Share = one_by_one) -> None:
        """As ``Optimizer.apply``, a parameter at a time."""
        buffers = self.flat.views(self.state["momentum_buffer"])

        def apply_to(part: tuple[Array, str]) -> None:
            numbers, name = part
            parameter = self.flat.parameters[name]
            step = implementation(self.formula, parameter.data)
            step(numbers, scale, parameter.data, parameter.grad, buffers[name])

        groups = zip(self.param_groups, self._numbers)
        share(apply_to, [(numbers, name) for group, numbers in groups for name in group["params"]])
