"""Which patches a network does not see, so that it has to guess them.

Every kind of mask is a ranking. Each patch gets a number, called its noise; of each image the patches of the lowest
noise stay, and all others are masked:

    kind      the noise of a patch                                            what is masked
    random    uniform in [0, 1)                                               patches here and there
    block     minus its distance from a random point of the image             one square around that point
    grid      its place in Bayer's order, in which a fine grid fills up       all but a coarser grid, the same always
    (a mask)  1 where it is masked, 0 elsewhere                               what the mask says

(He et al., 2021, arXiv:2111.06377, compare the first three in section 4.1: random masks gave the best features. Their
blocks are BEiT's, several in an image; here it is one.) One function then does the rest:

    noise         [.7 .1 .9 .3]    argsort ──▶ ids_shuffle [1 3 0 2], of which the first ``keep`` are ids_keep [1 3]
    ids_restore   [ 2  0  3  1]    the place of each patch in ids_shuffle, its rank: the inverse permutation
    mask          [ 1  0  1  0]    1 where the rank is ``keep`` or more

All images keep equally many patches. So the visible tokens are an array (B, keep, D); and a mean over the masked
patches of a batch is a mean over images of the means over theirs, which lets a batch be cut anywhere.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np

from minivit import ops
from minivit.autograd import Tensor
from minivit.backend import Array, to_device
from minivit.random import layer_uniform

Grid = tuple[int, int]


class Masking(NamedTuple):
    """Which of N patches are visible, for each of B images: all arrays lie where the noise lay."""

    ids_keep: Array  # (B, keep) integers, the visible patches, those of the lowest noise first
    ids_restore: Array  # (B, N) integers: patch n is number ids_restore[n] when visible ones come first
    mask: Array  # (B, N) float32: 1 masked, 0 visible


def draw_masking(
    batch: int,
    grid: Grid,
    mask_ratio: float = 0.75,
    mask_kind: str = "random",
    noise: Array | None = None,
    mask: Array | None = None,
    original_rounding: bool = False,
    xp: ModuleType = np,
) -> Masking:
    """Mask patches of ``batch`` images, cut into a ``grid`` of (rows, columns): a share ``mask_ratio`` of each.

    ``mask_kind`` is "random", "block" or "grid". Draws belong to the samples that ``minivit.random.sampling``
    announces: a mask depends on (seed, step, sample), and on nothing else. ``noise`` (B, N) takes the place of what is
    drawn, and ``mask`` (B, N), of 0 and 1, decides everything; both may lie on the host. ``original_rounding``: see
    ``num_kept``. ``xp`` is the array module that computes.

    Raises ValueError for a ratio that leaves nothing to guess, another kind, noise and mask of another shape or given
    both, and a mask that is not of 0 and 1, equally many 1 in each row and some of either. (So a mask on a GPU is
    waited for.)

    >>> draw_masking(2, (4, 4)).mask.sum(axis=1)
    array([12., 12.], dtype=float32)
    >>> draw_masking(1, (4, 4), mask_kind="grid").mask.reshape(4, 4)
    array([[0., 1., 0., 1.],
           [1., 1., 1., 1.],
           [0., 1., 0., 1.],
           [1., 1., 1., 1.]], dtype=float32)
    >>> draw_masking(1, (1, 4), mask=np.array([[1, 0, 0, 1]])).ids_keep
    array([[1, 2]])
    """
    shape = batch, math.prod(grid)
    if mask_kind not in KINDS:
        raise ValueError(f"mask_kind must be one of {', '.join(KINDS)}, got {mask_kind!r}")
    if noise is not None and mask is not None:
        raise ValueError("noise and mask were both given: a mask leaves nothing to rank, so give one of them")
    for name, given in (("noise", noise), ("mask", mask)):
        if given is not None and given.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, a number for each patch, got {given.shape}")
    if mask is not None:
        return keep_lowest(xp.asarray(mask).astype(xp.float32), _visible_in(mask))
    keep = num_kept(shape[1], mask_ratio, original_rounding)
    return keep_lowest(KINDS[mask_kind](batch, grid, xp) if noise is None else xp.asarray(noise), keep)


def keep_lowest(noise: Array, keep: int) -> Masking:
    """Of each row of ``noise`` (B, N) the ``keep`` lowest stay visible; of equal ones those that come first.

    >>> masking = keep_lowest(np.array([[0.7, 0.1, 0.9, 0.3]]), keep=2)
    >>> masking.ids_keep, masking.ids_restore, masking.mask
    (array([[1, 3]]), array([[2, 0, 3, 1]]), array([[1., 0., 1., 0.]], dtype=float32))
    """
    ids_shuffle = noise.argsort(axis=1, kind="stable")
    ids_restore = ids_shuffle.argsort(axis=1, kind="stable")  # what sorts a permutation is its inverse
    return Masking(ids_shuffle[:, :keep], ids_restore, (ids_restore >= keep).astype("float32"))


def num_kept(num_patches: int, mask_ratio: float, original_rounding: bool = False) -> int:
    """How many of L patches stay visible at a ratio r: L − round(L r), but at least one.

    facebookresearch/mae has ``int(L * (1 - r))``, which ``original_rounding`` gives (and at least one here too). It
    rounds down, and rounding errors with it: of 50 patches at r = 0.9 it keeps 4.
    Raises ValueError for a ratio outside (0, 1), or one that masks no patch: the loss is a mean over the masked ones.

    >>> num_kept(196, 0.75), num_kept(50, 0.9), num_kept(50, 0.9, original_rounding=True)
    (49, 5, 4)
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}")
    keep = int(num_patches * (1 - mask_ratio)) if original_rounding else num_patches - round(num_patches * mask_ratio)
    keep = max(keep, 1)
    if keep == num_patches:
        raise ValueError(
            f"mask_ratio {mask_ratio} masks none of {num_patches} patches, but the loss is a mean over masked ones"
        )
    return keep


def masked_mean(losses: Tensor, mask: Array) -> Tensor:
    """Σ ℓ · mask / Σ mask for the loss of each patch, (B, N): visible patches do not count.

    >>> masked_mean(Tensor([[1.0, 5.0, 3.0]]), np.array([[1, 0, 1]])).item()
    2.0
    """
    weights = mask.astype(losses.dtype)
    return ops.scale(losses, weights / weights.sum()).sum()


def _visible_in(mask: Array) -> int:
    """How many patches a given mask leaves visible."""
    mask = to_device(mask, "cpu")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask must be 0 where a patch is visible and 1 where it is masked, and nothing else")
    counts = mask.sum(axis=1).astype(int)
    if (counts != counts[0]).any():
        raise ValueError(f"mask must mask equally many patches of each image, got {counts.min()} to {counts.max()}")
    if not 0 < counts[0] < mask.shape[1]:
        raise ValueError(f"mask must leave some patches visible and mask some, got {counts[0]} of {mask.shape[1]}")
    return mask.shape[1] - int(counts[0])


# --- kinds of masks: (batch, grid, array module) → noise (batch, N) in float32 --------------------------------------


def _random(batch: int, grid: Grid, xp: ModuleType) -> Array:
    return layer_uniform(batch, (math.prod(grid),), xp)


def _block(batch: int, grid: Grid, xp: ModuleType) -> Array:
    """The larger of |Δrow| and |Δcolumn|: places of one distance are a square, which the image's edge may cut."""
    centre = layer_uniform(batch, (2, 1), xp)
    rows, columns = (abs(xp.arange(n, dtype=xp.float32) + 0.5 - n * centre[:, axis]) for axis, n in enumerate(grid))
    return -xp.maximum(rows[:, :, None], columns[:, None, :]).reshape(batch, -1)


def _grid(batch: int, grid: Grid, xp: ModuleType) -> Array:
    """The order of ordered dithering (Bayer, 1973): a quarter of all places is every other row and column, and so on.

    Four copies of the order of an n × n square, side by side, make that of a 2n × 2n one. They take turns: upper left,
    lower right, upper right, lower left.
    """
    order = xp.zeros((1, 1), dtype=xp.float32)
    while len(order) < max(grid):
        upper = xp.concatenate([4 * order, 4 * order + 2], axis=1)
        lower = xp.concatenate([4 * order + 3, 4 * order + 1], axis=1)
        order = xp.concatenate([upper, lower])
    return xp.tile(order[: grid[0], : grid[1]].reshape(1, -1), (batch, 1))


KINDS: dict[str, Callable[[int, Grid, ModuleType], Array]] = {"random": _random, "block": _block, "grid": _grid}
