"""Losses on the network's output. Logits come in, not probabilities: the softmax is part of the loss."""

import numpy as np

from minivit.autograd import op
from minivit.backend import Array, array_module


@op
def cross_entropy(logits, target, label_smoothing=0.0, reduction="mean"):
    """ℓ = −Σ_k t_k ln p_k with p = softmax(logits), averaged over the batch.

    logits (…, K); target: integer labels (…) or a distribution t over the classes (…, K). Smoothing by s mixes t
    with the uniform distribution, t ← (1 − s) t + s/K (Szegedy et al., 2016, arXiv:1512.00567, section 7).
    ``reduction``: "mean" and "sum" give a number, "none" the losses (…).

    ln p = z − ln Σ e^z, so ∂ℓ/∂z = p Σ_k t_k − t, which is p − t for a distribution: bounded, whatever the logits.
    ∂ℓ/∂t = −(1 − s) ln p, for targets that were computed.

    Raises ValueError for labels outside 0 … K − 1 (on a GPU they are not looked at), a target that does not fit,
    smoothing outside [0, 1] and any other reduction, TypeError for a target that is no array.

    >>> cross_entropy(Tensor([[0.0, 0.0]]), np.array([1])).item()
    0.6931...
    """
    xp = array_module(logits)
    classes = logits.shape[-1]
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    if not hasattr(target, "dtype"):
        raise TypeError(f"target must be an array of labels or of probabilities, got {type(target).__name__}")
    t = _distribution(target, logits.shape, logits.dtype)
    t = (1 - label_smoothing) * t + label_smoothing / classes
    log_p = logits - logits.max(-1, keepdims=True)
    log_p -= xp.log(xp.exp(log_p).sum(-1, keepdims=True))
    loss, spread = _reduce(-(t * log_p).sum(-1), reduction)

    def pullback(dy):
        dy = spread(dy)[..., None]
        dlogits = xp.exp(log_p) * t.sum(-1, keepdims=True)
        dlogits -= t
        return dy * dlogits, None if target.dtype.kind in "iu" else dy * ((label_smoothing - 1) * log_p)

    return loss, pullback


@op
def mse_loss(x, target, reduction="mean"):
    """(x − t)², averaged over all elements: ∂/∂x = 2 (x − t), ∂/∂t = −2 (x − t), over n for the mean.

    x and target of one shape. ``reduction``: "mean", "sum" or "none".
    Raises ValueError for shapes that differ and any other reduction.

    >>> mse_loss(Tensor([1.0, 2.0]), Tensor([1.0, 4.0])).item()
    2.0
    """
    if x.shape != target.shape:
        raise ValueError(f"mse_loss needs x and target of one shape, got {x.shape} and {target.shape}")
    difference = x - target
    loss, spread = _reduce(difference * difference, reduction)

    def pullback(dy):
        dx = 2 * difference * spread(dy)
        return dx, -dx

    return loss, pullback


def _distribution(target: Array, shape: tuple[int, ...], dtype) -> Array:
    """Labels as one-hot rows; a distribution over the classes as it is.

    Labels on a GPU are taken on trust: to look at them, the host would have to wait. One out of range is a row of 0.
    """
    xp = array_module(target)
    if target.dtype.kind not in "iu":
        if target.shape != shape:
            raise ValueError(f"target probabilities must have the logits' shape {shape}, got {target.shape}")
        return target
    if target.shape != shape[:-1]:
        raise ValueError(f"labels must have shape {shape[:-1]} for logits {shape}, got {target.shape}")
    if isinstance(target, np.ndarray) and target.size and not 0 <= int(target.min()) <= int(target.max()) < shape[-1]:
        raise ValueError(
            f"labels must lie in 0 … {shape[-1] - 1} for logits of {shape[-1]} classes, "
            f"got {int(target.min())} … {int(target.max())}"
        )
    return (target[..., None] == xp.arange(shape[-1])).astype(dtype)


def _reduce(losses: Array, reduction: str) -> tuple:
    """The reduced losses, and the cotangent of each loss as a function of that of the result (a number for all)."""
    count = losses.size
    if reduction == "none":
        return losses, lambda dy: dy
    if reduction == "sum":
        return losses.sum(), lambda dy: dy
    if reduction == "mean":
        return losses.mean(), lambda dy: dy / count
    raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
