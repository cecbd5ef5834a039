"""How soon can the classes be told? Few-shot probes of every layer of a network, which is cut off behind it.

Raghu et al., "Do Vision Transformers See Like Convolutional Neural Networks?" (2021, arXiv:2108.08810), ask a layer
what it knows by a linear classifier of its features, in closed form, from k examples of each class. So few images can
hardly teach anything: what such a classifier tells apart, the network has already brought apart.

Which examples are chosen depends on labels and seed alone. So all layers of all networks learn from the same ones;
those for a small k are among those for a larger k; and what differs between seeds is the luck with examples.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from minivit.analysis.features import collect_features
from minivit.analysis.probe import ridge_probe
from minivit.backend import to_device
from minivit.data import Dataset, Loader
from minivit.nn import Module
from minivit.random import generator

SHOTS = (1, 5, 10, 20)  # k, examples of each class
Layers = Mapping[str, np.ndarray]  # {layer: its features, (n, D)}; D may differ between layers


def few_shot_layers(
    model: Module, train: Dataset, test: Dataset, pool: str = "mean", layers: Sequence[str] | None = None,
    shots: Sequence[int] = SHOTS, seeds: Sequence[int] = range(5), l2: float = 0.1,
    batch_size: int = 100, progress: bool = True,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Few-shot accuracy of each layer of a network: {layer: accuracies (shots, seeds)}.

    ``layers`` are by default those of ``models.layers.layers_of``, from the embedding to the classifier's input.
    ``pool`` says what is read of each, the "class" token or the "mean" over patch tokens or places: see ``features``.
    Only those images of ``train`` go through the network that some seed has chosen, and all of ``test``. All else is as
    in ``few_shot``.

    >>> from minivit.data.shapes import shapes
    >>> from minivit.models import create_model
    >>> train, test = shapes(20, size=8), shapes(10, size=8, split="test")
    >>> found = few_shot_layers(create_model("resnet8", img_size=8), train, test, shots=[1, 2], seeds=range(3))
    >>> {layer: accuracies.shape for layer, accuracies in found.items()}
    {'embedding': (2, 3), 'layer1.0': (2, 3), 'layer2.0': (2, 3), 'layer3.0': (2, 3), 'pooled': (2, 3)}
    """
    chosen = _choose(to_device(train.labels, "cpu"), shots, seeds)
    needed, places = np.unique(chosen, return_inverse=True)
    few, rest = (
        collect_features(model, Loader(data, batch_size, shuffle=False), layers, pool, progress)
        for data in (train.subset(needed), test)
    )
    accuracies = _accuracies(*few, *rest, places.reshape(chosen.shape), shots, l2, progress)
    return dict(zip(few.features, accuracies))


def few_shot(
    features: Layers, labels: np.ndarray, test_features: Layers, test_labels: np.ndarray,
    shots: Sequence[int] = SHOTS, seeds: Sequence[int] = range(5), l2: float = 0.1, progress: bool = True,
) -> np.ndarray:  # fmt: skip
    """The share of test images that a linear classifier is right about: accuracies (layers, shots, seeds).

    From the ``features`` of images with these ``labels`` (n,), each seed chooses k examples of each class, and
    ``probe.ridge_probe`` is fitted to them, which also brings features to mean 0 and variance 1. They are too few to
    choose a penalty by, so ``l2`` is that of all. It should not be tiny: without one, accuracy falls wherever there are
    about as many examples as features, and that says nothing of the network.

    Raises ValueError for layers that are not those of the test features, arrays that do not fit together, more shots
    than a class has images, and no shots or seeds.

    >>> x, y = np.repeat(np.eye(3), 2, axis=0), np.repeat(np.arange(3), 2)
    >>> features = {"block 1": 0 * x, "block 2": x}
    >>> few_shot(features, y, features, y, shots=[1, 2], seeds=[0]).round(2).tolist()
    [[[0.33], [0.33]], [[1.0], [1.0]]]
    """
    if list(features) != list(test_features) or not features:
        raise ValueError(
            "features and test_features must be of the same layers, in the same order, "
            f"got {', '.join(features) or 'none'} and {', '.join(test_features) or 'none'}"
        )
    for layer, x in features.items():
        if len(x) != len(labels):
            raise ValueError(f"features must be of the {len(labels)} labelled images, {layer!r} has {len(x)}")
    chosen = _choose(labels, shots, seeds)
    return _accuracies(features, labels, test_features, test_labels, chosen, shots, l2, progress)


def examples(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """The numbers of ``most`` images of each class, in random order: (classes, most). For fewer, take the first.

    Raises ValueError for a class, of 0 … the highest of ``labels`` (n,), that has fewer, and for ``most`` below 1.

    >>> labels = np.array([0, 1, 1, 0, 1, 0])
    >>> chosen = examples(labels, most=2)
    >>> labels[chosen]
    array([[0, 0],
           [1, 1]])
    >>> bool((examples(labels, most=1) == chosen[:, :1]).all())
    True
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0:
        raise ValueError(f"labels must be class numbers (n,) from 0 on, got {labels.dtype} of shape {labels.shape}")
    counts = np.bincount(labels)
    if not 1 <= most <= counts.min():
        raise ValueError(
            f"shots must lie in 1 … {counts.min()}, as class {counts.argmin()} has {counts.min()} images, got {most}"
        )
    of_class = [np.flatnonzero(labels == number) for number in range(len(counts))]
    return np.stack([generator(seed, "shots", k).permutation(images)[:most] for k, images in enumerate(of_class)])


def _choose(labels: np.ndarray, shots: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
    """The examples of each seed for the most shots, (seeds, classes, most)."""
    if not len(shots) or not len(seeds) or min(shots) < 1:
        raise ValueError(f"shots must be numbers from 1 on, and there must be seeds, got {[*shots]} and {[*seeds]}")
    return np.stack([examples(labels, max(shots), seed) for seed in seeds])


def _accuracies(
    features: Layers, labels: np.ndarray, test_features: Layers, test_labels: np.ndarray,
    chosen: np.ndarray, shots: Sequence[int], l2: float, progress: bool,
) -> np.ndarray:  # fmt: skip
    """(layers, shots, seeds), from the examples ``chosen`` by each seed, (seeds, classes, most)."""

    def accuracy(layer: str, few: np.ndarray) -> float:
        return ridge_probe(features[layer][few], labels[few], test_features[layer], test_labels, l2).accuracy

    bar = tqdm(features, desc="few-shot probes", leave=False, disable=None if progress else True)
    return np.array([[[accuracy(layer, of[:, :k].ravel()) for of in chosen] for k in shots] for layer in bar])
