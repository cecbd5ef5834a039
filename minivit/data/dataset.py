"""A data set in memory: images as bytes, labels as integers, and what turns the bytes into network input."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np

from minivit.backend import Array, array_module, to_device


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images with one label each, all in memory (CIFAR-10 takes 150 MB), NumPy or CuPy.

    - ``images``: uint8, (n, C, H, W)
    - ``labels``: int64, (n,), numbers into ``classes``
    - ``mean``, ``std``: of each channel, for values in [0, 1]; measured on these images where not given. A test
      set takes those of its training set: ``test.normalised_like(train)``.
    - ``extra``: further labels, int64 (n,) each, by name; ``shapes`` keeps the texture of every figure there

    Raises TypeError and ValueError where the arrays do not fit this.

    >>> images, labels = np.zeros((4, 3, 8, 8), np.uint8), np.array([0, 1, 1, 0])
    >>> data = Dataset("blank", images, labels, ["cat", "dog"])
    >>> data
    Dataset('blank', 4 images of 3×8×8, 2 classes)
    >>> len(data.subset([1, 2]))
    2
    """

    name: str
    images: Array
    labels: Array
    classes: list[str]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    extra: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise TypeError(
                f"images of {self.name} must be uint8 of shape (n, C, H, W), "
                f"got {self.images.dtype} of shape {self.images.shape}"
            )
        if self.labels.dtype.kind not in "iu":
            raise TypeError(f"labels of {self.name} must be integers, got {self.labels.dtype}")
        for name, labels in {"labels": self.labels, **self.extra}.items():
            if labels.shape != (len(self),):
                raise ValueError(f"{name} of {self.name} must have shape ({len(self)},), got {labels.shape}")
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(
                f"labels of {self.name} must lie in 0 … {len(self.classes) - 1} (it has {len(self.classes)} "
                f"classes), got {int(self.labels.min())} … {int(self.labels.max())}"
            )
        object.__setattr__(self, "labels", self.labels.astype(np.int64))
        if not self.mean:
            for statistic, values in zip(("mean", "std"), channel_statistics(self.images)):
                object.__setattr__(self, statistic, values)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.images.shape[1:]))
        return f"Dataset({self.name!r}, {len(self)} images of {shape}, {len(self.classes)} classes)"

    def subset(self, indices: Sequence[int] | Array) -> "Dataset":
        """The images at ``indices``, in that order; mean and std stay those of the whole."""
        at = array_module(self.images).asarray(indices, dtype=np.int64)
        extra = {name: labels[at] for name, labels in self.extra.items()}
        return replace(self, images=self.images[at], labels=self.labels[at], extra=extra)

    def normalised_like(self, train: "Dataset") -> "Dataset":
        """This set with the mean and std of ``train``, so that one network input means one pixel value."""
        return replace(self, mean=train.mean, std=train.std)

    def normalise(self, images: Array) -> Array:
        """Bytes to network input, ``(x / 255 − mean) / std`` in each channel: uint8 → float32, same shape.

        >>> data = Dataset("ramp", np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.zeros(6, int), ["x"])
        >>> x = data.normalise(data.images)
        >>> x.dtype.name, round(abs(float(x.mean())), 6), round(float(x.std()), 6)
        ('float32', 0.0, 1.0)
        """
        xp = array_module(images)
        scale = [1 / (255 * std) for std in self.std]
        shift = [-mean / std for mean, std in zip(self.mean, self.std)]
        x = images * xp.asarray(scale, dtype=xp.float32)[:, None, None]
        x += xp.asarray(shift, dtype=xp.float32)[:, None, None]
        return x

    def to(self, device: str) -> "Dataset":
        """This set on ``device`` (``"cpu"``, ``"cuda"``); batches and their augmentation are then made there.

        Training does not need it: of a set on the host, a ``Loader`` moves batch by batch.
        """
        extra = {name: to_device(labels, device) for name, labels in self.extra.items()}
        images, labels = to_device(self.images, device), to_device(self.labels, device)
        with on_device_of(images):
            return replace(self, images=images, labels=labels, extra=extra)


def on_device_of(array: Array) -> AbstractContextManager:
    """Inside, CuPy works on the GPU where ``array`` lies; nothing changes for an array on the CPU."""
    return nullcontext() if isinstance(array, np.ndarray) else array.device


def channel_statistics(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images (n, C, H, W), for values in [0, 1].

    A channel that never varies gets std 1, so that it can be divided by.

    >>> channel_statistics(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1))
    ((0.5,), (0.5,))
    """
    count = max(1, images.shape[0] * images.shape[2] * images.shape[3])
    total = square = np.zeros(images.shape[1])
    for start in range(0, len(images), 1024):  # a piece at a time, because float64 takes eight times the memory
        x = images[start : start + 1024].astype(np.float64)
        total = total + to_device(x.sum((0, 2, 3)), "cpu")
        square = square + to_device((x * x).sum((0, 2, 3)), "cpu")
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean * mean, 0.0))
    return tuple((mean / 255).tolist()), tuple(np.where(std > 0, std / 255, 1.0).tolist())
