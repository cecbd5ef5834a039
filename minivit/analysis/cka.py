"""CKA, centred kernel alignment: do two layers see the same images as alike? (Kornblith et al., "Similarity of Neural
Network Representations Revisited", ICML 2019, arXiv:1905.00414)

A layer makes vectors x_1 … x_n of n images. Those of another layer may be wider, and their axes mean something else; so
not vectors are compared, but what they say of pairs of images, the Gram matrices K_ij = k(x_i, x_j) and L of the other.
How much they agree is HSIC, the Hilbert-Schmidt independence criterion; CKA is its cosine:

    CKA = HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L))

1 for a layer with itself, whatever its scale and however it is rotated; near 0 for layers that have nothing in common.
HSIC is estimated as an inner product of centred matrices:

    biased     K̃_ij = K_ij − k_i − k_j + m                                       HSIC₀ = Σ_ij K̃_ij L̃_ij / (n − 1)²
               with the means k_i of row i and m of all

    unbiased   K̃_ij = K_ij − r_i/(n−2) − r_j/(n−2) + s/((n−1)(n−2)),  K̃_ii = 0   HSIC₁ = Σ_ij K̃_ij L̃_ij / (n(n−3))
               with the sums r_i of row i and s of all, both without the diagonal

The diagonal, an image with itself, makes the difference. Where vectors are wide and images few, ‖x_i‖² is much larger
than all x_i·x_j; so K is nearly a diagonal matrix, for one layer as for any other, and HSIC₀ finds all layers alike:

    >>> x, y = np.random.default_rng(0).standard_normal((2, 32, 512))     # that have nothing in common
    >>> round(features_cka(x, y, unbiased=False), 2), round(abs(features_cka(x, y)), 1)
    (0.94, 0.0)

Each K̃ has rows of sum 0, so one of the two centrings may be left out of the product, Σ_ij K_ij L̃_ij. Written out, over
i ≠ j, that is the estimator of Song et al., "Feature Selection via Dependence Maximization", 2012 (JMLR 13):

    n(n−3) HSIC₁ = Σ_ij K_ij L_ij − 2/(n−2) Σ_i r_i(K) r_i(L) + s(K) s(L)/((n−1)(n−2))

As its mean does not depend on n, HSIC₁ of many small batches can be averaged in place of that of all images at once
(Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", 2021, arXiv:2010.15327, eq. 2 and 3): memory is
for one batch. HSIC₀ is as wrong after many batches as after one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minivit.analysis.batches import each_batch
from minivit.analysis.features import check_layers, read_batch
from minivit.backend import to_device
from minivit.data import Batch, Loader
from minivit.nn import Module

KERNELS = ("linear", "rbf")
COLUMNS = 8192  # so many features are turned into float64 at a time


class CKAResult(NamedTuple):
    """``matrix[i, j]`` is the CKA of ``layers_a[i]`` and ``layers_b[j]``, from so many ``images``."""

    matrix: np.ndarray  # (layers of a, layers of b) float64
    layers_a: list[str]
    layers_b: list[str]
    images: int


def cka(
    model_a: Module, model_b: Module | None, batches: Loader | Iterable[Batch],
    layers_a: Sequence[str] | None = None, layers_b: Sequence[str] | None = None,
    kernel: str = "linear", unbiased: bool = True, pool: str | Mapping[str, str] = "tokens", bandwidth: float = 1.0,
    progress: bool = True,
) -> CKAResult:  # fmt: skip
    """CKA of every layer of one network with every layer of another, which are shown the same images; in float64.

    - ``model_b``: None for layers of ``model_a`` among themselves. It may lie on another device
    - ``batches``: a Loader (its epoch 0) or batches, of 4 images or more; a few hundred in each say more than as many
      images in smaller ones. Images should come in random order, not class by class. What is smaller than the first
      batch is left out, as the last one of a Loader may be
    - ``layers_a``, ``layers_b``: by default all of ``layers_of``
    - ``kernel``, ``bandwidth``: see ``gram``; ``unbiased``: see above; ``pool``: see ``features.py``. Tokens and maps
      are one long vector each

    A layer that gives the same for all images, as the class token before the first block is, says nothing of pairs:
    HSIC(K, K) = 0, and its CKA is NaN. An unbiased CKA may be a little below 0.

    Raises ValueError for layers that are not there or are not finite, for wrong settings, and for batches of fewer than
    4 images, or that grow.

    >>> from minivit.models import create_model
    >>> rng, models = np.random.default_rng(0), ("vit_nano_patch8_32", "resnet8")
    >>> batches = [Batch(rng.normal(size=(8, 3, 32, 32)).astype(np.float32), np.arange(8), np.arange(8)) for _ in "ab"]
    >>> found = cka(*map(create_model, models), batches)
    >>> found.matrix.shape, found.layers_a[-1], found.layers_b[1], found.images
    ((6, 5), 'norm', 'layer1.0', 16)
    >>> alike = cka(create_model("resnet8"), None, batches).matrix
    >>> bool(np.allclose(np.diag(alike), 1))
    True
    """
    layers_a = check_layers(model_a, layers_a, pool)
    if model_b is None:
        layers_b = layers_a if layers_b is None else check_layers(model_a, layers_b, pool)
    else:
        layers_b = check_layers(model_b, layers_b, pool)
    _check_kernel(kernel, bandwidth)

    def grams(model: Module, images: np.ndarray, layers: Sequence[str]) -> dict[str, np.ndarray]:
        return read_batch(model, images, layers, pool, then=compare)

    def compare(layer: str, features: np.ndarray) -> np.ndarray:
        if not np.isfinite(features).all():
            raise ValueError(f"layer {layer!r} gave NaN or infinity, of which there is no CKA")
        return gram(features, kernel, bandwidth)

    sums, size, images = HSICSums(unbiased), None, 0
    for batch in each_batch(model_a, batches, "CKA", progress):
        count = len(batch.images)
        size = size or count
        if count > size:
            raise ValueError(
                f"batches must be of one size, only the last may be smaller, got {size}, then {count} images"
            )
        if count < size:
            continue
        if model_b is None:
            read_a = read_b = grams(model_a, batch.images, [*layers_a, *layers_b])
        else:
            read_a = grams(model_a, batch.images, layers_a)
            read_b = grams(model_b, to_device(batch.images, model_b.device), layers_b)
        sums.add([read_a[layer] for layer in layers_a], [read_b[layer] for layer in layers_b])
        images += count
    return CKAResult(sums.cka(), layers_a, layers_b, images)


class HSICSums:
    """HSIC of every layer of one network with every layer of another, and of each with itself, summed over batches.

    It holds layers × layers numbers, however many images there are.

    >>> rng, sums = np.random.default_rng(0), HSICSums()
    >>> for _ in range(3):
    ...     x = rng.standard_normal((10, 4))
    ...     sums.add([gram(x)], [gram(2 * x), gram(rng.standard_normal((10, 4)))])
    >>> sums.cka().shape, round(float(sums.cka()[0, 0]), 6)
    ((1, 2), 1.0)
    """

    def __init__(self, unbiased: bool = True):
        self.unbiased = unbiased
        self.ab, self.aa, self.bb = 0.0, 0.0, 0.0  # (layers of a, layers of b), (layers of a,), (layers of b,)

    def add(self, grams_a: Sequence[np.ndarray], grams_b: Sequence[np.ndarray]) -> None:
        """The Gram matrices (n, n) of one batch, for each layer of a and each of b."""
        a, b = (np.stack([centred(k, self.unbiased).ravel() for k in grams]) for grams in (grams_a, grams_b))
        count = _count(len(grams_a[0]), self.unbiased)
        self.ab += a @ b.T / count
        self.aa += (a * a).sum(1) / count
        self.bb += (b * b).sum(1) / count

    def cka(self) -> np.ndarray:
        """(layers of a, layers of b), NaN for a layer that was constant in all batches."""
        with np.errstate(invalid="ignore"):  # 0 / 0
            return self.ab / np.sqrt(self.aa)[:, None] / np.sqrt(self.bb)


def features_cka(
    x: np.ndarray, y: np.ndarray, kernel: str = "linear", unbiased: bool = True, bandwidth: float = 1.0
) -> float:
    """CKA of two arrays of features (n, …) of the same n images.

    >>> x = np.random.default_rng(0).standard_normal((10, 4))
    >>> round(features_cka(x, 3 * x[:, ::-1]), 6)
    1.0
    """
    if len(x) != len(y):
        raise ValueError(f"x and y must be features of the same images, got {len(x)} and {len(y)}")
    sums = HSICSums(unbiased)
    sums.add([gram(x, kernel, bandwidth)], [gram(y, kernel, bandwidth)])
    return float(sums.cka()[0, 0])


def gram(features: np.ndarray, kernel: str = "linear", bandwidth: float = 1.0) -> np.ndarray:
    """The Gram matrix K (n, n) of features (n, …), which are vectors x_1 … x_n when written in one row: float64.

        linear   k(x, x′) = (x − x̄)·(x′ − x̄)
        rbf      k(x, x′) = exp(−‖x − x′‖² / 2σ²) − 1,  σ² = ``bandwidth``² · the median of ‖x_i − x_j‖² over pairs

    x̄ and 1 make no difference to HSIC, which does not see what is added to a row and a column; with them K is exactly 0
    where all x are the same. A feature that varies by less than a millionth of its mean counts as constant: in float32
    that is rounding. With σ measured so, the scale of the features makes no difference (Kornblith et al., section 3).

    Raises ValueError for another kernel, and for a ``bandwidth`` that is not above 0.

    >>> gram(np.array([[1.0], [2.0], [6.0]]))
    array([[ 4.,  2., -6.],
           [ 2.,  1., -3.],
           [-6., -3.,  9.]])
    """
    _check_kernel(kernel, bandwidth)
    n = len(features)
    x, k = features.reshape(n, -1), np.zeros((n, n))
    for start in range(0, x.shape[1], COLUMNS):
        part = x[:, start : start + COLUMNS].astype(np.float64)
        mean = part.mean(0)
        part -= mean
        part[:, part.std(0) <= 1e-6 * abs(mean)] = 0
        k += part @ part.T
    if kernel == "linear":
        return k
    lengths = np.diag(k)
    squares = np.maximum(lengths[:, None] + lengths - 2 * k, 0)  # ‖x_i − x_j‖²; rounding may make it negative
    pairs = squares[~np.eye(n, dtype=bool)]
    typical = max(np.median(pairs), 1e-9 * pairs.max()) or 1.0  # most pairs, or all, may be the same
    return np.expm1(-squares / (2 * bandwidth**2 * typical))


def hsic(k: np.ndarray, l: np.ndarray, unbiased: bool = True) -> float:
    """HSIC₁ or HSIC₀ of two Gram matrices (n, n): see above. Raises ValueError for n < 4 and shapes that differ.

    >>> k = gram(np.array([[-1.0], [-1.0], [1.0], [1.0]]))
    >>> round(hsic(k, k), 3), round(hsic(k, k, unbiased=False), 3)
    (2.667, 1.778)
    """
    if k.shape != l.shape:
        raise ValueError(f"k and l must be Gram matrices of the same images, got shapes {k.shape} and {l.shape}")
    return float((centred(k, unbiased) * centred(l, unbiased)).sum() / _count(len(k), unbiased))


def centred(k: np.ndarray, unbiased: bool = True) -> np.ndarray:
    """K̃ of a Gram matrix K (n, n): see above. All its rows sum to 0. Raises ValueError for fewer than 4 images.

    >>> centred(np.diag([1.0, 2.0, 3.0, 4.0]))  # nothing is left without the diagonal
    array([[0., 0., 0., 0.],
           [0., 0., 0., 0.],
           [0., 0., 0., 0.],
           [0., 0., 0., 0.]])
    """
    n = len(k)
    if n < 4:
        raise ValueError(f"HSIC needs 4 images or more in each batch, got {n}")
    if not unbiased:
        rows = k.mean(1)
        return k - rows[:, None] - rows + rows.mean()
    off_diagonal = 1 - np.eye(n)
    rows = (k * off_diagonal).sum(1) / (n - 2)
    return (k - rows[:, None] - rows + rows.sum() / (n - 1)) * off_diagonal


def _count(n: int, unbiased: bool) -> int:
    """What the sum over K̃ L̃ is divided by."""
    return n * (n - 3) if unbiased else (n - 1) ** 2


def _check_kernel(kernel: str, bandwidth: float) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be above 0, got {bandwidth}")
