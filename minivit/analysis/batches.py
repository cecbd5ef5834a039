"""Batches of images for an analysis, one after another, on the device of the model that is looked at."""

from collections.abc import Iterable, Iterator

from tqdm import tqdm

from minivit.data import Batch, Loader
from minivit.nn import Module, check_device


def each_batch(model: Module, batches: Loader | Iterable[Batch], what: str, progress: bool = True) -> Iterator[Batch]:
    """The batches of a Loader (its epoch 0, moved to the model's device), or given ones, with a progress bar ``what``.

    The bar is shown on a terminal only. Raises ValueError for no images, TypeError for a batch on another device.

    >>> from minivit.nn import Linear
    >>> batch = Batch(np.eye(2, dtype=np.float32), np.array([0, 1]), np.arange(2))
    >>> [len(batch.images) for batch in each_batch(Linear(2, 2), [batch, batch], "looking")]
    [2, 2]
    """
    stream = batches.to(model.device).epoch(0) if isinstance(batches, Loader) else batches
    total = len(batches) if hasattr(batches, "__len__") else None
    count = 0
    for batch in tqdm(stream, desc=what, total=total, leave=False, disable=None if progress else True):
        check_device(model, images=batch.images, labels=batch.labels)
        count += len(batch.images)
        yield batch
    if not count:
        raise ValueError(f"there is nothing to look at ({what}): no images were given")
