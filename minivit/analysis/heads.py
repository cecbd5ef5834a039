"""How alike the heads of a network are, and how they look: measures of their outputs O and attention weights A.

Each function takes one layer, O (B, H, N, d) or A (B, H, N, N), and gives one number for each image, (B,), or for each
image and head, (B, H). So a mean over images does not depend on how they were cut into batches; ``measure_heads`` takes
it, layer by layer.

Rows of A from a softmax sum to 1. Those of rectified attention need not, and may be all zero: *null rows*. Where a
measure needs a distribution, a row is divided by its sum, and null rows are left out; where nothing is left, the
result is NaN.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from minivit.analysis.batches import each_batch
from minivit.backend import to_device
from minivit.data import Batch, Loader
from minivit.diversity import directions
from minivit.nn import Module, evaluating, on_device_of
from minivit.nn.heads import Heads, attention_layers, observe_heads


def similarity(outputs: np.ndarray) -> np.ndarray:
    """Mean cosine of all pairs of different heads, their outputs read as one long vector each: (B, H, N, d) → (B,).

    mean_{i≠j} cos(Oⁱ, Oʲ), in [−1/(H − 1), 1]; computed as ``diversity.mean_cosine`` is. NaN for a single head.

    >>> similarity(np.array([[[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 1.0]]]]))  # two heads agree, and not the third
    array([0.33333333])
    """
    heads = outputs.shape[1]
    u, _ = directions(outputs)
    total = (u.sum(1) ** 2).sum((1, 2)) - (u * u).sum((1, 2, 3))
    return _ratio(total, np.full_like(total, heads * (heads - 1)))


def divergence(weights: np.ndarray) -> np.ndarray:
    """Generalised Jensen-Shannon divergence of the heads' rows, a mean over tokens: (B, H, N, N) → (B,), in nats.

    JS(a¹ … a^H) = S(mean_h a^h) − mean_h S(a^h), with the entropy S(a) = −Σ_m a_m ln a_m: from 0, where all heads look
    alike, to ln H, where no two look at the same token. (Lin, "Divergence measures based on the Shannon entropy", 1991,
    with equal weights.) Of a token's null rows the other heads are compared; a token at which fewer than two
    heads look at anything is left out.

    >>> divergence(np.array([[[[1.0, 0.0]], [[0.0, 1.0]]]])).round(4)  # ln 2
    array([0.6931])
    """
    rows, looking = _distributions(weights)  # (B, H, N, N), (B, H, N)
    count = looking.sum(1)  # (B, N)
    mixture = rows.sum(1) / np.maximum(count, 1)[..., None]
    each = _ratio((_entropy(rows) * looking).sum(1), np.maximum(count, 1))
    return _ratio(((_entropy(mixture) - each) * (count > 1)).sum(1), (count > 1).sum(1))


def sparsity(weights: np.ndarray) -> np.ndarray:
    """Share of attention weights that are exactly zero: (B, H, N, N) → (B, H).

    A softmax gives none, unless weights are too small to be held; LSA gives the diagonal, 1/N.

    >>> sparsity(np.array([[[[1.0, 0.0], [0.5, 0.5]]]]))
    array([[0.25]])
    """
    return (weights == 0).mean((2, 3))


def null_rows(weights: np.ndarray) -> np.ndarray:
    """Share of tokens that look at nothing, rows of zeros: (B, H, N, N) → (B, H).

    >>> null_rows(np.array([[[[0.0, 0.0], [0.5, 0.0]]]]))
    array([[0.5]])
    """
    return (weights == 0).all(3).mean(2)


def entropy(weights: np.ndarray) -> np.ndarray:
    """Mean entropy of rows, −Σ_m a_m ln a_m, in nats: (B, H, N, N) → (B, H).

    From 0, a look at one token, to ln N, the same look at all: e to this power is a number of tokens.

    >>> entropy(np.array([[[[1.0, 0.0], [0.5, 0.5]]]])).round(4)
    array([[0.3466]])
    """
    rows, looking = _distributions(weights)
    return _ratio((_entropy(rows) * looking).sum(2), looking.sum(2))


def attention_distance(weights: np.ndarray, grid_size: tuple[int, int], patch_size: tuple[int, int]) -> np.ndarray:
    """Mean distance from a patch to what it looks at, in pixels: (B, H, N, N) → (B, H).

    Σ_m a_nm ‖p_n − p_m‖ / Σ_m a_nm, a mean over patches n, where p are the centres of patches and m runs over patches
    too: class and register tokens, which come before them, have no place and are left out. (Dosovitskiy et al., 2020,
    figure 7: how far a head looks, as the size of a filter says it of a convolution.) Raises ValueError for fewer
    tokens than patches.

    >>> look_at_the_other = np.array([[[[0.0, 1.0], [1.0, 0.0]]]])
    >>> attention_distance(look_at_the_other, grid_size=(1, 2), patch_size=(8, 4))
    array([[4.]])
    """
    patches = grid_size[0] * grid_size[1]
    if weights.shape[-2] < patches or weights.shape[-1] < patches:
        raise ValueError(f"a grid of {grid_size} has {patches} patches, but the weights are of shape {weights.shape}")
    rows, looking = _distributions(weights[..., -patches:, -patches:])
    centres = np.indices(grid_size).reshape(2, -1).T * np.asarray(patch_size, np.float64)  # (N, 2)
    distance = np.sqrt(((centres[:, None] - centres) ** 2).sum(-1)).astype(weights.dtype)  # (N, N)
    return _ratio((rows * distance).sum((2, 3)), looking.sum(2))


class HeadMeasures(NamedTuple):
    """Means over images. A number for each layer, or for each layer an array (H,), as layers may differ in heads."""

    similarity: np.ndarray  # (layers,)
    divergence: np.ndarray  # (layers,)
    sparsity: list[np.ndarray]
    null_rows: list[np.ndarray]
    entropy: list[np.ndarray]
    distance: list[np.ndarray]  # pixels


def measure_heads(model: Module, batches: Loader | Iterable[Batch], progress: bool = True) -> HeadMeasures:
    """All measures of a Vision Transformer, over the images of a Loader or of batches, in evaluation mode.

    Of a masked autoencoder they are those of the encoder's layers, which see the whole images.

    NaN, as for an image in which a head looks at nothing, takes no part in a mean.

    >>> from minivit.models import create_model
    >>> model = create_model("vit_nano_patch7_28")
    >>> batch = Batch(np.ones((2, 1, 28, 28), np.float32), np.array([0, 1]), np.arange(2))
    >>> measures = measure_heads(model, [batch])
    >>> measures.similarity.shape, len(measures.entropy), measures.entropy[0].shape
    ((4,), 4, (4,))
    """
    grid_size, patch_size = model.patch_embed.grid_size, model.patch_embed.patch_size
    seen: list[list[tuple]] = [[] for _ in attention_layers(model)]

    def look(layer: int, heads: Heads) -> None:
        outputs, weights = (to_device(x.data, "cpu") for x in (heads.outputs, heads.weights))
        seen[layer].append((
            similarity(outputs), divergence(weights), sparsity(weights), null_rows(weights), entropy(weights),
            attention_distance(weights, grid_size, patch_size),
        ))  # fmt: skip

    with on_device_of(model), evaluating(model), observe_heads(model, look, weights=True):
        for batch in each_batch(model, batches, "measuring heads", progress):
            model.forward_features(batch.images)  # the whole model asks its last block for less
    layers = [[_mean(np.concatenate(parts)) for parts in zip(*batches)] for batches in seen if batches]
    alike, apart, *others = zip(*layers)
    return HeadMeasures(np.array(alike), np.array(apart), *map(list, others))


def _distributions(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows divided by their sums, null rows as they are, and which rows are not null."""
    sums = weights.sum(-1, keepdims=True)
    return weights / np.where(sums > 0, sums, 1), sums[..., 0] > 0


def _entropy(rows: np.ndarray) -> np.ndarray:
    return -(rows * np.log(np.where(rows > 0, rows, 1))).sum(-1)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """total / count, NaN where nothing was counted."""
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over images, (B, …), without those of NaN."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0).sum(0, dtype=np.float64), there.sum(0))
