"""A model in use: no dropout, no gradients, and how often it is right."""

from collections.abc import Iterable
from typing import NamedTuple

from minivit.backend import Array, array_module
from minivit.data.loader import Batch, Loader
from minivit.nn import Module, evaluating
from minivit.ops import cross_entropy
from minivit.training.step import count_correct, micro_batches


class Evaluation(NamedTuple):
    """Mean cross-entropy, and the share of images classified correctly."""

    loss: float
    accuracy: float


def predict(model: Module, images: Array, batch_size: int = 64) -> Array:
    """Logits (n, K) of normalised images (n, C, H, W), computed ``batch_size`` at a time, on the images' device.

    Raises ValueError for no images.

    >>> from minivit.nn import Linear
    >>> predict(Linear(3, 2), np.zeros((5, 3), np.float32), batch_size=2).shape
    (5, 2)
    """
    with evaluating(model):
        logits = [model(images[piece]).data for piece in micro_batches(len(images), batch_size)]
    return array_module(images).concatenate(logits)


def evaluate(model: Module, batches: Loader | Iterable[Batch]) -> Evaluation:
    """Loss and accuracy over all images of a Loader (its epoch 0: make it with ``shuffle=False``), or of batches.

    The loss is the plain cross-entropy, whatever the model was trained with. Raises ValueError for no images.

    >>> from minivit.nn import Linear
    >>> model = Linear(2, 2)
    >>> model.load_state_dict({"weight": 30 * np.eye(2), "bias": np.zeros(2)})
    >>> images, labels = np.eye(2, dtype=np.float32), np.array([0, 1])
    >>> evaluate(model, [Batch(images, labels, np.arange(2))]).accuracy
    1.0
    """
    if isinstance(batches, Loader):
        batches = batches.epoch(0)
    loss, correct, images = 0.0, 0, 0
    with evaluating(model):
        for batch in batches:
            logits = model(batch.images)
            loss += cross_entropy(logits, batch.labels, reduction="sum").item()
            correct += count_correct(logits.data, batch.labels)
            images += len(batch.labels)
    if images == 0:
        raise ValueError("there is nothing to evaluate on: no images were given")
    return Evaluation(loss / images, correct / images)
