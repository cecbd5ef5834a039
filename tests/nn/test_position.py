import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.nn import sincos_2d

grids = st.tuples(st.integers(1, 6), st.integers(1, 6))
widths = st.integers(1, 5).map(lambda quarter: 4 * quarter)


@given(widths, grids, st.integers(0, 3))
def test_it_is_the_masked_autoencoders_formula(dim, grid, prefix):
    table = sincos_2d(dim, grid, prefix)
    assert table.shape == (1, prefix + grid[0] * grid[1], dim)
    assert table.dtype == np.float32
    assert not table[0, :prefix].any()
    quarter = dim // 4
    for n in range(grid[0] * grid[1]):
        row, column = divmod(n, grid[1])
        for i in range(quarter):
            omega = 10000 ** (-i / quarter)
            expected = [f(place * omega) for place in (column, row) for f in (math.sin, math.cos)]
            np.testing.assert_allclose(table[0, prefix + n, i::quarter], expected, atol=1e-6)


@given(widths, grids)
def test_all_positions_have_the_same_length(dim, grid):
    np.testing.assert_allclose((sincos_2d(dim, grid)[0] ** 2).sum(-1), dim / 2, rtol=1e-5)


@given(widths, st.tuples(st.integers(2, 5), st.integers(2, 5)))
def test_the_similarity_of_two_places_depends_on_their_displacement_only(dim, grid):
    """Moving both by one row, or by one column, leaves their inner product."""
    table = sincos_2d(dim, grid)[0].reshape(*grid, dim)
    similarity = np.tensordot(table, table, (-1, -1))  # (row, column, row, column)
    np.testing.assert_allclose(similarity[1:, :, 1:, :], similarity[:-1, :, :-1, :], atol=1e-4)
    np.testing.assert_allclose(similarity[:, 1:, :, 1:], similarity[:, :-1, :, :-1], atol=1e-4)


def test_no_two_places_share_a_position():
    table = sincos_2d(16, (14, 14))[0]
    distance = np.linalg.norm(table[:, None] - table, axis=-1) + 9 * np.eye(len(table))
    assert distance.min() > 0.1


@pytest.mark.parametrize("dim", [6, 9])
def test_a_width_that_is_no_multiple_of_four_gets_a_sentence(dim):
    with pytest.raises(ValueError, match=rf"embed_dim must be a multiple of 4 .*, got {dim}"):
        sincos_2d(dim, (2, 2))
