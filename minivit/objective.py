"""What a run trains for: from a model, images and their labels to a number that should become small.

    classification    ℓ = cross-entropy of model(images) and the labels (+ penalties for heads that are alike)
    reconstruction    ℓ = how far model(images, mask_ratio, …) is from the pixels that it did not see; no labels

A training step and an evaluation ask an Objective for the loss, and do not look inside. The loss is a mean over images,
which lets a batch be cut anywhere (see ``training/step.py``).
"""

from contextlib import nullcontext
from dataclasses import dataclass

from minivit.autograd import Tensor
from minivit.backend import Array
from minivit.diversity import HeadPenalties
from minivit.nn import Module
from minivit.ops import cross_entropy


class Objective:
    """Base of what can be trained for. A subclass is a frozen dataclass with ``__call__``.

    Several threads call it at a time, so it keeps nothing from one call to the next. Its ``repr`` should tell all that
    the loss depends on: a run is resumed only with an objective of the same ``repr``.
    """

    def __call__(self, model: Module, images: Array, labels: Array) -> tuple[Tensor, Tensor | None]:
        """The loss, a mean over these images; and logits (B, K), or None where there is nothing to be right about.

        ``labels``: (B,) classes, or (B, K) soft targets. The largest logit is the model's answer. Layers that draw do
        so for the images' samples, as ``minivit.random.sampling`` has it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no __call__()")

    @property
    def evaluation(self) -> "Objective":
        """What test images are measured by: the plain cross-entropy, unless a subclass says otherwise."""
        return Classification()

    @property
    def module(self) -> Module | None:
        """What is trained beside the model and is no part of it, such as projections of features; mostly nothing.

        Its Parameters belong in the optimizer, and ``fit`` saves them with the run.
        """
        return None


@dataclass(frozen=True)
class Classification(Objective):
    """The cross-entropy of ``model(images)``, (B, K), and the labels; see ``minivit.ops.cross_entropy``.

    - ``label_smoothing``: the share of each target that is spread evenly over all classes, in [0, 1]
    - ``penalties``: what is added for attention heads that are alike; see ``minivit/diversity.py``

    Raises TypeError for a model that gives two logits.

    >>> import numpy as np
    >>> from minivit.nn import Linear
    >>> model = Linear(2, 4)
    >>> model.load_state_dict({"weight": np.zeros((4, 2)), "bias": np.zeros(4)})
    >>> loss, logits = Classification()(model, np.ones((3, 2), np.float32), np.array([0, 1, 3]))
    >>> round(loss.item(), 4), logits.shape                                                     # ln 4
    (1.3863, (3, 4))
    """

    label_smoothing: float = 0.0
    penalties: HeadPenalties | None = None

    def __call__(self, model: Module, images: Array, labels: Array) -> tuple[Tensor, Tensor]:
        with self.penalties.reading(model) if self.penalties else nullcontext() as read:
            logits = model(images)
        if isinstance(logits, tuple):
            raise TypeError(
                f"{type(model).__name__} gives two logits while training, one for the labels and one for a teacher: "
                "SoftDistillation and HardDistillation train it, Classification does not"
            )
        loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return (loss + read.total() if self.penalties else loss), logits


@dataclass(frozen=True)
class Reconstruction(Objective):
    """The loss of a masked autoencoder: ``model(images, mask_ratio, mask_kind=…)`` gives ``(loss, prediction, mask)``.

    - ``mask_ratio``: the share of the patches that the model does not see
    - ``mask_kind``: which ones these are, "random", "block" or "grid"; see ``models/masking.py``

    Labels are not looked at. Test images are measured in the same way; ``evaluate`` masks them alike every time.

    >>> import numpy as np
    >>> class Grey(Module):  # guesses that every pixel is 0
    ...     def forward(self, images, mask_ratio, mask_kind):
    ...         return Tensor(images * images).mean(), Tensor(0 * images), np.ones(images.shape)
    >>> loss, logits = Reconstruction()(Grey(), np.full((2, 1, 4, 4), 3, np.float32), np.array([0, 1]))
    >>> loss.item(), logits
    (9.0, None)
    """

    mask_ratio: float = 0.75
    mask_kind: str = "random"

    def __call__(self, model: Module, images: Array, labels: Array) -> tuple[Tensor, None]:
        loss, _, _ = model(images, self.mask_ratio, mask_kind=self.mask_kind)
        return loss, None

    @property
    def evaluation(self) -> Objective:
        return self
