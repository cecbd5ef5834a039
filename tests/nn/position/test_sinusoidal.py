import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minivit.nn.position import ABSOLUTE, absolute_table, sincos_1d, sincos_2d
from minivit.nn.position.sinusoidal import FORMS

grids = st.tuples(st.integers(1, 6), st.integers(1, 6))
widths = st.integers(2, 5).map(lambda quarter: 4 * quarter)
forms = st.sampled_from(FORMS)


# --- one axis: three properties, as functions of a table that raise where it does not have them --------------------


def all_rows_have_the_same_length(table):
    np.testing.assert_allclose((table**2).sum(axis=1), table.shape[1] / 2, rtol=1e-5)


def similarity_depends_on_the_distance_alone(table):
    similarity = table @ table.T
    np.testing.assert_allclose(similarity[1:, 1:], similarity[:-1, :-1], atol=1e-5 * table.shape[1])


def a_step_is_the_same_rotation_everywhere(table, step):
    """Each pair (sin, cos) of P_{t + k} is that of P_t turned by k ω."""
    omega = 10000.0 ** (-np.arange(0, table.shape[1], 2) / table.shape[1])
    cos, sin = np.cos(step * omega), np.sin(step * omega)
    sines, cosines = table[:-step, ::2], table[:-step, 1::2]
    np.testing.assert_allclose(table[step:, ::2], sines * cos + cosines * sin, atol=1e-5)
    np.testing.assert_allclose(table[step:, 1::2], cosines * cos - sines * sin, atol=1e-5)


@given(st.integers(1, 10), st.integers(2, 100), st.integers(1, 20))
def test_one_axis(half, tokens, step):
    table = sincos_1d(2 * half, tokens)
    assert (table.dtype, table.shape) == (np.float32, (tokens, 2 * half))
    all_rows_have_the_same_length(table)
    similarity_depends_on_the_distance_alone(table)
    if step < tokens:
        a_step_is_the_same_rotation_everywhere(table, step)


@given(st.integers(1, 5), st.integers(2, 20))
def test_one_axis_is_the_papers_formula(half, tokens):
    table = sincos_1d(2 * half, tokens)
    for t in range(tokens):
        for i in range(half):
            angle = t / 10000 ** (2 * i / (2 * half))
            np.testing.assert_allclose(table[t, 2 * i : 2 * i + 2], [math.sin(angle), math.cos(angle)], atol=1e-6)


@pytest.mark.parametrize(
    "check",
    [
        all_rows_have_the_same_length,
        similarity_depends_on_the_distance_alone,
        lambda table: a_step_is_the_same_rotation_everywhere(table, 1),
    ],
)
@pytest.mark.parametrize("half", [1, 4, 16])
def test_a_cosine_with_t_twice_is_caught(check, half):
    """The misprint in circulation: cos(t · t ω)."""
    table = sincos_1d(2 * half, 12)
    check(table)
    t, omega = np.arange(12)[:, None], 10000.0 ** (-np.arange(half) / half)
    table[:, 1::2] = np.cos(t * t * omega)
    with pytest.raises(AssertionError):
        check(table)


# --- two axes --------------------------------------------------------------------------------------------------------


@given(widths, grids, st.integers(0, 3), forms)
def test_two_axes_are_the_formula_of_the_form(dim, grid, prefix, form):
    table = sincos_2d(dim, grid, prefix, form)
    assert table.shape == (1, prefix + grid[0] * grid[1], dim)
    assert table.dtype == np.float32
    assert not table[0, :prefix].any()
    quarter = dim // 4
    for n in range(grid[0] * grid[1]):
        y, x = divmod(n, grid[1])
        for j in range(quarter):
            w = 10000 ** (-j / (quarter - 1 if form == "simple_vit" else quarter))
            expected = [math.sin(x * w), math.cos(x * w), math.sin(y * w), math.cos(y * w)]
            if form == "timm":
                expected = [math.sin(y * w), math.sin(x * w), math.cos(y * w), math.cos(x * w)]
            np.testing.assert_allclose(table[0, prefix + n, j::quarter], expected, atol=1e-6)


@given(widths, grids)
def test_the_forms_are_different_tables(dim, grid):
    assume(max(grid) > 2)
    tables = [sincos_2d(dim, grid, form=form) for form in FORMS]
    for i in range(3):
        assert abs(tables[i] - tables[i - 1]).max() > 1e-3


@given(widths, grids, forms)
def test_all_places_have_the_same_length(dim, grid, form):
    all_rows_have_the_same_length(sincos_2d(dim, grid, form=form)[0])


@given(widths, st.tuples(st.integers(2, 5), st.integers(2, 5)), forms)
def test_the_similarity_of_two_places_depends_on_their_displacement_only(dim, grid, form):
    """Moving both by one row, or by one column, leaves their inner product."""
    table = sincos_2d(dim, grid, form=form)[0].reshape(*grid, dim)
    similarity = np.tensordot(table, table, (-1, -1))  # (row, column, row, column)
    np.testing.assert_allclose(similarity[1:, :, 1:, :], similarity[:-1, :, :-1, :], atol=1e-4)
    np.testing.assert_allclose(similarity[:, 1:, :, 1:], similarity[:, :-1, :, :-1], atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_no_two_places_share_a_position(form):
    table = sincos_2d(16, (14, 14), form=form)[0]
    distance = np.linalg.norm(table[:, None] - table, axis=-1) + 9 * np.eye(len(table))
    assert distance.min() > 0.1


# --- by name ---------------------------------------------------------------------------------------------------------


@given(widths, grids, st.integers(0, 3), st.sampled_from(sorted(ABSOLUTE)))
def test_tables_by_name(dim, grid, prefix, name):
    table = absolute_table(name, dim, grid, prefix)
    assert table.shape == (1, prefix + grid[0] * grid[1], dim)
    if name == "sincos_1d":
        np.testing.assert_array_equal(table[0], sincos_1d(dim, table.shape[1]))
    else:
        form = {"sincos_mae": "mae", "sincos_simple": "simple_vit", "sincos_timm": "timm"}[name]
        np.testing.assert_array_equal(table, sincos_2d(dim, grid, prefix, form))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sincos_2d(6, (2, 2)), "embed_dim must be a multiple of 4 .*, got 6"),
        (lambda: sincos_2d(9, (2, 2)), "embed_dim must be a multiple of 4 .*, got 9"),
        (lambda: sincos_2d(4, (2, 2), form="simple_vit"), "at least 8 for 'simple_vit', got 4"),
        (lambda: sincos_2d(8, (2, 2), form="moco"), "form must be one of mae, simple_vit, timm, got 'moco'"),
        (lambda: sincos_1d(7, 3), "embed_dim must be even .*, got 7"),
        (lambda: absolute_table("sincos", 8, (2, 2)), "name must be one of sincos_1d, sincos_mae, .*, got 'sincos'"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
