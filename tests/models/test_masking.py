"""Masks: how many patches stay, which, and that it depends on the image and the step alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, gradcheck
from minivit.backend import array_module, to_device
from minivit.models.masking import KINDS, draw_masking, keep_lowest, masked_mean, num_kept
from minivit.random import sampling
from tests.devices import moved, no_waiting
from tests.strategies import arrays, generators

kinds = st.sampled_from(sorted(KINDS))
grids = st.tuples(st.integers(1, 7), st.integers(1, 7)).filter(lambda grid: grid != (1, 1))


@st.composite
def ratios(draw, patches):
    """A ratio that masks so many of the patches, one at least."""
    return draw(st.integers(1, patches - 1)) / patches


# --- how many ------------------------------------------------------------------------------------------------------


@given(st.integers(2, 1000), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_the_share_that_is_masked_is_the_nearest_to_the_ratio(patches, ratio):
    try:
        keep = num_kept(patches, ratio)
    except ValueError:
        assert patches * ratio <= 0.5
        return
    assert 1 <= keep < patches
    assert abs((patches - keep) - patches * ratio) <= 0.5 or keep == 1


@pytest.mark.parametrize(
    ("patches", "ratio", "ours", "originals"),
    [(196, 0.75, 49, 49), (50, 0.9, 5, 4), (10, 0.9, 1, 1), (49, 0.75, 12, 12), (16, 0.7, 5, 4), (64, 0.999, 1, 1)],
)
def test_the_originals_rounding_is_offered(patches, ratio, ours, originals):
    assert num_kept(patches, ratio) == ours
    assert num_kept(patches, ratio, original_rounding=True) == originals == max(1, int(patches * (1 - ratio)))


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, float("nan")])
def test_a_ratio_outside_0_and_1_gives_a_sentence(ratio):
    with pytest.raises(ValueError, match="mask_ratio must lie between 0 and 1, got"):
        num_kept(16, ratio)


@pytest.mark.parametrize(("patches", "ratio", "original"), [(16, 0.01, False), (1, 0.75, False), (4, 1e-17, True)])
def test_a_ratio_that_masks_nothing_gives_a_sentence(patches, ratio, original):
    with pytest.raises(ValueError, match=f"masks none of {patches} patches"):
        num_kept(patches, ratio, original)


# --- which ---------------------------------------------------------------------------------------------------------


@given(kinds, grids, st.integers(1, 4), st.data())
def test_ids_and_mask_tell_the_same(kind, grid, batch, data):
    """ids_keep are the visible patches, ids_restore is a permutation that puts them first, and all is consistent."""
    patches = grid[0] * grid[1]
    ratio = data.draw(ratios(patches))
    ids_keep, ids_restore, mask = draw_masking(batch, grid, ratio, kind)
    keep = num_kept(patches, ratio)
    assert (ids_keep.shape, ids_restore.shape, mask.shape) == ((batch, keep), (batch, patches), (batch, patches))
    assert mask.dtype == np.float32 and ids_keep.dtype.kind == ids_restore.dtype.kind == "i"
    for ids, places, hidden in zip(ids_keep, ids_restore, mask):
        assert sorted(places) == list(range(patches))
        assert set(hidden) == {0, 1} and hidden.sum() == patches - keep
        assert sorted(ids) == list(np.flatnonzero(hidden == 0))
        np.testing.assert_array_equal(places[ids], np.arange(keep))


@given(grids, st.integers(1, 4), generators, st.data())
def test_of_a_given_noise_the_lowest_stay(grid, batch, rng, data):
    patches = grid[0] * grid[1]
    noise = np.stack([rng.permutation(patches) for _ in range(batch)]).astype(np.float32)
    masking = draw_masking(batch, grid, data.draw(ratios(patches)), noise=noise)
    keep = masking.ids_keep.shape[1]
    np.testing.assert_array_equal(masking.ids_restore, noise)
    np.testing.assert_array_equal(masking.mask, noise >= keep)


@given(grids, st.integers(1, 4), generators, st.data())
def test_moving_the_noise_moves_the_mask(grid, batch, rng, data):
    patches = grid[0] * grid[1]
    noise, order = rng.random((batch, patches)), rng.permutation(patches)
    ratio = data.draw(ratios(patches))
    one, other = (draw_masking(batch, grid, ratio, noise=x) for x in (noise, noise[:, order]))
    np.testing.assert_array_equal(other.mask, one.mask[:, order])
    np.testing.assert_array_equal(order[other.ids_keep], one.ids_keep)


@given(st.integers(2, 300), generators)
def test_of_equal_noise_the_first_stay(patches, rng):
    noise = rng.integers(0, 3, patches).astype(np.float32)
    ranked = sorted(range(patches), key=noise.__getitem__)  # Python's sort is stable
    masking = keep_lowest(noise[None], patches // 2)
    np.testing.assert_array_equal(masking.ids_keep[0], ranked[: patches // 2])
    np.testing.assert_array_equal(masking.ids_restore[0], np.argsort(ranked))


@given(grids, st.integers(1, 4), generators, st.data())
def test_a_given_mask_is_the_mask(grid, batch, rng, data):
    patches = grid[0] * grid[1]
    hidden = data.draw(st.integers(1, patches - 1))
    mask = np.stack([rng.permutation(np.arange(patches) < hidden) for _ in range(batch)])
    for given_mask in (mask, mask.astype(int), mask.astype(float)):
        masking = draw_masking(batch, grid, mask=given_mask)
        np.testing.assert_array_equal(masking.mask, mask)
        assert (np.diff(masking.ids_keep, axis=1) > 0).all()


def test_a_grid_at_three_quarters_keeps_every_other_row_and_column():
    mask = draw_masking(2, (6, 8), 0.75, "grid").mask.reshape(2, 6, 8)
    visible = np.zeros((6, 8), bool)
    visible[::2, ::2] = True
    np.testing.assert_array_equal(mask == 0, [visible] * 2)


def test_a_grid_at_one_half_is_a_chessboard():
    rows, columns = np.indices((7, 8))
    mask = draw_masking(1, (7, 8), 0.5, "grid").mask.reshape(7, 8)
    np.testing.assert_array_equal(mask, (rows + columns) % 2)


@given(grids, st.integers(0, 99), st.data())
def test_a_block_is_a_rectangle_but_for_a_part_of_one_side(grid, step, data):
    ratio = data.draw(ratios(grid[0] * grid[1]))
    with sampling(0, step, np.arange(3)):
        masks = draw_masking(3, grid, ratio, "block").mask.reshape(3, *grid) == 1
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        missing = np.argwhere(~box)
        assert any((missing[:, axis] == end).all() for axis in (0, 1) for end in (0, box.shape[axis] - 1))


def test_blocks_are_squares_and_lie_everywhere_alike():
    with sampling(0, 0, np.arange(4000)):
        masks = draw_masking(4000, (12, 12), 0.25, "block").mask.reshape(4000, 12, 12)
    often = masks.mean(0)
    assert often.min() > 0.05
    assert max(abs(often - other).max() for other in (often[::-1], often[:, ::-1], often.T)) < 0.04
    inside = masks[(masks[:, [0, -1]].sum((1, 2)) == 0) & (masks[:, :, [0, -1]].sum((1, 2)) == 0)]
    assert len(inside) > 100
    assert {(m.any(1).sum(), m.any(0).sum()) for m in inside} <= {(6, 6), (6, 7), (7, 6)}


def test_random_masks_hide_each_patch_equally_often():
    with sampling(0, 0, np.arange(4000)):
        often = draw_masking(4000, (3, 3), 2 / 3).mask.mean(0)
    assert abs(often - 2 / 3).max() < 5 * np.sqrt(2 / 9 / 4000)


# --- of what they depend -------------------------------------------------------------------------------------------


@given(st.sampled_from(["random", "block"]), st.integers(0, 9), st.integers(0, 99), st.integers(0, 4), st.data())
def test_a_mask_belongs_to_its_sample_however_the_batch_is_cut(kind, seed, first, cut, data):
    grid, samples = data.draw(grids), first + np.arange(4)

    def masks(samples):
        with sampling(seed, 3, samples):
            return draw_masking(len(samples), grid, 0.5, kind).mask

    whole = masks(samples)
    pieces = [masks(piece) for piece in np.split(samples, [cut]) if len(piece)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("kind", ["random", "block"])
def test_masks_change_with_sample_step_and_seed(kind):
    def mask(seed, step, sample):
        with sampling(seed, step, np.array([sample])):
            return draw_masking(1, (8, 8), 0.5, kind).mask.tobytes()

    assert mask(0, 0, 0) == mask(0, 0, 0)
    assert len({mask(*where) for where in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}) == 4


# --- the mean over masked patches ----------------------------------------------------------------------------------


@given(arrays((3, 4)), generators)
def test_the_loss_is_a_mean_over_masked_patches_and_its_gradient_is_right(losses, rng):
    mask = np.stack([rng.permutation([1.0, 1.0, 1.0, 0.0]) for _ in range(3)]).astype(np.float32)
    assert masked_mean(Tensor(losses), mask).item() == pytest.approx(losses[mask == 1].mean())
    per_image = [masked_mean(Tensor(losses[i : i + 1]), mask[i : i + 1]).item() for i in range(3)]
    assert masked_mean(Tensor(losses), mask).item() == pytest.approx(np.mean(per_image))
    assert gradcheck(lambda x: masked_mean(x, mask), losses) <= 1e-7
    assert masked_mean(Tensor(losses.astype(np.float32)), mask.astype(np.float64)).dtype == np.float32


# --- sentences -----------------------------------------------------------------------------------------------------

MASK = np.array([[0, 1, 1, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mask_kind": "stripes"}, "mask_kind must be one of random, block, grid, got 'stripes'"),
        ({"noise": MASK, "mask": MASK}, "noise and mask were both given"),
        ({"noise": MASK[:, :3]}, r"noise must have shape \(2, 4\), a number for each patch, got \(2, 3\)"),
        ({"mask": MASK[0]}, r"mask must have shape \(2, 4\), a number for each patch, got \(4,\)"),
        ({"mask": 2 * MASK}, "mask must be 0 where a patch is visible and 1 where it is masked"),
        ({"mask": MASK | [[1], [0]]}, "mask must mask equally many patches of each image, got 2 to 4"),
        ({"mask": 0 * MASK}, "mask must leave some patches visible and mask some, got 0 of 4"),
        ({"mask": 0 * MASK + 1}, "mask must leave some patches visible and mask some, got 4 of 4"),
        ({"mask_ratio": 0.1}, "mask_ratio 0.1 masks none of 4 patches"),
    ],
)
def test_what_does_not_fit_gives_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw_masking(2, (2, 2), **options)


# --- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_masks_are_the_same_on_a_gpu_and_nothing_waits(gpu, kind):
    samples = np.arange(3) * 2**33
    there = to_device(samples, "cuda")
    with sampling(0, 5, samples):
        expected = draw_masking(3, (5, 6), 0.7, kind)
    with no_waiting(), sampling(0, 5, there):
        got = draw_masking(3, (5, 6), 0.7, kind, xp=array_module(there))
    for x, y in zip(got, expected):
        assert isinstance(x, gpu.ndarray) and x.dtype == y.dtype
        np.testing.assert_array_equal(x.get(), y)


@pytest.mark.parametrize("on_host", [True, False])
def test_given_masks_and_noise_come_from_either_side(gpu, on_host):
    noise = np.random.default_rng(0).random((2, 4))
    for name, value in (("mask", MASK), ("noise", noise)):
        given_there = value if on_host else moved(value)
        got = draw_masking(2, (2, 2), **{name: given_there}, xp=gpu)
        for x, y in zip(got, draw_masking(2, (2, 2), **{name: value})):
            np.testing.assert_array_equal(x.get(), y)
