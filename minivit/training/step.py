"""One training step: cut the batch, go forward and backward over the pieces, add up, step the optimizer.

The loss of a batch is a mean over its images, so its gradient is a weighted sum over any pieces of the batch:

    ∇ (1/n) Σᵢ ℓᵢ  =  Σ_pieces (n_piece / n) ∇ (1/n_piece) Σ_{i in piece} ℓᵢ

The pieces may be computed one after the other, by threads, or by other machines: ``layout`` says which. No layer knows
of the cut, and the random layers draw by global sample index, so every cut gives the same step up to rounding.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minivit.autograd import Tensor, no_grad
from minivit.backend import Array, array_module
from minivit.data.loader import Batch
from minivit.nn import Module, observe
from minivit.optim import Optimizer, clip_grad_norm
from minivit.random import sampling
from minivit.training.layout import Layout


class StepResult(NamedTuple):
    """What one step saw: mean loss, images classified correctly, norm of the gradient before clipping."""

    loss: float
    correct: int
    grad_norm: float


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient is NaN or infinite; ``first`` says where that began. The weights were not changed."""

    def __init__(self, message: str, first: str):
        super().__init__(message)
        self.first = first


def train_step(
    model: Module,
    loss_fn: Callable[[Tensor, Array], Tensor],
    batch: Batch,
    optimizer: Optimizer,
    seed: int,
    step: int,
    layout: Layout | None = None,
    max_norm: float | None = None,
) -> StepResult:
    """Change the model's weights once, by the gradient of ``loss_fn(model(images), labels)``, a mean over the batch.

    ``batch``: images (B, C, H, W); labels (B,) or soft targets (B, K); samples (B,), global indices of the images,
    which with ``seed`` and ``step`` key what dropout and drop-path draw; and, where other ranks have a share of it too,
    the number of images in ``total``. ``layout``: how the batch is cut, by default not at all; ``max_norm``: the
    largest norm of the gradient. The model should be in training mode.

    Raises NonFiniteLoss before the update, ValueError for an empty batch or arrays of different lengths.

    >>> from minivit.nn import Linear
    >>> from minivit.optim import SGD
    >>> model = Linear(2, 2)
    >>> optimizer = SGD(model.named_parameters(), lr=0.1)
    >>> batch = Batch(np.eye(2, dtype=np.float32), np.array([0, 1]), np.arange(2))
    >>> first, second = (train_step(model, ops.cross_entropy, batch, optimizer, seed=0, step=i) for i in range(2))
    >>> second.loss < first.loss
    True
    """
    images, labels, samples, total = batch
    if not len(images) == len(labels) == len(samples):
        raise ValueError(
            f"images, labels and samples must be of one length, got {len(images)}, {len(labels)} and {len(samples)}"
        )
    total = len(samples) if total is None else total
    if total < 1:
        raise ValueError("a batch needs at least one image, got none")
    layout = layout or Layout()
    sinks = optimizer.flat.gradient_sinks(layout.workers)
    bad: list[slice] = []

    def forward_and_backward(worker: int, piece: slice) -> tuple[float, int]:
        with np.errstate(all="ignore"):  # what is not finite is found here, and named better than NumPy can
            with sampling(seed, step, samples[piece]):
                logits = model(images[piece])
            share = loss_fn(logits, labels[piece]) * (len(samples[piece]) / total)
            loss = share.item()
            if math.isfinite(loss):
                share.backward(into=sinks[worker])
            else:
                bad.append(piece)
            return loss, count_correct(logits.data, labels[piece])

    results = layout.map(forward_and_backward, len(samples))
    optimizer.flat.add_up_sinks(layout.workers)
    sums = np.array([sum(loss for loss, _ in results), sum(correct for _, correct in results)], np.float64)
    layout.ranks.sum(sums)
    layout.ranks.sum(optimizer.flat.grad)
    loss, correct = float(sums[0]), int(sums[1])

    if not math.isfinite(loss):
        piece = min(bad, key=lambda piece: piece.start, default=None)
        first = first_nonfinite(model, images[piece], seed, step, samples[piece]) if piece else ""
        first = next(filter(None, layout.ranks.gather(first)))
        raise NonFiniteLoss(f"the loss is {loss} in step {step}: the first to be not finite is {first}", first)
    with np.errstate(all="ignore"):
        grad_norm = clip_grad_norm(optimizer, math.inf if max_norm is None else max_norm)
    if not math.isfinite(grad_norm):
        first = _last_nonfinite_gradient(model)
        raise NonFiniteLoss(
            f"the gradient's norm is {grad_norm} in step {step}, of a loss of {loss:.6g}; counted from the loss "
            f"backwards, the first to be not finite is {first}",
            first,
        )
    optimizer.step()
    return StepResult(loss, correct, grad_norm)


def count_correct(logits: Array, labels: Array) -> int:
    """How many rows of logits (B, K) have their largest entry at the label (B,), or at that of a soft target (B, K)."""
    classes = labels.argmax(-1) if labels.ndim > 1 else labels
    return int((logits.argmax(-1) == classes).sum())


def first_nonfinite(model: Module, images: Array, seed: int, step: int, samples: np.ndarray) -> str:
    """Where the first NaN or infinity of a forward pass comes from: input, a parameter, a layer or the loss function.

    Goes forward a second time, with the same draws, and looks at every layer's output in the order of computation.
    """
    if not _finite(images):
        return "the input images"
    for name, parameter in model.named_parameters():
        if not _finite(parameter.data):
            return f"the parameter {name}"
    names = {id(module): name or "the model itself" for name, module in model.named_modules()}
    found: list[str] = []

    def look(module: Module, inputs: tuple, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if not found and not all(_finite(y.data) for y in tensors if isinstance(y, Tensor)):
            found.append(f"the output of {names.get(id(module), 'a layer')} ({type(module).__name__})")

    with np.errstate(all="ignore"), observe(look), no_grad(), sampling(seed, step, samples):
        model(images)
    return found[0] if found else "the loss function"


def _last_nonfinite_gradient(model: Module) -> str:
    """The parameter nearest to the loss whose gradient is not finite; backward reached it before the others."""
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return f"the gradient of {bad[-1]}" if bad else "the sum of the squared gradients"


def _finite(array: Array) -> bool:
    return bool(array_module(array).isfinite(array).all())
