"""A model in use: no dropout, no gradients, and how often it is right."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from minivit.autograd import no_grad
from minivit.backend import Array, array_module, to_device
from minivit.data.loader import Batch, Loader
from minivit.nn import Module, check_device, evaluating, on_device_of
from minivit.ops import cross_entropy
from minivit.training.layout import Layout
from minivit.training.step import count_correct


class Evaluation(NamedTuple):
    """Mean cross-entropy, and the share of images classified correctly."""

    loss: float
    accuracy: float


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
        outputs = (layout or Layout(micro_batch=64)).map(output, len(images))
        return array_module(images).concatenate(outputs)


def evaluate(model: Module, batches: Loader | Iterable[Batch], layout: Layout | None = None) -> Evaluation:
    """Loss and accuracy over all images of a Loader (its epoch 0: make it with ``shuffle=False``), or of batches.

    The loss is the plain cross-entropy, whatever the model was trained with. ``layout``: how each batch is cut, by
    default not at all; of several ranks each should have its shard of the batches, and gets the result of all. A
    Loader's batches are moved to the model's device, and others must lie there; a GPU is waited for once a piece.

    Raises ValueError for no images, TypeError for a batch on another device than the model.

    >>> from minivit.nn import Linear
    >>> model = Linear(2, 2)
    >>> model.load_state_dict({"weight": 30 * np.eye(2), "bias": np.zeros(2)})
    >>> images, labels = np.eye(2, dtype=np.float32), np.array([0, 1])
    >>> evaluate(model, [Batch(images, labels, np.arange(2))]).accuracy
    1.0
    """
    layout = layout or Layout()

    def look(batch: Batch, piece: slice) -> Array:
        with no_grad():
            logits = model(batch.images[piece])
            loss = cross_entropy(logits, batch.labels[piece], reduction="sum").data
        return array_module(loss).stack((loss, count_correct(logits.data, batch.labels[piece])))

    sums = np.zeros(3)  # loss, correct, images
    with on_device_of(model), evaluating(model):
        for batch in batches.to(model.device).epoch(0) if isinstance(batches, Loader) else batches:
            check_device(model, images=batch.images, labels=batch.labels)
            for seen in layout.map(lambda worker, piece, batch=batch: look(batch, piece), len(batch.labels)):
                sums[:2] += to_device(seen, "cpu")
            sums[2] += len(batch.labels)
    layout.ranks.sum(sums)
    loss, correct, images = sums.tolist()
    if images == 0:
        raise ValueError("there is nothing to evaluate on: no images were given")
    return Evaluation(loss / images, correct / images)
