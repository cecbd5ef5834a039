import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.nn import resize_pos_embed, resize_rel_pos_bias_table
from minivit.nn.position.resize import resize_grid, resize_matrix
from tests.strategies import flags, generators

lengths = st.integers(1, 12)
grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


def resampled(values, new, antialias):
    """One axis, pixel by pixel: the weighted mean of the old pixels under the kernel."""
    old, a = len(values), -0.5 if antialias else -0.75
    stretch = max(old / new, 1) if antialias else 1
    result = []
    for i in range(new):
        centre = (i + 0.5) * old / new
        total = weight = 0.0
        for j in range(-3 * old - 3, 4 * old + 3):
            t = abs(j + 0.5 - centre) / stretch
            near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            w = near if t < 1 else far if t < 2 else 0.0
            if antialias and not 0 <= j < old:
                continue
            total, weight = total + w * values[min(max(j, 0), old - 1)], weight + w
        result.append(total / weight)
    return result


@given(lengths, lengths, flags, generators)
def test_an_axis_pixel_by_pixel(old, new, antialias, rng):
    values = rng.standard_normal(old)
    np.testing.assert_allclose(
        resize_matrix(old, new, antialias) @ values, resampled(values, new, antialias), atol=1e-12
    )


@given(lengths, lengths, flags)
def test_a_constant_stays_and_left_is_like_right(old, new, antialias):
    matrix = resize_matrix(old, new, antialias)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)


@given(lengths, flags)
def test_the_same_length_is_the_identity(length, antialias):
    np.testing.assert_allclose(resize_matrix(length, length, antialias), np.eye(length), atol=1e-12)


@given(st.integers(6, 12), st.integers(2, 4), st.integers(0, 2), generators)
def test_parabolas_are_met_exactly_inside(old, times, degree, rng):
    """Where all four pixels around a place are there, and the new axis is finer."""
    curve = np.polynomial.Polynomial(rng.standard_normal(degree + 1))
    new = resize_matrix(old, old * times) @ curve(np.arange(old))
    places = (np.arange(old * times) + 0.5) / times - 0.5
    inside = (places >= 1) & (places <= old - 2)
    np.testing.assert_allclose(new[inside], curve(places)[inside], rtol=1e-9, atol=1e-9)


def test_a_pattern_too_fine_for_the_new_axis_fades_only_with_antialiasing():
    stripes = np.tile([1.0, -1.0], 16)
    assert abs(resize_matrix(32, 8) @ stripes).max() < 0.1
    uneven = np.tile([1.0, 0.0, 0.0, 0.0], 8)
    assert np.ptp((resize_matrix(32, 12) @ uneven)[2:-2]) < 0.5 < np.ptp((resize_matrix(32, 12, False) @ uneven)[2:-2])


@given(grids, grids, flags, generators)
def test_rows_and_columns_are_resampled_one_after_the_other(old, new, antialias, rng):
    table = rng.standard_normal((*old, 3))
    expected = np.kron(resize_matrix(old[0], new[0], antialias), resize_matrix(old[1], new[1], antialias))
    expected = expected @ table.reshape(-1, 3)
    np.testing.assert_allclose(resize_grid(table, new, antialias), expected.reshape(*new, 3), atol=1e-12)


@given(grids, grids, st.integers(0, 3), generators)
def test_a_position_table(old, new, prefix, rng):
    table = rng.standard_normal((1, prefix + old[0] * old[1], 4)).astype(np.float32)
    resized = resize_pos_embed(table, old, new, prefix)
    assert (resized.shape, resized.dtype) == ((1, prefix + new[0] * new[1], 4), np.float32)
    np.testing.assert_array_equal(resized[:, :prefix], table[:, :prefix])
    patches = resize_grid(table[0, prefix:].reshape(*old, 4), new)
    np.testing.assert_array_equal(resized[0, prefix:], patches.reshape(-1, 4))


@given(grids, grids, flags, generators)
def test_a_bias_table(old, new, extra, rng):
    sides = [tuple(2 * side - 1 for side in grid) for grid in (old, new)]
    table = rng.standard_normal((sides[0][0] * sides[0][1] + 3 * extra, 2)).astype(np.float32)
    resized = resize_rel_pos_bias_table(table, old, new)
    assert (len(resized), resized.dtype) == (sides[1][0] * sides[1][1] + 3 * extra, np.float32)
    if extra:
        np.testing.assert_array_equal(resized[-3:], table[-3:])
    mirrored = resize_rel_pos_bias_table(table[: sides[0][0] * sides[0][1]][::-1], old, new)
    count = sides[1][0] * sides[1][1]
    np.testing.assert_allclose(mirrored[::-1], resized[:count], atol=1e-5)  # −displacement stays −displacement


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: resize_pos_embed(np.ones((1, 5, 4)), (2, 2), (3, 3)), r"0 prefix tokens has shape \(1, 4, 4\), got"),
        (lambda: resize_pos_embed(np.ones((4, 4)), (2, 2), (3, 3)), r"shape \(1, 4, 4\), got \(4, 4\)"),
        (lambda: resize_rel_pos_bias_table(np.ones((10, 4)), (2, 2), (3, 3)), r"\(9 or 12, heads\), got \(10, 4\)"),
        (lambda: resize_rel_pos_bias_table(np.ones(9), (2, 2), (3, 3)), r"got \(9,\)"),
    ],
)
def test_tables_that_do_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call()
