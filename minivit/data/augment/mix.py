"""Mixup and CutMix: two images in one, and a label that says how much there is of each."""

from dataclasses import dataclass

import numpy as np

from minivit.backend import Array, array_module
from minivit.data.augment.ops import draw
from minivit.data.loader import Batch

MODES = ("batch", "pair", "elem")


@dataclass(frozen=True)
class Mix:
    """Mix each image x with a partner x′ by λ, and the labels alike: y = λ t + (1 − λ) t′.

    - mixup: λ x + (1 − λ) x′ with λ ~ Beta(α, α), α = ``mixup_alpha`` (Zhang et al., ICLR 2018, arXiv:1710.09412)
    - CutMix: x with a box of x′ in it. The box has √(1 − λ) of each side, λ ~ Beta(``cutmix_alpha``, the same), and its
      centre anywhere; λ is then the share of x that is left, after the box was cut off at the border (Yun et al., ICCV
      2019, arXiv:1905.04899)

    An alpha of 0 turns its kind off; of two, CutMix is chosen with probability ``switch_prob``. Either happens with
    probability ``prob``. The partner of the i-th image of a batch is the i-th from its end; the one in the middle of an
    odd batch has itself. ``mode``: one draw for a whole "batch", for the two of a "pair", or for each image ("elem"),
    keyed by the number of the batch, the smaller key of the two, or the image's own.

    t has 1 − s + s/K at the label, and s/K at the other K − 1 classes, s = ``label_smoothing``. The result is a
    distribution, float32 (B, K), for a loss that does not smooth again. As in timm.

    Raises ValueError for probabilities outside 0 … 1, a negative alpha and another mode.

    >>> images = np.array([0, 1], np.float32).reshape(2, 1, 1, 1)
    >>> batch = Batch(images, np.array([0, 1]), np.array([5, 6]))
    >>> mixed = Mix(cutmix_alpha=0)(batch, Batch(*(x[::-1] for x in batch[:3])), classes=2, seed=0, epoch=0, number=0)
    >>> mixed.images.ravel().round(2), mixed.labels.round(2)
    (array([0.74, 0.26], dtype=float32), array([[0.29, 0.71],
           [0.71, 0.29]], dtype=float32))
    """

    stage = "batch"

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: str = "batch"
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        for name in ("prob", "switch_prob", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")

    def __call__(self, batch: Batch, partners: Batch, classes: int, seed: int, epoch: int, number: int) -> Batch:
        """``batch`` mixed with the images at the same places of ``partners``. Their ``samples`` are NumPy arrays."""
        match self.mode:
            case "batch":
                counters = np.array([number])
            case "pair":
                counters = np.minimum(batch.samples, partners.samples)
            case "elem":
                counters = batch.samples
        share, rows, columns = self.draw(counters, batch.images.shape[2:], seed, epoch)
        lam = share * (1 - rows.mean(1) * columns.mean(1))  # (n,), where n is 1 or B

        xp = array_module(batch.images)
        t, other = (soft_labels(x.labels, classes, self.label_smoothing) for x in (batch, partners))
        weights = xp.asarray(lam, xp.float32)[:, None]
        batch = batch._replace(labels=weights * t + (1 - weights) * other)
        if (lam == 1).all():
            return batch
        inside = xp.asarray(rows)[:, None, :, None] & xp.asarray(columns)[:, None, None, :]
        weights = xp.asarray(share, xp.float32)[:, None, None, None] * ~inside  # (n, 1, H, W)
        return batch._replace(images=weights * batch.images + (1 - weights) * partners.images)

    def draw(
        self, counters: np.ndarray, size: tuple[int, int], seed: int, epoch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each of n ``counters``: x's share (n,) outside of a box of x′, and the box's rows (n, H), columns (n, W).

        The share is 1 in CutMix, and mixup's boxes are empty.
        """
        happens, kind, u, v, *centre = draw(counters, (6,), seed, "mix", epoch).astype(np.float64).T
        either = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        cut = kind < (self.switch_prob if either else self.cutmix_alpha > 0)
        lam = np.where(cut, symmetric_beta(u, v, self.cutmix_alpha), symmetric_beta(u, v, self.mixup_alpha))
        lam[happens >= (self.prob if self.mixup_alpha or self.cutmix_alpha else 0)] = 1
        sides = np.where(cut, np.sqrt(1 - lam), 0)
        rows, columns = (_stretch(place, sides, pixels) for place, pixels in zip(centre, size))
        return np.where(cut, 1, lam), rows, columns


def _stretch(centre: np.ndarray, side: np.ndarray, pixels: int) -> np.ndarray:
    """(n, pixels): which of so many pixels lie within a stretch of that ``side`` around ``centre``, both in 0 … 1."""
    length = np.floor(side * pixels)[:, None]
    start = np.floor(centre * pixels)[:, None] - length // 2
    place = np.arange(pixels)
    return (start <= place) & (place < start + length)


def soft_labels(labels: Array, classes: int, smoothing: float) -> Array:
    """Labels (B,) as distributions, float32 (B, K): 1 − s + s/K at the label, s/K elsewhere, s the ``smoothing``.

    >>> soft_labels(np.array([1]), classes=2, smoothing=0.5)
    array([[0.25, 0.75]], dtype=float32)
    """
    xp = array_module(labels)
    one_hot = (labels[:, None] == xp.arange(classes)).astype(xp.float32)
    return one_hot * (1 - smoothing) + smoothing / classes


def symmetric_beta(u: np.ndarray, v: np.ndarray, alpha: float) -> np.ndarray:
    """Beta(α, α) from numbers u and v that are uniform in [0, 1); all ½ where α is 0.

    r = √(U^(−1/α) − 1) cos 2πv, U = 1 − u, times √(2α), is Student's t with 2α degrees of freedom (Bailey, Mathematics
    of Computation 1994), so that ½ (1 + r/√(1 + r²)) is Beta(α, α). U^(1/α) may be tiny: here it is no denominator.

    >>> symmetric_beta(np.array([0.0, 0.5, 0.5]), np.array([0.1, 0.25, 0.0]), alpha=1).round(3)
    array([0.5  , 0.5  , 0.854])
    """
    power = (1 - u) ** (1 / alpha) if alpha else np.ones_like(u)
    r = np.sqrt(1 - power) * np.cos(2 * np.pi * v)
    return (1 + r / np.sqrt(power + r * r)) / 2
