import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.nn.position import AxialRope, MixedRope, mixed_frequencies
from minivit.nn.position.rope import coordinates, frequencies
from tests.nn.position.test_relative import randomise
from tests.strategies import generators

kinds = st.sampled_from([AxialRope, MixedRope])
grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


@st.composite
def ropes(draw):
    grid, prefix, heads, width = (
        draw(grids),
        draw(st.integers(0, 2)),
        draw(st.integers(1, 3)),
        4 * draw(st.integers(1, 3)),
    )
    return randomise(draw(kinds)(grid, prefix, heads, width), draw(generators))


@given(ropes(), generators)
def test_norms_are_kept_and_prefix_tokens_not_turned(rope, rng):
    x = rng.standard_normal((2, rope.num_heads, rope.num_tokens, rope.head_dim))
    y = rope.turn(Tensor(x)).numpy()
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-12)
    np.testing.assert_array_equal(y[:, :, : rope.prefix_tokens], x[:, :, : rope.prefix_tokens])


@given(ropes(), generators)
def test_scores_depend_on_differences_of_places_only(rope, rng):
    """The same query at every place, the same key at every place."""
    shape = (1, rope.num_heads, rope.num_tokens, rope.head_dim)
    q, k = (
        Tensor(np.broadcast_to(rng.standard_normal((1, rope.num_heads, 1, rope.head_dim)), shape)) for _ in range(2)
    )
    scores = rope.turn(q).numpy() @ rope.turn(k).numpy().swapaxes(-1, -2)
    p = rope.prefix_tokens
    scores = scores[0, :, p:, p:].reshape(rope.num_heads, *rope.grid, *rope.grid)
    np.testing.assert_allclose(scores[:, 1:, :, 1:, :], scores[:, :-1, :, :-1, :], atol=1e-10)
    np.testing.assert_allclose(scores[:, :, 1:, :, 1:], scores[:, :, :-1, :, :-1], atol=1e-10)


@pytest.mark.parametrize("kind", [AxialRope, MixedRope])
def test_scores_do_depend_on_places(kind):
    rope = kind((3, 3), 0, 1, 4)
    x = Tensor(np.ones((1, 1, 9, 4), np.float32))
    scores = (rope.turn(x).numpy() @ rope.turn(x).numpy().swapaxes(-1, -2))[0, 0, 0].reshape(3, 3)
    assert scores[0, 1] < scores[0, 0] - 0.1
    assert scores[1, 0] < scores[0, 0] - 0.1


def test_axial_pairs_see_one_axis_each():
    rope = AxialRope((2, 3), 0, 1, 8)
    angles = rope.angles(Tensor(np.zeros(1))).reshape(2, 3, 4)
    np.testing.assert_array_equal(angles[1], angles[0] + [0, 0, 1, 100**-0.5])
    np.testing.assert_allclose(angles[:, 2], angles[:, 0] + [2, 2 * 100**-0.5, 0, 0])


@given(st.integers(1, 3), st.integers(1, 3))
def test_mixed_begins_as_axial_of_another_theta(heads, quarter):
    mixed, axial = MixedRope((3, 4), 1, heads, 4 * quarter), AxialRope((3, 4), 1, heads, 4 * quarter, theta=10.0)
    x = Tensor(np.random.default_rng(0).standard_normal((1, heads, 13, 4 * quarter)).astype(np.float32))
    np.testing.assert_allclose(mixed.turn(x).numpy(), axial.turn(x).numpy(), atol=1e-6)


@given(st.integers(1, 3), st.integers(1, 3), generators)
def test_mixed_frequencies_are_two_fans_at_right_angles(heads, quarter, rng):
    angles = rng.uniform(0, 2 * np.pi, heads)
    x, y = mixed_frequencies(heads, 4 * quarter, angles)  # (H, d/2) each
    omega = frequencies(4 * quarter, 10.0)
    expected = np.concatenate([np.exp(1j * angles)[:, None] * omega, 1j * np.exp(1j * angles)[:, None] * omega], axis=1)
    np.testing.assert_allclose(x + 1j * y, expected, atol=1e-12)


@given(grids, st.integers(0, 2))
def test_coordinates_are_column_and_row(grid, prefix):
    places = coordinates(grid, prefix)
    assert not places[:prefix].any()
    assert [tuple(place) for place in places[prefix:]] == [(x, y) for y in range(grid[0]) for x in range(grid[1])]


@given(ropes(), grids)
def test_a_larger_grid_goes_on_where_the_smaller_one_ended(rope, more):
    """Coordinates are not scaled: places that both grids have are turned alike."""
    larger = rope.resized((rope.grid[0] + more[0], rope.grid[1] + more[1]))
    like, p = Tensor(np.zeros(1)), rope.prefix_tokens
    small, large = (np.asarray(getattr(a, "data", a)) for a in (rope.angles(like), larger.angles(like)))
    small = small[..., p:, :].reshape(*small.shape[:-2], *rope.grid, -1)
    large = large[..., p:, :].reshape(*large.shape[:-2], *larger.grid, -1)
    np.testing.assert_allclose(large[..., : rope.grid[0], : rope.grid[1], :], small, atol=1e-12)
