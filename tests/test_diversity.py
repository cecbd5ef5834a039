"""The penalties against their definitions, pair by pair, and what follows from these."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minivit import Tensor, gradcheck
from minivit.diversity import margin_excess, mean_cosine, overlap
from tests.cupy_twin import wrap
from tests.rules import kept
from tests.strategies import arrays, flags, generators, nonzero, positive, sizes

margins = st.sampled_from([-0.5, 0.0, 0.3])


@st.composite
def heads(draw, values=nonzero):
    """(B, H, N, d)"""
    return draw(arrays(draw(st.tuples(*[sizes] * 4)), values))


def cosines(x, per_token):
    """(groups, H, H): of each image, or of each token of each image; 0 of what is 0, as rectified attention may be."""
    b, h, n, d = x.shape
    rows = x.transpose(0, 2, 1, 3).reshape(b * n, h, d) if per_token else x.reshape(b, h, n * d)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    rows = rows / np.where(lengths > 0, lengths, 1)
    return np.stack([[[row[i] @ row[j] for j in range(h)] for i in range(h)] for row in rows])


def pair_mean(table, include_diagonal):
    """(groups, H, H) → the mean over groups and pairs."""
    h = table.shape[-1]
    chosen = [(i, j) for i in range(h) for j in range(h) if include_diagonal or i != j]
    return np.mean([table[:, i, j].mean() for i, j in chosen]) if chosen else 0.0


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


def gradient(function, x, *args):
    x = Tensor(x, requires_grad=True)
    function(x, *args).backward()
    return x.grad


# --- the penalties ---------------------------------------------------------------------------------------------------


@given(heads(), flags, flags)
def test_mean_cosine_is_its_definition_and_its_gradient_is_right(x, per_token, include_diagonal):
    value = mean_cosine(Tensor(x), per_token, include_diagonal)
    close(value.data, pair_mean(cosines(x, per_token), include_diagonal))
    assert gradcheck(lambda x: 2 + mean_cosine(x, per_token, include_diagonal), x) <= 1e-7  # of 0 rounding is all


@given(heads(positive), flags)
def test_overlap_is_its_definition_and_its_gradient_is_right(a, include_diagonal):
    table = np.einsum("binm,bjnm->bnij", a, a).reshape(-1, a.shape[1], a.shape[1])
    close(overlap(Tensor(a), include_diagonal).data, pair_mean(table, include_diagonal))
    assert gradcheck(lambda a: overlap(a, include_diagonal), a) <= 1e-7


@given(heads(), margins, flags)
def test_margin_excess_is_its_definition_and_its_gradient_is_right(x, margin, per_token):
    table = cosines(x, per_token)
    close(margin_excess(Tensor(x), margin, per_token).data, pair_mean(np.maximum(table - margin, 0), False))
    assume(abs(table - margin).min() > 1e-4)  # where a pair is at the margin there is no derivative
    assert gradcheck(lambda x: 2 + margin_excess(x, margin, per_token), x) <= 1e-7


COSINES = {
    "mean_cosine": lambda x, per_token: mean_cosine(x, per_token),
    "true pairs": lambda x, per_token: mean_cosine(x, per_token, False),
    "margin_excess": lambda x, per_token: margin_excess(x, 0.1, per_token),
}


@pytest.mark.parametrize("name", COSINES)
@given(x=heads(), per_token=flags, rng=generators)
def test_a_common_rotation_and_the_lengths_and_the_order_of_heads_make_no_difference(name, x, per_token, rng):
    def value(x):
        return COSINES[name](Tensor(x), per_token).data

    rotation = np.linalg.qr(rng.standard_normal((x.shape[-1],) * 2))[0]
    close(value(x @ rotation), value(x))
    close(value(x * rng.uniform(0.1, 10, (*x.shape[:2], 1, 1))), value(x))
    close(value(x[:, rng.permutation(x.shape[1])]), value(x))


@pytest.mark.parametrize("name", COSINES)
@given(x=heads(), per_token=flags)
def test_only_the_part_across_a_head_is_changed(name, x, per_token):
    """As lengths make no difference, the gradient of each vector is orthogonal to it."""
    along = x * gradient(COSINES[name], x, per_token)
    np.testing.assert_allclose(along.sum(-1 if per_token else (-2, -1)), 0, atol=1e-12)


@pytest.mark.parametrize("name", [*COSINES, "overlap"])
@given(x=heads(positive), per_token=flags)
def test_a_batch_is_the_mean_of_its_images(name, x, per_token):
    """So a batch may be cut anywhere, if parts are weighted by their sizes."""
    penalty = COSINES.get(name, lambda x, per_token: overlap(x))
    one_by_one = [penalty(Tensor(x[i : i + 1]), per_token).data for i in range(len(x))]
    close(penalty(Tensor(x), per_token).data, np.mean(one_by_one))


@given(heads(), flags)
def test_whether_the_diagonal_counts_changes_the_size_of_the_gradient_only(x, per_token):
    h = x.shape[1]
    assume(h > 1)
    with_it, without = (gradient(mean_cosine, x, per_token, diagonal) for diagonal in (True, False))
    close(with_it, without * ((h - 1) / h))


@pytest.mark.parametrize("per_token", [True, False])
def test_equal_heads_and_orthogonal_heads(per_token):
    same = np.ones((2, 3, 4, 5))
    apart = np.eye(3)[None, :, None, :] * np.ones((2, 1, 4, 1))
    for x, whole, pairs in ((same, 1, 1), (apart, 1 / 3, 0)):
        close(mean_cosine(Tensor(x), per_token).data, whole)
        close(mean_cosine(Tensor(x), per_token, include_diagonal=False).data, pairs)
        close(margin_excess(Tensor(x), 0.25, per_token).data, max(pairs - 0.25, 0))


def test_rows_of_tokens_and_whole_matrices_are_not_the_same():
    """Two tokens that agree weakly and disagree strongly: by rows they cancel, as a whole they disagree."""
    x = Tensor(np.array([[[[1.0], [10.0]], [[1.0], [-10.0]]]]))
    close(mean_cosine(x, per_token=True, include_diagonal=False).data, 0)
    close(mean_cosine(x, per_token=False, include_diagonal=False).data, -99 / 101)


def test_overlap_of_sharp_maps():
    """Three heads that look at one token each: the same, or three different ones; the diagonal punishes sharpness."""
    same, apart, flat = np.zeros((1, 3, 3, 3)), np.zeros((1, 3, 3, 3)), np.full((1, 3, 3, 3), 1 / 3)
    same[:, :, :, 0] = 1
    for head in range(3):
        apart[:, head, :, head] = 1
    for maps, whole, pairs in ((same, 1, 1), (apart, 1 / 3, 0), (flat, 1 / 3, 1 / 3)):
        close(overlap(Tensor(maps)).data, whole)
        close(overlap(Tensor(maps), include_diagonal=False).data, pairs)


@given(heads(), flags, margins)
def test_the_margins_gradient_is_zero_exactly_when_every_pair_is_beyond_it(x, per_token, margin):
    table = cosines(x, per_token)
    too_close = (table > margin) & ~np.eye(x.shape[1], dtype=bool)
    assume(abs(table - margin).min() > 1e-4)
    assume(x.shape[-1] > 1 and x.shape[1] < 3)  # of three heads, pulls may cancel; numbers alone have no angles
    assume((abs(table) < 1 - 1e-6)[:, ~np.eye(x.shape[1], dtype=bool)].all())  # nor do parallel vectors turn
    dx = gradient(margin_excess, x, margin, per_token)
    assert (dx != 0).any() == too_close.any()


def test_a_lone_head_has_nobody_to_agree_with():
    x = np.random.default_rng(0).standard_normal((2, 1, 3, 4))
    for penalty in (lambda x: mean_cosine(x, include_diagonal=False), margin_excess, lambda x: overlap(x, False)):
        assert abs(penalty(Tensor(x)).item()) < 1e-15
        np.testing.assert_allclose(gradient(penalty, x), 0, atol=1e-15)


@pytest.mark.parametrize("name", COSINES)
@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("length", [0, 1e-9])
def test_what_points_nowhere_has_no_cosine_and_no_gradient(name, per_token, length):
    x = np.ones((1, 3, 2, 4))
    x[0, 1] = length
    others = COSINES[name](Tensor(np.delete(x, 1, axis=1)), per_token).item()
    factor = 4 / 9 if name == "mean_cosine" else 2 / 6
    close(COSINES[name](Tensor(x), per_token).item(), others * factor)
    assert (gradient(COSINES[name], x, per_token)[0, 1] == 0).all()


@pytest.mark.parametrize("name", [*COSINES, "overlap"])
@given(x=heads(positive), per_token=flags)
def test_float32_stays_and_nothing_is_written_to(name, x, per_token):
    x = x.astype(np.float32)
    x.flags.writeable = False
    penalty = COSINES.get(name, lambda x, per_token: overlap(x))
    assert penalty(Tensor(x), per_token).dtype == np.float32
    dx = gradient(penalty, x, per_token)
    assert dx.dtype == np.float32 and dx.shape == x.shape


@pytest.mark.parametrize("name", [*COSINES, "overlap"])
@pytest.mark.parametrize("per_token", [True, False])
def test_on_the_twin_of_a_gpu(cupy_twin, name, per_token):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    penalty = COSINES.get(name, lambda x, per_token: overlap(x))
    np.testing.assert_allclose(gradient(penalty, wrap(x), per_token).get(), gradient(penalty, x, per_token), rtol=1e-12)


def test_the_margin_keeps_unit_vectors_and_cosines_only():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    for function in (mean_cosine, margin_excess):
        assert not any(np.may_share_memory(x, array) for array in kept(function.raw(x)[1]))
