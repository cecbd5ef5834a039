"""The loader: a data set in batches, in an order and with augmentations that depend on their names alone.

Nothing here remembers what was drawn before. The order of an epoch is a function of (seed, epoch), the
augmentation of an image a function of (seed, epoch, its key), so training can resume at any batch of any epoch
and go on exactly as if it had never stopped.

A batch is made in three stages, and each augmentation says in which it acts, by its attribute ``stage``:

- "bytes" (so do functions without that attribute): ``augment(images, samples, seed, epoch) -> images`` on uint8, as
  they come from the data set
- "floats": the same on float32, after the images were normalised
- "batch": ``mix(batch, partners, classes, seed, epoch, number) -> Batch``, where ``partners`` are the images that the
  ones of ``batch`` may be mixed with: the i-th of the whole batch and the i-th from its end
"""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from minivit.backend import Array, array_module, device_of, to_device
from minivit.data.dataset import Dataset, on_device_of
from minivit.random import generator

Augmentation = Callable[..., Any]  # as above
STAGES = ("bytes", "floats", "batch")


class Batch(NamedTuple):
    """What one training step gets."""

    images: Array  # (B, C, H, W) float32, normalised
    labels: Array  # (B,) int64; (B, K) float32 where images were mixed
    samples: Array  # (B,) int64, the key of each image's random draws: its index in the data set; see Loader's repeats
    total: int | None = None  # images of the batch on all ranks, where these are the share of one

    def to(self, device: str) -> "Batch":
        """The batch with all its arrays on ``device`` (``"cpu"``, ``"cuda"``, ``"cuda:1"``)."""
        return Batch(*(to_device(array, device) for array in self[:3]), self.total)


class Loader:
    """Batches of a ``Dataset``: shuffled, augmented, normalised, and made ahead in a thread.

    - ``augment``: what is done to the images, in the order in which it is done; see above
    - ``repeats``: each image comes so many times, one copy after the other, and each copy is augmented on its own. An
      epoch has as many images as without, and so sees one in ``repeats`` of the data set (Hoffer et al., CVPR 2020,
      arXiv:1901.09335; Berman et al., 2019, arXiv:1902.05509). Copy c of image i has the key i + c · len(dataset)
    - ``drop_last``: leave out the last batch of an epoch where it is smaller than the others
    - ``prefetch``: how many batches are made ahead while the caller computes; 0 makes each when it is asked for

    Raises ValueError for sizes that give no batch, augmentations out of order, or a ``start`` outside of the epoch.

    >>> images, labels = np.zeros((10, 1, 8, 8), np.uint8), np.arange(10)
    >>> loader = Loader(Dataset("blank", images, labels, list("abcdefghij")), batch_size=4, seed=1)
    >>> len(loader)
    3
    >>> first, second, third = loader.epoch(0)
    >>> first.images.shape, third.images.shape
    ((4, 1, 8, 8), (2, 1, 8, 8))
    >>> [resumed] = loader.epoch(0, start=2)
    >>> resumed.samples.tolist() == third.samples.tolist()
    True
    >>> [copies] = Loader(loader.dataset, batch_size=10, shuffle=False, repeats=4).epoch(0)
    >>> copies.samples.tolist()
    [0, 10, 20, 30, 1, 11, 21, 31, 2, 12]
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        augment: Sequence[Augmentation] = (),
        drop_last: bool = False,
        prefetch: int = 2,
        repeats: int = 1,
    ) -> None:
        if batch_size < 1 or prefetch < 0:
            raise ValueError(f"batch_size must be at least 1 and prefetch at least 0, got {batch_size} and {prefetch}")
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        if len(dataset) < (batch_size if drop_last else 1):
            raise ValueError(
                f"batch_size {batch_size} with drop_last={drop_last} makes no batch of {len(dataset)} images"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.augment = _checked(augment)
        self.repeats = repeats
        self.drop_last = drop_last
        self.prefetch = prefetch
        self.rank, self.ranks = 0, 1
        self.device = device_of(dataset.images)

    def to(self, device: str) -> "Loader":
        """A loader of the same batches that gives them on ``device`` (``"cpu"``, ``"cuda"``, ``"cuda:1"``).

        The data set stays where it is. From one on the host, a batch is drawn and augmented there, travels as bytes, a
        quarter of what floats take, and is normalised, erased and mixed on the GPU. Of a set that lies on a GPU
        (``Dataset.to``), batches are made there. What happens to an image is the same everywhere.
        """
        moved = copy.copy(self)
        moved.device = device
        return moved

    def shard(self, rank: int, ranks: int) -> "Loader":
        """A loader of the same batches that makes one share of each: the ``rank``-th of ``ranks`` nearly equal parts.

        A last batch of fewer images than ranks leaves some of them an empty share.

        >>> loader = Loader(Dataset("blank", np.zeros((5, 1, 8, 8), np.uint8), np.zeros(5, int), ["a"]), batch_size=5)
        >>> [len(loader.shard(rank, 2).batch(0, 0).samples) for rank in range(2)]
        [2, 3]
        """
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must lie in 0 … {ranks - 1}, got {rank}")
        part = copy.copy(self)
        part.rank, part.ranks = rank, ranks
        return part

    def __len__(self) -> int:
        """Batches in an epoch."""
        return (len(self.dataset) + (0 if self.drop_last else self.batch_size - 1)) // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The keys of the images of this epoch, in the order in which it visits them."""
        n = len(self.dataset)
        images = generator(self.seed, "order", epoch).permutation(n) if self.shuffle else np.arange(n)
        copies = images[:, None] + n * np.arange(self.repeats)  # (n, repeats)
        return copies.reshape(-1)[:n]

    def batch(self, epoch: int, number: int) -> Batch:
        """Batch ``number`` of an epoch."""
        return self._make(self.order(epoch), epoch, number)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number ``start`` on. Leaving the loop early ends the thread."""
        if not 0 <= start <= len(self):
            raise ValueError(f"start must be a batch number in 0 … {len(self)}, got {start}")
        make, numbers = partial(self._make, self.order(epoch), epoch), range(start, len(self))
        return _ahead(make, numbers, self.prefetch) if self.prefetch else map(make, numbers)

    def _make(self, order: np.ndarray, epoch: int, number: int) -> Batch:
        samples = order[number * self.batch_size : (number + 1) * self.batch_size]
        total = len(samples)
        own = slice(self.rank * total // self.ranks, (self.rank + 1) * total // self.ranks)
        mixes = self._in_stage("batch")
        batch = self._mixed(*mixes, samples, own, epoch, number) if mixes else self._augmented(samples[own], epoch)
        batch = batch._replace(total=total).to(self.device)
        if self.prefetch and device_of(batch.images) != "cpu":  # this thread waits, so that no other has to
            with on_device_of(batch.images):
                array_module(batch.images).cuda.get_current_stream().synchronize()
        return batch

    def _augmented(self, samples: np.ndarray, epoch: int) -> Batch:
        """The images of these ``samples`` on the loader's device, before they are mixed."""
        with on_device_of(self.dataset.images):
            at = array_module(self.dataset.images).asarray(samples % len(self.dataset))
            images, labels = self.dataset.images[at], self.dataset.labels[at]
            for augment in self._in_stage("bytes"):
                images = augment(images, samples, self.seed, epoch)
        images, labels = to_device(images, self.device), to_device(labels, self.device)
        with on_device_of(images):
            images = self.dataset.normalise(images)
            for augment in self._in_stage("floats"):
                images = augment(images, samples, self.seed, epoch)
        return Batch(images, labels, samples)

    def _mixed(self, mix: Augmentation, samples: np.ndarray, own: slice, epoch: int, number: int) -> Batch:
        """The images at the places ``own`` of a whole batch of ``samples``, each mixed with its partner.

        The partners of places a … b from the start are those from b … a from the end; another rank may own them, but
        an image is the same whoever makes it.
        """
        partners = slice(len(samples) - own.stop, len(samples) - own.start)
        needed = np.zeros(len(samples), bool)
        needed[own] = needed[partners] = True
        made = self._augmented(samples[needed], epoch)

        def part(places: slice, step: int) -> Batch:
            start, count = int(needed[: places.start].sum()), places.stop - places.start
            return Batch(*(array[start : start + count][::step] for array in made[:3]))

        with on_device_of(made.images):
            return mix(part(own, 1), part(partners, -1), len(self.dataset.classes), self.seed, epoch, number)

    def _in_stage(self, stage: str) -> list[Augmentation]:
        return [augment for augment in self.augment if _stage(augment) == stage]


def _stage(augment: Augmentation) -> str:
    return getattr(augment, "stage", STAGES[0])


def _checked(augment: Sequence[Augmentation]) -> tuple[Augmentation, ...]:
    """The augmentations, if they are in the order of their stages and at most one mixes."""
    for each in augment:
        if _stage(each) not in STAGES:
            raise ValueError(f"the stage of an augmentation must be one of {', '.join(STAGES)}, got {_stage(each)!r}")
    for before, after in pairwise(augment):
        first, second = _stage(before), _stage(after)
        if STAGES.index(first) > STAGES.index(second):
            raise ValueError(f"{after} acts on {second} and has to come before {before}, which acts on {first}")
        if first == second == "batch":
            raise ValueError(f"a batch is mixed once, but augment has {before} and {after}")
    return tuple(augment)


def _ahead(make: Callable[[int], Batch], numbers: range, depth: int) -> Iterator[Batch]:
    """``make(number)`` for each number, computed in one thread up to ``depth`` results before they are needed.

    An exception of the thread is raised here, where its result was due.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
    try:
        pending = deque(pool.submit(make, number) for number in numbers[:depth])
        for number in numbers:
            batch = pending.popleft().result()
            if number + depth in numbers:
                pending.append(pool.submit(make, number + depth))
            yield batch
    finally:  # at the end, after an exception, and where the caller stops asking
        pool.shutdown(cancel_futures=True)
