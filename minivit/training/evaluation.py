"""A model in use: no dropout, no gradients, and how good it is."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from minivit.autograd import no_grad
from minivit.backend import Array, array_module, to_device
from minivit.data.loader import Batch, Loader
from minivit.nn import Module, check_device, evaluating, on_device_of
from minivit.objective import Classification, Objective
from minivit.random import sampling
from minivit.training.layout import Layout
from minivit.training.step import count_of, seen_of


class Evaluation(NamedTuple):
    """Mean loss, and the share of images classified correctly."""

    loss: float
    accuracy: float | None  # None where the objective has no answers to count

    def better_than(self, other: "Evaluation") -> bool:
        """More accurate; where there is no accuracy, of a lower loss.

        >>> Evaluation(0.5, 0.9).better_than(Evaluation(0.4, 0.8))
        True
        >>> Evaluation(0.5, None).better_than(Evaluation(0.4, None))
        False
        """
        return self.loss < other.loss if self.accuracy is None else self.accuracy > other.accuracy

    def describe(self, digits: int = 4) -> str:
        """The same in words, the loss with so many digits.

        >>> Evaluation(0.51, 0.9).describe(), Evaluation(0.51, None).describe()
        ('loss 0.5100, accuracy 90.00%', 'loss 0.5100')
        """
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.{digits - 2}%}"
        return f"loss {self.loss:.{digits}f}{accuracy}"


def predict(
    model: Module, images: Array, layout: Layout | None = None, forward: Callable[[Array], Any] | None = None
) -> Array:
    """Logits (n, K) of normalised images (n, C, H, W), computed piece by piece, on the images' device.

    ``layout``: the pieces and the threads (default: 64 images at a time, one thread). ``forward``: what to compute
    instead of the model's output, a method of it such as ``model.forward_features``, which gives its tokens (n, N, D).

    Raises ValueError for no images, TypeError for images on another device than the model.

    >>> from minivit.nn import Linear
    >>> predict(Linear(3, 2), np.zeros((5, 3), np.float32), Layout(micro_batch=2)).shape
    (5, 2)
    """
    if len(images) < 1:
        raise ValueError("predict needs at least one image, got none")
    compute = forward or model

    def output(worker: int, piece: slice) -> Array:
        with no_grad():  # which holds for one thread
            return compute(images[piece]).data

    check_device(model, images=images)
    with on_device_of(model), evaluating(model):
        layout = layout or Layout(micro_batch=32)  # of 64 images where no graph is kept
        outputs = layout.map(output, len(images), graph=False)
        return array_module(images).concatenate(outputs)


def evaluate(
    model: Module,
    batches: Loader | Iterable[Batch],
    layout: Layout | None = None,
    objective: Objective | None = None,
) -> Evaluation:
    """Loss and accuracy over all images of a Loader (its epoch 0: make it with ``shuffle=False``), or of batches.

    ``objective``: what is measured, by default ``Classification()``, the plain cross-entropy; what it draws, such as
    masks, is the same for an image every time. ``layout``: how each batch is cut, by default not at all; of several
    ranks each should have its shard of the batches, and gets the result of all. A Loader's batches are moved to the
    model's device, and others must lie there; a GPU is waited for once a piece.

    Raises ValueError for no images, TypeError for a batch on another device than the model.

    >>> from minivit.nn import Linear
    >>> model = Linear(2, 2)
    >>> model.load_state_dict({"weight": 30 * np.eye(2), "bias": np.zeros(2)})
    >>> images, labels = np.eye(2, dtype=np.float32), np.array([0, 1])
    >>> evaluate(model, [Batch(images, labels, np.arange(2))]).accuracy
    1.0
    """
    layout, objective = layout or Layout(), objective or Classification()

    def look(batch: Batch, piece: slice) -> Array:
        images, labels, samples = (array[piece] for array in batch[:3])
        with no_grad(), sampling(0, 0, samples):
            loss, logits = objective(model, images, labels)
            return seen_of(loss * len(samples), logits, labels)

    sums = np.zeros(3)  # loss, correct, images
    with on_device_of(model), evaluating(model):
        for batch in batches.to(model.device).epoch(0) if isinstance(batches, Loader) else batches:
            check_device(model, images=batch.images, labels=batch.labels, samples=batch.samples)
            count = len(batch.labels)
            for seen in layout.map(lambda worker, piece, batch=batch: look(batch, piece), count, graph=False):
                sums[:2] += to_device(seen, "cpu")
            sums[2] += len(batch.labels)
    layout.ranks.sum(sums)
    loss, correct, images = sums.tolist()
    if images == 0:
        raise ValueError("there is nothing to evaluate on: no images were given")
    correct = count_of(correct)
    return Evaluation(loss / images, None if correct is None else correct / images)
