"""Shape or texture: by which of the two does a network name an image in which they are at odds?

A cat with the skin of an elephant has two right answers. Over many such images,

    shape bias = answers with the shape's class / (answers with the shape's class + answers with the texture's class)
    coverage   = answers with one of the two / images

(Geirhos et al., "ImageNet-trained CNNs are biased towards texture", ICLR 2019, arXiv:1811.12231). A bias goes with its
coverage: where a network names next to no image by one of the two, the ratio is one of few and odd images. Guessing
among K classes has a bias of 1/2, and a coverage of 2 / K.

Two sets have shape and texture for each image, as ``labels`` and ``extra["texture"]``:

- ``data.shapes.shapes(n, relation="conflict")``, for networks trained on ``relation="agree"``: texture 3 came with
  shape 3 there, so both cues were as good, and answering 3 for either is what could be learned.
- ``data.cue_conflict.cue_conflict(path)``, images in 16 categories. Which of a network's classes make up a category is
  told by ``members``. ``known_images`` are those that the network can name, and ``decide`` says how it names them.

    members = by_name(train.classes)                  # or IMAGENET
    data = known_images(cue_conflict(path).normalised_like(train), members)
    decisions = decide(logits, members, data.classes)
    shape_bias(decisions, data.labels, data.extra["texture"]).bias

Two networks with equal figures may still err on other images. ``error_consistency`` says whether they do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from minivit.backend import Array, to_device
from minivit.data import Dataset

Members = Mapping[str, Sequence[int]]  # {category: which classes of a network make it up}

# --- the answers of a network ------------------------------------------------------------------------------------


def known_images(data: Dataset, members: Members) -> Dataset:
    """The images whose shape and texture are both categories that a network has classes for, on the host.

    Their ``classes`` are the categories left: those that occur in one of these images, and so both the network and the
    images know. A network for CIFAR-10 knows 7 of the 16 categories. So no image of a bear is left, and no cat with the
    texture of a bear: a network that cannot answer "bear" does not choose the shape where it answers "cat".

    Raises ValueError where no image is left, or ``data`` says nothing of textures.

    >>> from minivit.data.cue_conflict import by_name
    >>> shape, texture = np.array([0, 1, 2]), np.array([2, 2, 0])
    >>> data = Dataset("x", np.zeros((3, 1, 8, 8), np.uint8), shape, ["cat", "bear", "dog"], extra={"texture": texture})
    >>> known = known_images(data, by_name(["dog", "frog", "cat"]))
    >>> known.classes, known.labels, known.extra["texture"]
    (['cat', 'dog'], array([0, 1]), array([1, 0]))
    """
    if "texture" not in data.extra:
        raise ValueError(f"data must have a texture for each image, extra['texture'], but {data.name} has none")
    data = data.to("cpu")
    cues = np.stack([data.labels, data.extra["texture"]])  # (2, n)
    known = np.isin(cues, [number for number, name in enumerate(data.classes) if name in members]).all(0)
    if not known.any():
        raise ValueError(
            f"no image of {data.name} has shape and texture among {', '.join(members) or 'none'}, "
            f"the categories that the network knows"
        )
    left, cues = np.unique(cues[:, known], return_inverse=True)
    labels, texture = cues.reshape(2, -1)
    classes = [data.classes[number] for number in left]
    return replace(data.subset(np.flatnonzero(known)), labels=labels, classes=classes, extra={"texture": texture})


def decide(logits: Array, members: Members, categories: Sequence[str]) -> np.ndarray:
    """Which of ``categories`` a network answers, for its logits (n, K): numbers (n,).

    That of the largest probability, averaged over the category's classes, so that a category is not answered more often
    because it has more of them (Geirhos et al., "Generalisation in humans and deep neural networks", 2018,
    arXiv:1808.08750, appendix). No other category is ever answered, however probable its classes are: a network for
    CIFAR-10 that takes an image for a frog is asked what it is if it is no frog.

    Raises ValueError for a category that has no classes, and for a class that has no logit.

    >>> logits = np.log([[0.1, 0.3, 0.3, 0.3], [0.5, 0.4, 0.1, 0.0001]])
    >>> members = {"cat": [0, 1], "dog": [2], "boat": [3]}
    >>> decide(logits, members, ["cat", "dog"])
    array([1, 0])
    """
    logits = np.asarray(to_device(logits, "cpu"), np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError(f"logits must be finite numbers (n, K), got shape {logits.shape}, or NaN or infinity")
    if missing := [name for name in categories if not len(members.get(name, ()))]:
        raise ValueError(f"members must have classes for every category, but has none for {', '.join(missing)}")
    numbers = [number for name in categories for number in members[name]]
    if not numbers or min(numbers) < 0 or max(numbers) >= logits.shape[1]:
        raise ValueError(
            f"members of the categories must be numbers of the network's {logits.shape[1]} classes, got {numbers}"
        )
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    return np.stack([probabilities[:, members[name]].mean(1) for name in categories], axis=1).argmax(1)


# --- shape bias --------------------------------------------------------------------------------------------------


class ShapeBias(NamedTuple):
    """How many images there were, and how many of them were answered with their shape, and with their texture."""

    images: int
    shape: int
    texture: int

    @property
    def bias(self) -> float | None:
        """Shape's share of the answers with one of the two; None where there was no such answer."""
        return self.shape / (self.shape + self.texture) if self.shape + self.texture else None

    @property
    def coverage(self) -> float | None:
        """The share of images that were answered with one of the two; None where there were no images."""
        return (self.shape + self.texture) / self.images if self.images else None


def shape_bias(decisions: Array, shape: Array, texture: Array) -> ShapeBias:
    """Class numbers that a network answered, and those of shape and texture, (n,) each → see ``ShapeBias``.

    For classes that are the network's own, decisions are ``logits.argmax(1)``. An image whose shape and texture are of
    one class has no conflict, and is left out.

    Raises ValueError for arrays that are no class numbers or do not fit together, and where no image has a conflict.

    >>> found = shape_bias(np.array([0, 1, 2, 0]), shape=np.array([0, 0, 0, 0]), texture=np.array([1, 1, 1, 0]))
    >>> found, found.bias, round(found.coverage, 3)
    (ShapeBias(images=3, shape=1, texture=1), 0.5, 0.667)
    """
    return _count(*_conflicts(decisions, shape, texture))


def shape_bias_by_class(decisions: Array, shape: Array, texture: Array, classes: Sequence[str]) -> dict[str, ShapeBias]:
    """The same for the images of each shape alone; ``classes`` are the names of the numbers.

    Images and answers add up to those of ``shape_bias``. A class that no image has the shape of has 0 of them.

    Raises ValueError as ``shape_bias`` does, and for shapes that have no name.

    >>> arrays = np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([1, 1, 0])
    >>> {name: found.bias for name, found in shape_bias_by_class(*arrays, classes=["cat", "dog", "boat"]).items()}
    {'cat': 0.5, 'dog': 1.0, 'boat': None}
    """
    decisions, shape, texture = _conflicts(decisions, shape, texture)
    if shape.max() >= len(classes):
        raise ValueError(f"classes must name every shape, got {len(classes)} names and shape number {shape.max()}")
    of = [shape == number for number in range(len(classes))]
    return {name: _count(decisions[at], shape[at], texture[at]) for name, at in zip(classes, of)}


def _count(decisions: np.ndarray, shape: np.ndarray, texture: np.ndarray) -> ShapeBias:
    return ShapeBias(len(decisions), int((decisions == shape).sum()), int((decisions == texture).sum()))


def _conflicts(decisions: Array, shape: Array, texture: Array) -> tuple[np.ndarray, ...]:
    """The arrays, checked, on the host, of images with a conflict alone."""
    arrays = tuple(to_device(array, "cpu") for array in (decisions, shape, texture))
    for name, array in zip(("decisions", "shape", "texture"), arrays):
        if array.ndim != 1 or len(array) != len(arrays[0]) or array.dtype.kind not in "iu":
            raise ValueError(
                f"{name} must be a class number for each of the {len(arrays[0])} images, "
                f"got {array.dtype} of shape {array.shape}"
            )
    decisions, shape, texture = arrays
    conflict = shape != texture
    if not conflict.any():
        raise ValueError(f"none of the {len(shape)} images has a texture of another class than its shape")
    return decisions[conflict], shape[conflict], texture[conflict]


# --- do two networks err alike? ----------------------------------------------------------------------------------


class ErrorConsistency(NamedTuple):
    """The share of images about which both networks are right or both wrong, that expected by chance, and Cohen's κ."""

    observed: float
    expected: float
    kappa: float


def error_consistency(right_a: Array, right_b: Array) -> ErrorConsistency:
    """Do two networks err on the same images? From whether each is right about each image, booleans (n,):

        c_obs = mean of (right_a = right_b)
        c_exp = a b + (1 − a)(1 − b),        a, b the shares about which they are right
        κ     = (c_obs − c_exp) / (1 − c_exp)

    Two networks that are right about nine images in ten agree on eight even where their errors are unrelated. So κ is 0
    for errors that coincide as often as chance has it, 1 for the same errors, and negative for errors that avoid one
    another. (Geirhos et al., "Beyond accuracy", 2020, arXiv:2006.16736; of ViT and CNN: Tuli et al., "Are
    Convolutional Neural Networks or Transformers more like human vision?", 2021, arXiv:2105.07197.) Of conflicting
    cues, the answer with the shape is right there: ``decisions == shape``.

    Where both are right about all images, or both wrong about all, c_exp is 1 and κ is 0 / 0. It is then called 1, as
    their answers agree; but such networks have no errors to compare, or nothing else, and ``expected`` tells that.

    Raises ValueError for arrays that are not booleans, as many in both.

    >>> error_consistency(np.array([True, True, False, False]), np.array([True, False, False, False]))
    ErrorConsistency(observed=0.75, expected=0.5, kappa=0.5)
    """
    right_a, right_b = (to_device(array, "cpu") for array in (right_a, right_b))
    boolean = right_a.dtype == right_b.dtype == bool
    if not boolean or right_a.shape != right_b.shape or right_a.ndim != 1 or not len(right_a):
        raise ValueError(
            "right_a and right_b must say of each of the same images whether a network is right, as booleans (n,), "
            f"got {right_a.dtype} of shape {right_a.shape} and {right_b.dtype} of shape {right_b.shape}"
        )
    a, b = right_a.mean(), right_b.mean()
    observed, expected = float((right_a == right_b).mean()), float(a * b + (1 - a) * (1 - b))
    return ErrorConsistency(observed, expected, 1.0 if observed == 1 else (observed - expected) / (1 - expected))
