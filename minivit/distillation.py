"""Distillation: a network, the student, learns from the labels and from another network, its teacher.

    soft       (1 − α) CE(s, y) + α T² KL(softmax(t/T) ‖ softmax(s/T))      what the teacher thinks of every class
    hard       (1 − α) CE(s, y) + α CE(s, argmax t)                         what it would answer
    features   CE(s, y) + w · mean squared error(P f, g)                    what it sees

with logits s of the student and t of the teacher, labels y, features f and g, and a matrix P between their widths. Soft
is Hinton et al., "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531); hard is Touvron et al., 2020
(arXiv:2012.12877), eq. 3; features are the hints of Romero et al., "FitNets", 2014 (arXiv:1412.6550), eq. 3.

A student with two heads (``models/deit.py``) learns from the labels with one and from the teacher with the other: the
s next to t is then ``logits_dist``. A student with one head learns both with that.

The teacher looks at the images that the student looks at, augmented and mixed as they are, never at the labels. All
losses are means over images, so a batch may be cut anywhere.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass

import numpy as np

from minivit.autograd import Tensor, no_grad
from minivit.backend import Array, device_of
from minivit.models.layers import POOLED, observe_layers
from minivit.nn import Identity, Linear, Module, evaluating, init, unobserved
from minivit.objective import Objective
from minivit.ops import cross_entropy, mse_loss, softmax
from minivit.random import bookmark

# --- teachers -------------------------------------------------------------------------------------------------------


class Teacher:
    """A network that is asked and never trained: any Module that gives logits (B, K) for images.

    It is put into evaluation mode, for good, and nothing that it computes is recorded. It is no Module itself, so its
    Parameters are not found among those to train. Its ``repr`` has a checksum of its weights: a run that was begun with
    one teacher is not resumed with another. It has to lie on the student's device, TypeError where it does not.

    >>> from minivit.nn import Linear
    >>> teacher = Teacher(Linear(2, 3))
    >>> teacher(np.ones((5, 2), np.float32)).requires_grad
    False
    >>> teacher
    Teacher(Linear, 9 parameters, checksum ...)
    """

    def __init__(self, model: Module):
        self.model = model.eval()

    def __call__(self, images: Array) -> Tensor:
        """Logits (B, K)."""
        _check_device(images, self.model.device)
        with no_grad(), unobserved():
            return self.model(images)

    def features(self, images: Array, layers: Sequence[str]) -> list[Tensor]:
        """What is read at each of ``layers``, (B, C) each; see ``reading``."""
        _check_device(images, self.model.device)
        with no_grad(), unobserved(), reading(self.model, layers) as read:
            self.model(images)
        return [read[layer] for layer in layers]

    def __repr__(self) -> str:
        model = self.model
        return (
            f"Teacher({type(model).__name__}, {model.num_parameters():,} parameters, "
            f"checksum {_checksum(model.state_dict())})"
        )


class StoredLogits:
    """A teacher that has answered already: its logits (n, K) for all n images of a data set.

    They are looked up by the images' index in the data set, which a training step makes known. This is right only where
    every epoch shows the images as the teacher saw them: not augmented, not mixed, not repeated. Raises RuntimeError
    outside of a training step, TypeError for images on another device than the logits.

    >>> from minivit.random import sampling
    >>> stored = StoredLogits(np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]))
    >>> with sampling(seed=0, step=0, samples=np.array([2, 0])):
    ...     stored(np.zeros((2, 3, 8, 8), np.float32)).numpy()
    array([[4., 5.],
           [0., 1.]])
    """

    def __init__(self, logits: Array):
        self.logits = logits

    def __call__(self, images: Array) -> Tensor:
        """Logits (B, K)."""
        samples = bookmark().get("samples")
        if samples is None or len(samples) != len(images):
            raise RuntimeError(
                "StoredLogits has to know which images of the data set it is asked about: use it in a training step, "
                f"or inside of minivit.random.sampling(seed, step, samples) for {len(images)} samples"
            )
        _check_device(images, device_of(self.logits))
        return Tensor(self.logits[samples])

    def __repr__(self) -> str:
        images, classes = self.logits.shape
        logits = Tensor(self.logits).numpy()
        return f"StoredLogits({images:,} images, {classes} classes, checksum {_checksum({'logits': logits})})"


def _check_device(images: Array, device: str) -> None:
    if (there := device_of(images)) != device:
        raise TypeError(f"the images are on {there}, the teacher is on {device}: move it to where the student is")


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, array in arrays.items():
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


# --- from logits ----------------------------------------------------------------------------------------------------


def kl_divergence(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p ‖ q) = Σ_k p_k ln(p_k / q_k), p = softmax(target / T), q = softmax(logits / T), averaged over the batch.

    Both (B, K). It is a difference of two cross-entropies,

        Σ p ln p − Σ p ln q = CE(q, p) − CE(p, p),

    and the second, the entropy of p, does not depend on the student: what the student learns is the cross-entropy with
    soft targets p. Taking the entropy away makes 0 of a perfect imitation.

    The gradient with respect to s = logits is (q − p) / T. For a large T, q ≈ (1 + (s − s̄) / T) / K, and likewise p: so
    T² KL has the gradient T (q − p) → ((s − s̄) − (t − t̄)) / K, which no longer depends on T. That is why a loss takes
    T² KL: its share in the gradient stays the same when T changes.

    ``target`` receives no gradient. Raises ValueError for shapes that differ.

    >>> logits = Tensor([[1.0, 2.0, 3.0]])
    >>> kl_divergence(logits, logits + 5.0, temperature=2.0).item()  # softmax does not see what is added to all
    0.0
    """
    target = target.detach() / temperature
    p = softmax(target).data
    return cross_entropy(logits / temperature, p) - cross_entropy(target, p)


class LogitDistillation(Objective):
    """What soft and hard distillation have in common: the labels for one head, the teacher's logits for the other.

    A subclass has these fields, and says in ``imitation`` how far logits (B, K) are from the teacher's.
    """

    teacher: Teacher | StoredLogits
    alpha: float
    label_smoothing: float

    def __post_init__(self) -> None:
        _check_teacher(self.teacher, Teacher, StoredLogits)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha, the teacher's share of the loss, must lie in [0, 1], got {self.alpha}")

    def imitation(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no imitation()")

    def __call__(self, model: Module, images: Array, labels: Array) -> tuple[Tensor, Tensor]:
        target = self.teacher(images)  # before the student, whose graph is kept
        logits, logits_dist = _two_heads(model(images))
        if logits_dist.shape != target.shape:
            raise ValueError(f"the student's logits have shape {logits_dist.shape}, the teacher's {target.shape}")
        truth = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        loss = truth * (1 - self.alpha) + self.imitation(logits_dist, target) * self.alpha
        return loss, (logits + logits_dist) * 0.5


@dataclass(frozen=True)
class SoftDistillation(LogitDistillation):
    """(1 − α) CE(s, y) + α T² KL(softmax(t/T) ‖ softmax(s/T)): see ``kl_divergence``.

    - ``teacher``: a ``Teacher``, or ``StoredLogits``
    - ``alpha``: the teacher's share α of the loss, in [0, 1]; the defaults are the settings of DeiT, section 4
    - ``temperature``: T, above 0; the higher, the more the small probabilities count
    - ``reduction``: "batchmean" divides the divergence by the number of images, as timm does; "mean" by that of images
      times classes, as DeiT's program does, which makes the teacher's share K times smaller
    - ``label_smoothing``: of the labels y only

    Raises ValueError for values outside of these.

    >>> from minivit.nn import Linear
    >>> student, teacher = Linear(2, 3), Teacher(Linear(2, 3))
    >>> images, labels = np.eye(2, dtype=np.float32), np.array([0, 1])
    >>> loss, logits = SoftDistillation(teacher, alpha=0.5, temperature=2.0)(student, images, labels)
    >>> loss.backward()
    >>> logits.shape, student.weight.grad.shape, teacher.model.weight.grad
    ((2, 3), (3, 2), None)
    """

    teacher: Teacher | StoredLogits
    alpha: float = 0.1
    temperature: float = 3.0
    reduction: str = "batchmean"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.reduction not in ("batchmean", "mean"):
            raise ValueError(f"reduction must be 'batchmean' or 'mean', got {self.reduction!r}")

    def imitation(self, logits: Tensor, target: Tensor) -> Tensor:
        divergence = kl_divergence(logits, target, self.temperature) * self.temperature**2
        return divergence / logits.shape[-1] if self.reduction == "mean" else divergence


@dataclass(frozen=True)
class HardDistillation(LogitDistillation):
    """(1 − α) CE(s, y) + α CE(s, argmax t): the teacher's answer is a second label, of the image as it is shown.

    A crop may no longer show what the label says; the teacher says what it shows. Fields as in ``SoftDistillation``;
    the teacher's answers are not smoothed. Raises ValueError for an ``alpha`` outside of [0, 1].

    >>> from minivit.nn import Linear
    >>> objective = HardDistillation(Teacher(Linear(2, 3)))
    >>> loss, logits = objective(Linear(2, 3), np.eye(2, dtype=np.float32), np.array([0, 1]))
    """

    teacher: Teacher | StoredLogits
    alpha: float = 0.5
    label_smoothing: float = 0.0

    def imitation(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target.data.argmax(-1))


def _two_heads(output: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(logits, logits_dist); twice the same of a network with one head."""
    return output if isinstance(output, tuple) else (output, output)


def _check_teacher(teacher: object, *kinds: type) -> None:
    if not isinstance(teacher, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"teacher must be a {wanted}, got {type(teacher).__name__}: write Teacher(model)")


# --- from features --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureDistillation(Objective):
    """CE(s, y) + w · mean over pairs of layers of MSE(P f, g): the student's features f become like the teacher's, g.

    - ``student``, ``images``: the student and an image or more, (B, C, H, W), which are looked at to find out widths;
      they are not kept
    - ``layers``: pairs (layer of the student, layer of the teacher), by the names of ``named_modules``, such as
      ("blocks.3", "layer2"); see ``reading``. By default what the two classifiers are given
    - ``weight``: w; ``label_smoothing``: of the labels y
    - ``seed``: of the start of the projections P, linear layers that stand where widths differ. They are ``module``:
      their Parameters have to be in the optimizer, beside the student's

    A student with two heads answers with their mean, s. Raises ValueError for layers that are not there, for a negative
    ``weight``, and where a layer of the student was computed without a graph, as in recomputation.

    >>> from minivit.models import create_model
    >>> student, teacher = (create_model("vit_nano_patch7_28", embed_dim=width) for width in (32, 64))
    >>> images = np.zeros((2, 1, 28, 28), np.float32)
    >>> layers = [("blocks.0", "blocks.1"), ("norm", "norm")]
    >>> objective = FeatureDistillation(Teacher(teacher), student, images, layers)
    >>> loss, logits = objective(student, images, np.array([0, 1]))
    >>> [(name, p.shape) for name, p in objective.module.named_parameters()][:2]
    [('projections.0.weight', (64, 32)), ('projections.0.bias', (64,))]
    """

    teacher: Teacher
    student: InitVar[Module]
    images: InitVar[Array]
    layers: Sequence[tuple[str, str]] = ((POOLED, POOLED),)
    weight: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self, student: Module, images: Array) -> None:
        _check_teacher(self.teacher, Teacher)
        if not self.weight >= 0:
            raise ValueError(f"weight must be at least 0, got {self.weight}")
        theirs, own = self._sides()
        with evaluating(student), reading(student, own) as read:
            student(images)
        targets = self.teacher.features(images, theirs)
        widths = [(read[layer].shape[-1], target.shape[-1]) for layer, target in zip(own, targets)]
        projections = Projections(widths, self.seed).to(student.device)
        object.__setattr__(self, "_projections", projections)  # a frozen dataclass lets no one else do it

    def __call__(self, model: Module, images: Array, labels: Array) -> tuple[Tensor, Tensor]:
        theirs, own = self._sides()
        targets = self.teacher.features(images, theirs)
        with reading(model, own) as read:
            logits, logits_dist = _two_heads(model(images))
        logits = (logits + logits_dist) * 0.5
        if lost := [layer for layer in own if logits.requires_grad and not read[layer].requires_grad]:
            raise ValueError(
                f"the student's layer {lost[0]} was computed without a graph, and cannot learn from the teacher's: it "
                "is frozen, or recomputed, which model.set_grad_checkpointing(False) turns off"
            )
        projected = self._projections([read[layer] for layer in own])
        distance = sum(mse_loss(f, g) for f, g in zip(projected, targets)) / len(own)
        return cross_entropy(logits, labels, label_smoothing=self.label_smoothing) + distance * self.weight, logits

    @property
    def module(self) -> Module | None:
        return self._projections if self._projections.parameters() else None

    def _sides(self) -> tuple[list[str], list[str]]:
        """The layers of the teacher, and those of the student."""
        return [theirs for _, theirs in self.layers], [own for own, _ in self.layers]


class Projections(Module):
    """A list of features (B, C_i) → (B, C′_i) each, linear where the widths differ. Starts as PyTorch's layers do."""

    def __init__(self, widths: Sequence[tuple[int, int]], seed: int):
        with init.deferred():
            self.projections = [Linear(*pair) if pair[0] != pair[1] else Identity() for pair in widths]
        init.init_weights(self, "book", seed)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [project(x) for project, x in zip(self.projections, features)]


@contextmanager
def reading(model: Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside: when this thread has run ``model``, the dict has the features (B, C) of each of ``layers``.

    A layer's features are its output, averaged over tokens (B, N, C) or places (B, C, H, W). Names are those of
    ``models/layers.py``; "pooled" is what the classifier is given, ``head_dist``, ``head`` or ``fc``. Of a Vision
    Transformer whose head reads the class token alone, that token is all that the last block computes. Raises
    ValueError for a layer that is not there, or not run.

    >>> from minivit.models import create_model
    >>> model = create_model("vit_nano_patch7_28")
    >>> with reading(model, ["blocks.0", "pooled"]) as read:
    ...     y = model(np.zeros((2, 1, 28, 28), np.float32))
    >>> read["blocks.0"].shape, read["pooled"].shape
    ((2, 64), (2, 64))
    """
    read: dict[str, Tensor] = {}

    def keep(layer: str, x: Tensor) -> None:
        read[layer] = _averaged(x)

    with observe_layers(model, layers, keep):
        yield read


def _averaged(x: Tensor) -> Tensor:
    """(B, C), (B, N, C) or (B, C, H, W) → (B, C)."""
    return x if x.ndim == 2 else x.mean(axis=1) if x.ndim == 3 else x.mean(axis=(2, 3))
