import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.ops import by_distance, relative_bias, rotate, sum_by_distance
from minivit.ops.position import relative_index
from tests.rules import cotangent
from tests.strategies import CASES

grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(grids, st.integers(0, 3))
def test_a_row_of_the_table_is_one_displacement_and_every_displacement_has_a_row(grid, prefix):
    index = relative_index(grid, prefix)
    places = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    found = {}
    for n, a in enumerate(places):
        for m, b in enumerate(places):
            row = index[prefix + n, prefix + m]
            assert found.setdefault(row, (a[0] - b[0], a[1] - b[1])) == (a[0] - b[0], a[1] - b[1])
    count = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    assert sorted(found) == list(range(count))
    assert len(set(found.values())) == count
    assert (index[:prefix, prefix:] == count).all()
    assert (index[prefix:, :prefix] == count + 1).all()
    assert (index[:prefix, :prefix] == count + 2).all()


@given(CASES["relative_bias"])
def test_a_row_is_given_the_sum_over_its_pairs(case):
    (table,) = case.args
    y, pullback = relative_bias.raw(table, **case.options)
    dy = cotangent(y)
    index = relative_index(**case.options)
    expected = [dy[:, index == row].sum(axis=1) for row in range(len(table))]
    np.testing.assert_allclose(pullback(dy), expected, atol=1e-12)


@given(CASES["by_distance"])
def test_sum_by_distance_is_the_transpose_of_by_distance(case):
    (x,) = case.args
    y, pullback = by_distance.raw(x, **case.options)
    np.testing.assert_array_equal(sum_by_distance.raw(y, x.shape[-1] // 2)[0], pullback(y))


@given(CASES["rotate"], st.floats(-10, 10))
def test_two_turns_are_one_by_the_sum_and_lengths_are_kept(case, angle):
    x, angles = case.args
    once = rotate.raw(rotate.raw(x, angles)[0], np.full_like(angles, angle))[0]
    np.testing.assert_allclose(once, rotate.raw(x, angles + angle)[0], atol=1e-12)
    lengths = np.hypot(once[..., ::2], once[..., 1::2])
    np.testing.assert_allclose(lengths, np.broadcast_to(np.hypot(x[..., ::2], x[..., 1::2]), lengths.shape), rtol=1e-9)


@given(CASES["rotate"])
def test_an_angle_of_zero_changes_nothing(case):
    x, angles = case.args
    y = rotate.raw(x, np.zeros_like(angles))[0]
    np.testing.assert_array_equal(y, np.broadcast_to(x, y.shape))


def test_half_precision_is_turned_in_the_precision_of_the_angles():
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((3, 8)).astype(np.float16) for _ in range(2))
    angles = rng.standard_normal((3, 4)).astype(np.float32)
    y, pullback = rotate.raw(x, angles)
    expected, expected_pullback = rotate.raw(x.astype(np.float32), angles)
    np.testing.assert_array_equal(y, expected.astype(np.float16))
    for got, wanted in zip(pullback(dy), expected_pullback(dy.astype(np.float32))):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: relative_bias(Tensor(np.ones((9, 2))), (2, 2), 1), r"\(12, heads\) for a grid .* with 1 .*\(9, 2\)"),
        (lambda: relative_bias(Tensor(np.ones((12, 2))), (2, 2)), r"\(9, heads\) .* 0 prefix tokens, got \(12, 2\)"),
        (lambda: relative_bias(Tensor(np.ones(9)), (2, 2)), r"got \(9,\)"),
        (lambda: by_distance(Tensor(np.ones((2, 4))), 3), r"x \(…, n, 2k \+ 1\) with k of at least 1, got \(2, 4\)"),
        (lambda: by_distance(Tensor(np.ones((2, 1))), 3), r"got \(2, 1\)"),
        (lambda: by_distance(Tensor(np.ones(3)), 3), r"got \(3,\)"),
        (lambda: sum_by_distance(Tensor(np.ones((2, 4))), 0), r"a reach of at least 1, got \(2, 4\) and 0"),
        (lambda: sum_by_distance(Tensor(np.ones(4)), 1), r"w \(…, n, tokens\)"),
        (lambda: rotate(Tensor(np.ones((2, 4))), np.ones((2, 4))), r"angles \(…, d/2\), got \(2, 4\) and \(2, 4\)"),
        (lambda: rotate(Tensor(np.ones((2, 5))), np.ones((2, 2))), r"got \(2, 5\) and \(2, 2\)"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call()
