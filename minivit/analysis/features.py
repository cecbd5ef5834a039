"""Features: what the layers of a network make of images, read by name in one pass, their code untouched.

Of each layer one of three things is read, its ``pool``:

    tokens   what it gives, as it is: (B, N, D) of a Transformer, (B, C, H, W) of a CNN
    class    the class token, (B, D)
    mean     the mean over patch tokens, (B, D), not over those in front of them; or over the places of a map, (B, C)

A layer that gives one vector for each image, (B, D), has nothing to pool: it is read as it is, whatever is asked for.
Features are float32, on the host. What layers are called, and which there are, says ``models/layers.py``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from minivit.analysis.batches import each_batch
from minivit.autograd import Tensor
from minivit.backend import Array, to_device
from minivit.data import Batch, Loader
from minivit.models.layers import find_layers, layers_of, observe_layers
from minivit.nn import Module, check_device, evaluating, on_device_of

POOLS = ("tokens", "class", "mean")


def read_batch(
    model: Module, images: Array, layers: Sequence[str], pool: str | Mapping[str, str] = "tokens",
    then: Callable[[str, np.ndarray], Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What each of ``layers`` makes of images (B, C, H, W): {layer: features}, all from one pass in evaluation mode.

    ``pool`` is one for all layers, or a dict with one for each. With ``then`` the result is {layer: then(layer,
    features)}, computed as soon as a layer has run, so that the features of one layer only are held at a time.

    Raises ValueError for a layer that is not there, was not run, or gives no array with an entry for each image; for a
    class token where there is none; TypeError for images on another device than the model.

    >>> from minivit.models import create_model
    >>> model, images = create_model("vit_nano_patch7_28"), np.zeros((2, 1, 28, 28), np.float32)
    >>> read = read_batch(model, images, ["blocks.3", "norm"], {"blocks.3": "tokens", "norm": "class"})
    >>> {layer: features.shape for layer, features in read.items()}
    {'blocks.3': (2, 17, 64), 'norm': (2, 64)}
    """
    pools = _pools(layers, pool)
    read = {}

    def keep(layer: str, x: Any) -> None:
        features = to_device(_pooled(model, layer, x, len(images), pools[layer]), "cpu")
        features = np.ascontiguousarray(features, np.float32)  # a view of one token would keep all of them in memory
        read[layer] = features if then is None else then(layer, features)

    check_device(model, images=images)
    with on_device_of(model), evaluating(model), observe_layers(model, layers, keep):
        _run(model, images)
    return {layer: read[layer] for layer in layers}


def read_features(
    model: Module, batches: Loader | Iterable[Batch], layers: Sequence[str] | None = None,
    pool: str | Mapping[str, str] = "tokens", progress: bool = True,
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """Features of the images of a Loader or of batches, batch after batch: {layer: features}, as of ``read_batch``.

    ``layers`` are by default those of ``layers_of``. The images of a Loader are those of its epoch 0. One batch is in
    memory at a time. Between two of them the model is as it was, in its own mode. Raises what ``read_batch`` raises,
    for wrong names at once, and ValueError for no images.

    >>> from minivit.models import create_model
    >>> batch = Batch(np.ones((2, 1, 28, 28), np.float32), np.array([0, 1]), np.arange(2))
    >>> for read in read_features(create_model("resnet8", in_chans=1), [batch, batch]):
    ...     print(read["layer2.0"].shape, read["pooled"].shape)
    (2, 32, 14, 14) (2, 64)
    (2, 32, 14, 14) (2, 64)
    """
    layers = check_layers(model, layers, pool)
    return (read_batch(model, batch.images, layers, pool) for batch in each_batch(model, batches, "features", progress))


class Collected(NamedTuple):
    """The features of n images, (n, …) for each layer, and their labels (n,)."""

    features: dict[str, np.ndarray]
    labels: np.ndarray


def collect_features(
    model: Module, batches: Loader | Iterable[Batch], layers: Sequence[str] | None = None,
    pool: str | Mapping[str, str] = "mean", progress: bool = True,
) -> Collected:  # fmt: skip
    """The same as ``read_features`` in one piece, with the labels: for as many images as fit in memory.

    >>> from minivit.models import create_model
    >>> batch = Batch(np.ones((2, 1, 28, 28), np.float32), np.array([0, 1]), np.arange(2))
    >>> found = collect_features(create_model("vit_nano_patch7_28"), [batch, batch], ["blocks.0", "norm"])
    >>> found.features["norm"].shape, found.labels.tolist()
    ((4, 64), [0, 1, 0, 1])
    """
    layers, read, labels = check_layers(model, layers, pool), [], []
    for batch in each_batch(model, batches, "features", progress):
        read.append(read_batch(model, batch.images, layers, pool))
        labels.append(to_device(batch.labels, "cpu"))
    features = {layer: np.concatenate([one[layer] for one in read]) for layer in layers}
    return Collected(features, np.concatenate(labels))


def check_layers(model: Module, layers: Sequence[str] | None, pool: str | Mapping[str, str]) -> list[str]:
    """``layers``, by default ``layers_of(model)``. Raises ValueError for one that is not there, and for another pool.

    >>> from minivit.models import create_model
    >>> check_layers(create_model("resnet8"), None, "mean")
    ['embedding', 'layer1.0', 'layer2.0', 'layer3.0', 'pooled']
    """
    layers = layers_of(model) if layers is None else layers
    find_layers(model, layers)
    _pools(layers, pool)
    return list(layers)


def _run(model: Module, images: Array) -> None:
    """Run all layers for all tokens: the whole model asks its last block for no more tokens than the head reads."""
    if not hasattr(model, "forward_features"):
        model(images)
        return
    last = model.forward_features(images)
    if hasattr(model, "forward_head"):
        model.forward_head(last)


def _pools(layers: Sequence[str], pool: str | Mapping[str, str]) -> dict[str, str]:
    """What is read of each layer."""
    pools = {layer: pool if isinstance(pool, str) else pool.get(layer) for layer in layers}
    for layer, wanted in pools.items():
        if wanted not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {wanted!r} for layer {layer!r}")
    return pools


def _pooled(model: Module, layer: str, x: Any, images: int, pool: str) -> Array:
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) != images:
        what = f"shape {x.shape}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(
            f"layer {layer!r} of {type(model).__name__} gives {what}, which is not an entry for each of {images} images"
        )
    x = x.data
    if pool == "tokens" or x.ndim == 2:
        return x
    # patches come last: what is more than there are patches stands in front of them, class token first
    front = max(0, x.shape[1] - model.patch_embed.num_patches) if x.ndim == 3 and hasattr(model, "patch_embed") else 0
    if pool == "mean":
        return x[:, front:].mean(1) if x.ndim == 3 else x.mean(tuple(range(2, x.ndim)))
    if not front or getattr(model, "cls_token", None) is None:
        raise ValueError(
            f"there is no class token in what layer {layer!r} of {type(model).__name__} gives, of shape {x.shape}: "
            "read its 'mean' or 'tokens'"
        )
    return x[:, 0]
