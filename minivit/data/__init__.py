"""Data: from files, or from nothing, to batches that a network can take.

- ``dataset``: ``Dataset``, images and labels in memory, and their normalisation
- ``shapes``: a generated set of ten silhouettes with ten textures; needs no download
- ``idx``: MNIST and Fashion-MNIST
- ``cifar``: CIFAR-10 and CIFAR-100
- ``places``: another generated set, in which it matters where things are
- ``folder``: your own images, one folder a class
- ``cue_conflict``: images with the shape of one class and the texture of another
- ``download``: public files, found or fetched, whole and checked
- ``loader``: ``Loader``, the batches of an epoch: shuffled, augmented, normalised, made ahead
- ``augment``: chance changes to training images

``load`` opens any of the sets by name.
"""

from pathlib import Path

from minivit.data import cifar, folder, idx, shapes
from minivit.data.dataset import Dataset
from minivit.data.loader import Batch, Loader

__all__ = ["Batch", "Dataset", "Loader", "load"]

SHAPES_TRAIN, SHAPES_TEST = 20_000, 4_000


def load(name: str, data_dir: str | Path = "data", size: int | None = None, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Training and test set by name: ``shapes``, ``mnist``, ``fashion_mnist``, ``cifar10``, ``cifar100`` or
    ``folder:PATH``.

    ``data_dir`` is where the files of public sets are looked for, and downloaded to where they are missing.
    ``size``, in pixels a side (32 where it is not given), applies to ``shapes`` and ``folder:PATH``; the others
    have a size of their own. ``seed`` names the images of ``shapes``.

    Raises ValueError for another name or a size that the set does not have.
    """
    own_size = {"mnist": 28, "fashion_mnist": 28, "cifar10": 32, "cifar100": 32}.get(name)
    if own_size and size not in (None, own_size):
        raise ValueError(f"images of {name} have size {own_size}, got size={size}; only shapes and folders scale")
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        return folder.folder(path, size or 32)
    match name:
        case "shapes":
            train = shapes.shapes(SHAPES_TRAIN, seed, size or 32)
            test = shapes.shapes(SHAPES_TEST, seed, size or 32, split="test")
            return train, test.normalised_like(train)
        case "mnist" | "fashion_mnist":
            return idx.mnist(data_dir, name)
        case "cifar10" | "cifar100":
            return cifar.cifar(data_dir, int(name.removeprefix("cifar")))
    raise ValueError(f"data set must be shapes, mnist, fashion_mnist, cifar10, cifar100 or folder:PATH, got {name!r}")
