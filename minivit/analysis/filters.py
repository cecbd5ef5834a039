"""What the first layer of a network looks for: the filters that an image meets, and their principal components.

The patch embedding multiplies each patch with D filters, the rows of its weight, each as large as a patch: an image
(C, P, Q). There are hundreds, and many are mixtures of the same few. Principal components find those: directions, all
at right angles, along which the filters differ most,

    W − mean over the filters = U S Vᵀ,   component k is row k of Vᵀ, its share of the variance s_k² / Σ s².

(Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, arXiv:2010.11929, figure 7, left, shows 28 components of
ViT-L/32.) The first convolution of a ResNet has few filters: there the filters themselves are the picture.
"""

from typing import NamedTuple

import numpy as np

from minivit.nn import Conv2d, Module
from minivit.nn.patch_embed import PatchEmbed


class Components(NamedTuple):
    """The principal components of filters, those that explain most first."""

    images: np.ndarray  # (count, C, P, Q), each of length 1 and at right angles to the others
    shares: np.ndarray  # (count,), of the variance: they sum to 1 where all components are there


def first_filters(model: Module) -> np.ndarray:
    """The filters of a model's first layer, on the host: ``patch_embed.proj``, (D, C, P, Q), or ``conv1``.

    With shifted patches (``embed_layer="spt"``) C counts each channel five times: as it is, and shifted in four ways.
    Raises ValueError for a model that has neither.

    >>> from minivit.models import create_model
    >>> first_filters(create_model("vit_nano_patch7_28")).shape, first_filters(create_model("resnet20")).shape
    ((64, 1, 7, 7), (16, 3, 3, 3))
    """
    embed, convolution = getattr(model, "patch_embed", None), getattr(model, "conv1", None)
    if isinstance(embed, PatchEmbed):
        return embed.proj.weight.numpy()
    if isinstance(convolution, Conv2d):
        return convolution.weight.numpy()
    raise ValueError(f"{type(model).__name__} has neither a patch embedding nor a first convolution, conv1")


def patch_filters(model: Module, count: int = 28) -> Components:
    """The first ``count`` principal components of ``first_filters(model)``, or as many as there are, min(D, C·P·Q).

    A component and its negative are the same; of the two the one whose largest entry in size is positive is given, so
    that the picture is the same every time. Computed in float64. Raises ValueError for a count below 1, and as
    ``first_filters`` does.

    >>> from minivit.models import create_model
    >>> components = patch_filters(create_model("vit_nano_patch7_28"), count=6)
    >>> components.images.shape, components.shares.shape
    ((6, 1, 7, 7), (6,))
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    filters = first_filters(model).astype(np.float64)
    flat = filters.reshape(len(filters), -1)  # (D, C·P·Q)
    _, scales, components = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    largest = np.take_along_axis(components, abs(components).argmax(axis=1, keepdims=True), axis=1)
    components = np.where(largest < 0, -components, components)
    shares = scales**2 / ((scales**2).sum() or 1.0)  # filters that are all zero differ in nothing
    return Components(components[:count].reshape(-1, *filters.shape[1:]), shares[:count])
