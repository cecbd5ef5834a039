"""One training step: cut the batch, go forward and backward over the pieces, add up, step the optimizer.

The loss of a batch is a mean over its images, so its gradient is a weighted sum over any pieces of the batch:

    ∇ (1/n) Σᵢ ℓᵢ  =  Σ_pieces (n_piece / n) ∇ (1/n_piece) Σ_{i in piece} ℓᵢ

The pieces may be computed one after the other, by threads, or by other machines: ``layout`` says which. No layer knows
of the cut, and the random layers draw by global sample index, so every cut gives the same step up to rounding.

A GPU works through a queue: Python puts kernels in, and goes on before they have run, unless it wants to see a number.
A step looks at its numbers once, between the gradient and the update, because a loss that is not finite must not reach
the weights. By then the whole forward and backward pass is in the queue, and the GPU idles only from its end until
Python has put the update in. (``captured.py`` looks a step late, and so has to let the GPU itself refuse the update.)
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from minivit.autograd import Tensor, no_grad
from minivit.backend import Array, array_module, to_device
from minivit.data.loader import Batch
from minivit.diversity import HeadPenalties
from minivit.nn import Module, check_device, observe, on_device_of
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
    penalties: HeadPenalties | None = None,
) -> StepResult:
    """Change the model's weights once, by the gradient of ``loss_fn(model(images), labels)``, a mean over the batch.

    ``batch``: images (B, C, H, W); labels (B,) or soft targets (B, K); samples (B,), global indices of the images,
    which with ``seed`` and ``step`` key what dropout and drop-path draw; and, where other ranks have a share of it too,
    the number of images in ``total``. ``layout``: how the batch is cut, by default not at all; ``max_norm``: the
    largest norm of the gradient; ``penalties``: what is added to the loss for heads that are alike. The model should
    be in training mode.

    Raises NonFiniteLoss before the update, ValueError for an empty batch or arrays of different lengths, TypeError for
    a batch on another device than the model.

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
    if (len(samples) if total is None else total) < 1:
        raise ValueError("a batch needs at least one image, got none")
    check_device(model, images=images, labels=labels, samples=samples)
    layout = layout or Layout()
    with on_device_of(model):
        seen = forward_and_backward(model, loss_fn, batch, optimizer, seed, step, layout, penalties)
        with np.errstate(all="ignore"):
            norm = clip_grad_norm(optimizer, math.inf if max_norm is None else max_norm)
        *seen, grad_norm = to_device(array_module(seen).append(seen, norm), "cpu").tolist()  # the one wait for a GPU
        losses, counts = seen[::2], seen[1::2]  # of the pieces
        sums = np.array([sum(losses), sum(counts)], np.float64)
        layout.ranks.sum(sums)
        loss, correct = float(sums[0]), int(sums[1])

        if not math.isfinite(loss):
            bad = [piece for piece, share in zip(layout.pieces(len(samples)), losses) if not math.isfinite(share)]
            first = first_nonfinite(model, images[bad[0]], seed, step, samples[bad[0]]) if bad else ""
            first = next(filter(None, layout.ranks.gather(first)))
            raise NonFiniteLoss(f"the loss is {loss} in step {step}: the first to be not finite is {first}", first)
        if not math.isfinite(grad_norm):
            first = _last_nonfinite_gradient(model)
            raise NonFiniteLoss(
                f"the gradient's norm is {grad_norm} in step {step}, of a loss of {loss:.6g}; counted from the loss "
                f"backwards, the first to be not finite is {first}",
                first,
            )
        optimizer.step()
    return StepResult(loss, correct, grad_norm)


def forward_and_backward(
    model: Module,
    loss_fn: Callable[[Tensor, Array], Tensor],
    batch: Batch,
    optimizer: Optimizer,
    seed: int,
    step: int,
    layout: Layout,
    penalties: HeadPenalties | None = None,
) -> Array:
    """Put the gradient of the batch's mean loss, summed over all ranks, into ``optimizer.flat.grad``.

    Returns what each piece of this process saw, (pieces, 2) in float64: its share of the loss, and how many images were
    classified correctly. The host reads nothing here, and neither in ``clip_grad_norm`` nor in ``optimizer.step()``: on
    a GPU the three can follow one another without a wait, for a caller who looks at the numbers afterwards.
    """
    images, labels, samples, total = batch
    total = len(samples) if total is None else total
    sinks = optimizer.flat.gradient_sinks(layout.workers)
    optimizer.flat.check()  # a model that was moved by now has its gradients elsewhere
    xp = array_module(optimizer.flat.grad)

    def see(worker: int, piece: slice) -> Array:
        with np.errstate(all="ignore"):  # what is not finite is found later, and named better than NumPy can
            with sampling(seed, step, samples[piece]), penalties.reading(model) if penalties else nullcontext() as read:
                logits = model(images[piece])
            loss = loss_fn(logits, labels[piece])
            share = (loss + read.total() if penalties else loss) * (len(samples[piece]) / total)
            share.backward(into=sinks[worker])
        return xp.stack((share.data, count_correct(logits.data, labels[piece])))

    seen = layout.map(see, len(samples))
    optimizer.flat.add_up_sinks(layout.workers)
    layout.ranks.sum(optimizer.flat.grad)
    return xp.stack(seen) if seen else xp.zeros((0, 2))


def count_correct(logits: Array, labels: Array) -> Array:
    """How many rows of logits (B, K) have their largest entry at the label (B,), or at that of a soft target (B, K).

    The number lies where they lie: ``int`` reads it.
    """
    classes = labels.argmax(-1) if labels.ndim > 1 else labels
    return (logits.argmax(-1) == classes).sum()


def first_nonfinite(model: Module, images: Array, seed: int, step: int, samples: Array) -> str:
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
