"""One training step: cut the batch, go forward and backward over the pieces, add up, step the optimizer.

The loss of a batch is a mean over its images, so its gradient is a weighted sum over any pieces of the batch:

    ∇ (1/n) Σᵢ ℓᵢ  =  Σ_pieces (n_piece / n) ∇ (1/n_piece) Σ_{i in piece} ℓᵢ

The pieces may be computed one after the other, by threads, or by other machines: ``layout`` says which. No layer knows
of the cut; the random layers draw by global sample index, and BatchNorm asks for sums over all pieces, so every cut
gives the same step up to rounding.

A GPU works through a queue: Python puts kernels in, and goes on before they have run, unless it wants to see a number.
A step looks at its numbers once, between the gradient and the update, because a loss that is not finite must not reach
the weights. By then the whole forward and backward pass is in the queue, and the GPU idles only from its end until
Python has put the update in. (``captured.py`` looks a step late, and so has to let the GPU itself refuse the update.)
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from minivit.autograd import Buffer, Parameter, Tensor, no_grad
from minivit.backend import Array, array_module, to_device
from minivit.data.loader import Batch
from minivit.nn import Module, check_device, observe, on_device_of
from minivit.objective import Objective
from minivit.optim import Optimizer, clip_grad_norm
from minivit.random import sampling
from minivit.training.all_reduce import summed_up
from minivit.training.layout import Layout, needs_whole_batch

THE_REST = "the loss function"  # of what may be the first to be not finite


class StepResult(NamedTuple):
    """What one step saw: mean loss, images classified correctly, norm of the gradient before clipping."""

    loss: float
    correct: int | None  # None where the objective has no answers to count
    grad_norm: float


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient is NaN or infinite; ``first`` says where that began. The weights were not changed."""

    def __init__(self, message: str, first: str):
        super().__init__(message)
        self.first = first


def train_step(
    model: Module,
    objective: Objective,
    batch: Batch,
    optimizer: Optimizer,
    seed: int,
    step: int,
    layout: Layout | None = None,
    max_norm: float | None = None,
) -> StepResult:
    """Change the model's weights once, by the gradient of what ``objective`` gives for it, a mean over the batch.

    ``batch``: images (B, C, H, W); labels (B,) or soft targets (B, K); samples (B,), global indices of the images,
    which with ``seed`` and ``step`` key what dropout and drop-path draw; and, where other ranks have a share of it too,
    the number of images in ``total``. ``layout``: how the batch is cut, by default not at all; ``max_norm``: the
    largest norm of the gradient. The model should be in training mode.

    Raises NonFiniteLoss before the update, ValueError for an empty batch or arrays of different lengths, TypeError for
    a batch on another device than the model.

    >>> from minivit.nn import Linear
    >>> from minivit.objective import Classification
    >>> from minivit.optim import SGD
    >>> model = Linear(2, 2)
    >>> optimizer = SGD(model.named_parameters(), lr=0.1)
    >>> batch = Batch(np.eye(2, dtype=np.float32), np.array([0, 1]), np.arange(2))
    >>> first, second = (train_step(model, Classification(), batch, optimizer, seed=0, step=i) for i in range(2))
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
    with on_device_of(model), _undone_by_failure(buffers_of(model, objective)):
        seen = forward_and_backward(model, objective, batch, optimizer, seed, step, layout)
        with np.errstate(all="ignore"):
            norm = clip_grad_norm(optimizer, math.inf if max_norm is None else max_norm)
        *seen, grad_norm = to_device(array_module(seen).append(seen, norm), "cpu").tolist()  # the one wait for a GPU
        losses, counts = seen[::2], seen[1::2]  # of the pieces
        sums = np.array([sum(losses), sum(counts)], np.float64)
        layout.ranks.sum(sums)
        loss, correct = float(sums[0]), count_of(sums[1])

        if not math.isfinite(loss):
            bad = [piece for piece, share in zip(layout.pieces(len(samples)), losses) if not math.isfinite(share)]
            if needs_whole_batch(model, objective.module):  # one bad image spoils all pieces
                bad = [slice(None)]
            piece = Batch(*(array[bad[0]] for array in batch[:3])) if bad else None
            first = first_nonfinite(model, objective, piece, seed, step) if bad else ""
            said = filter(None, layout.ranks.gather(first))
            first = min(said, key=THE_REST.__eq__)  # what a rank found, before what is left where it found nothing
            raise NonFiniteLoss(f"the loss is {loss} in step {step}: the first to be not finite is {first}", first)
        if not math.isfinite(grad_norm):
            first = _last_nonfinite_gradient(model, objective)
            raise NonFiniteLoss(
                f"the gradient's norm is {grad_norm} in step {step}, of a loss of {loss:.6g}; counted from the loss "
                f"backwards, the first to be not finite is {first}",
                first,
            )
        optimizer.step(layout.share)
    return StepResult(loss, correct, grad_norm)


def forward_and_backward(
    model: Module,
    objective: Objective,
    batch: Batch,
    optimizer: Optimizer,
    seed: int,
    step: int,
    layout: Layout,
) -> Array:
    """Put the gradient of the batch's mean loss, summed over all ranks, into ``optimizer.flat.grad``.

    Returns what each piece of this process saw, (pieces, 2) in float64: its share of the loss, and how many images were
    classified correctly (see ``seen_of``). The host reads nothing here, and neither in ``clip_grad_norm`` nor in
    ``optimizer.step()``: on a GPU the three can follow one another without a wait, for a caller who looks at numbers
    afterwards.
    """
    images, labels, samples, total = batch
    total = len(samples) if total is None else total
    xp = array_module(optimizer.flat.grad)
    together = needs_whole_batch(model, objective.module)
    overlap = layout.overlap and not together and xp is np  # a layer's sums and the gradient's would meet

    def see(worker: int, piece: slice) -> Array:
        with np.errstate(all="ignore"):  # what is not finite is found later, and named better than NumPy can
            with sampling(seed, step, samples[piece]):
                loss, logits = objective(model, images[piece], labels[piece])
            share = loss * (len(samples[piece]) / total)
            share.backward(into=sink(worker, piece, share))
        return seen_of(share, logits, labels[piece])

    order = [parameter for _, parameter in _named_parameters(model, objective)] if overlap else None
    with summed_up(optimizer.flat, layout, len(samples), order) as sink:
        seen = layout.map(see, len(samples), together=together)
    rows = xp.empty((len(seen), 2))  # one by one: to stack many, CuPy needs their addresses from the host
    for row, numbers in zip(rows, seen):
        row[...] = numbers
    return rows


def buffers_of(model: Module, objective: Objective) -> list[Buffer]:
    """What layers write down while they go forward: the running estimates of BatchNorm."""
    return model.buffers() + (objective.module.buffers() if objective.module else [])


@contextmanager
def _undone_by_failure(buffers: list[Buffer]) -> Iterator[None]:
    """Where a step fails, Buffers get back what they held before it, as weights never lost what they held."""
    before = [buffer.data.copy() for buffer in buffers]
    try:
        yield
    except BaseException:
        for buffer, old in zip(buffers, before):
            buffer.data[...] = old
        raise


def seen_of(loss: Tensor, logits: Tensor | None, labels: Array) -> Array:
    """The loss, and how many answers are right, in one array (2,) that lies where they do.

    Without logits the second is NaN, which it stays in any sum, so that no rank needs to be told: see ``count_of``.
    """
    xp = array_module(loss.data)
    correct = xp.full((), math.nan) if logits is None else count_correct(logits.data, labels)
    return xp.stack((loss.data, correct))


def count_of(correct: float) -> int | None:
    """How many answers are right, of a sum of what ``seen_of`` counted; None where there were none to count."""
    return None if math.isnan(correct) else int(correct)


def count_correct(logits: Array, labels: Array) -> Array:
    """How many rows of logits (B, K) have their largest entry at the label (B,), or at that of a soft target (B, K).

    The number lies where they lie: ``int`` reads it.
    """
    classes = labels.argmax(-1) if labels.ndim > 1 else labels
    return (logits.argmax(-1) == classes).sum()


def first_nonfinite(model: Module, objective: Objective, batch: Batch, seed: int, step: int) -> str:
    """Where the first NaN or infinity of a forward pass comes from: input, a parameter, a layer or the loss function.

    Goes forward a second time, with the same draws, and looks at every layer's output in the order of computation.
    """
    images, labels, samples, _ = batch
    if not _finite(images):
        return "the input images"
    for name, parameter in _named_parameters(model, objective):
        if not _finite(parameter.data):
            return f"the parameter {name}"
    names = {id(module): name or "the model itself" for name, module in model.named_modules()}
    found: list[str] = []

    def look(module: Module, inputs: tuple, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if not found and not all(_finite(y.data) for y in tensors if isinstance(y, Tensor)):
            found.append(f"the output of {names.get(id(module), 'a layer')} ({type(module).__name__})")

    with np.errstate(all="ignore"), observe(look), no_grad(), sampling(seed, step, samples):
        objective(model, images, labels)
    return found[0] if found else THE_REST


def _last_nonfinite_gradient(model: Module, objective: Objective) -> str:
    """The parameter nearest to the loss whose gradient is not finite; backward reached it before the others."""
    named = _named_parameters(model, objective)
    bad = [name for name, p in named if p.grad is not None and not _finite(p.grad)]
    return f"the gradient of {bad[-1]}" if bad else "the sum of the squared gradients"


def _named_parameters(model: Module, objective: Objective) -> Iterator[tuple[str, Parameter]]:
    """Those of the model, and then what the objective trains beside it, from the input towards the loss.

    Without Buffers, into which the step itself has written.
    """
    own = objective.module.named_parameters() if objective.module else ()
    for name, parameter in (*model.named_parameters(), *((f"objective.{name}", p) for name, p in own)):
        if not isinstance(parameter, Buffer):
            yield name, parameter


def _finite(array: Array) -> bool:
    return bool(array_module(array).isfinite(array).all())
