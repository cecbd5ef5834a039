"""All relative position embeddings inside attention: gradients, no-ops, resizing, starting values, other devices."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import Tensor, gradcheck, ops
from minivit.nn import Module, init
from minivit.nn.position import RELATIVE, RelativePosition, relative_position
from tests.cupy_twin import forbid_synchronisation, wrap
from tests.strategies import generators

names = st.sampled_from(sorted(RELATIVE))
each_name = pytest.mark.parametrize("name", sorted(RELATIVE))


def attend(position, q, k, v):
    """The formula of ``nn/position/relative.py``, in small ops."""
    q_turned, k_turned = position.turn(q), position.turn(k)
    scores = q_turned @ k_turned.transpose(0, 1, 3, 2)
    extra, bias = position.scores(q), position.bias(q.shape[2])
    scores = (scores if extra is None else scores + extra) * (1 / math.sqrt(q.shape[-1]))
    weights = ops.softmax(scores if bias is None else scores + bias)
    values = position.values(weights)
    return weights @ v if values is None else weights @ v + values


def randomise(position, rng):
    for parameter in position.parameters():
        parameter.data = 0.5 * rng.standard_normal(parameter.shape)
    return position


@st.composite
def cases(draw, name=None):
    """An embedding with random tables in float64; queries (some first ones), keys and values."""
    name = name or draw(names)
    grid, prefix = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), draw(st.integers(0, 2))
    heads, width = draw(st.integers(1, 2)), 4 * draw(st.integers(1, 2))
    rng = draw(generators)
    position = randomise(relative_position(name, grid, prefix, heads, width), rng)
    tokens = position.num_tokens
    queries = draw(st.integers(1, tokens))
    q, k, v = (rng.standard_normal((2, heads, n, width)) for n in (queries, tokens, tokens))
    return position, q, k, v


@each_name
@settings(max_examples=25)
@given(data=st.data())
def test_gradients(name, data):
    """Of queries, keys, values and all tables, through all that the embedding does."""
    position, q, k, v = data.draw(cases(name))
    error = gradcheck(
        lambda *qkv: attend(position, *qkv), q, k, v, parameters=dict(position.named_parameters()), eps=1e-5
    )
    assert error <= 1e-7


@given(cases())
def test_the_first_queries_alone_see_what_they_see_among_all(case):
    position, q, k, v = case
    everything = np.concatenate([q, np.ones((*q.shape[:2], k.shape[2] - q.shape[2], q.shape[3]))], axis=2)
    some, all_of_them = (attend(position, Tensor(x), Tensor(k), Tensor(v)).numpy() for x in (q, everything))
    np.testing.assert_allclose(some, all_of_them[:, :, : q.shape[2]], atol=1e-12)


@given(cases())
def test_shapes_and_precision(case):
    position, q, k, v = case
    position.astype(np.float32)
    q, k, v = (Tensor(x.astype(np.float32)) for x in (q, k, v))
    assert position.turn(q).shape == q.shape
    assert attend(position, q, k, v).shape == q.shape
    assert attend(position, q, k, v).dtype == np.float32
    bias = position.bias()
    assert bias is None or bias.shape == (q.shape[1], position.num_tokens, position.num_tokens)


DOES = {"rel_bias": {"bias"}, "rel_t5": {"bias"}, "rel_shaw": {"scores", "values"}, "rope_axial": {"turn"}}
DOES["rope_mixed"] = DOES["rope_axial"]


@each_name
def test_what_an_embedding_does_not_do_it_says(name):
    position = randomise(relative_position(name, (2, 3), 1, 2, 4), np.random.default_rng(0))
    x, weights = Tensor(np.ones((1, 2, 7, 4))), Tensor(np.ones((1, 2, 7, 7)))
    does = {"turn"} if position.turn(x) is not x else set()
    does |= {"bias"} if position.bias() is not None else set()
    does |= {"scores"} if position.scores(x) is not None else set()
    does |= {"values"} if position.values(weights) is not None else set()
    assert does == DOES[name]


def test_the_base_does_nothing():
    position = RelativePosition((2, 3), 1, 2, 4)
    x = Tensor(np.ones((1, 2, 7, 4)))
    assert position.turn(x) is x
    assert position.bias() is position.scores(x) is position.values(x) is None
    assert position.parameters() == []


# --- another grid --------------------------------------------------------------------------------------------------


@given(cases(), st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_the_same_embedding_for_another_grid(case, grid):
    position, _, k, _ = case
    tables = position.state_dict()
    larger = position.resized(grid)
    assert (type(larger), larger.grid, larger.prefix_tokens) == (type(position), grid, position.prefix_tokens)
    tokens = position.prefix_tokens + grid[0] * grid[1]
    assert larger.num_tokens == tokens
    x = Tensor(np.ones((1, k.shape[1], tokens, k.shape[3])))
    assert attend(larger, x, x, x).shape == x.shape
    fresh = relative_position(next(n for n in RELATIVE if RELATIVE[n] is type(position)), grid, *sizes_of(position))
    assert {n: p.shape for n, p in larger.named_parameters()} == {n: p.shape for n, p in fresh.named_parameters()}
    for parameter in larger.parameters():
        assert parameter.dtype == np.float64
        parameter.data[...] = 0
    for name, table in position.state_dict().items():
        np.testing.assert_array_equal(table, tables[name])


def sizes_of(position):
    return position.prefix_tokens, position.num_heads, position.head_dim


@given(cases())
def test_resizing_to_the_same_grid_changes_nothing(case):
    position, *_ = case
    same = position.resized(position.grid)
    for name, table in position.state_dict().items():
        np.testing.assert_allclose(same.state_dict()[name], table, atol=1e-12)


@each_name
def test_only_a_table_of_the_grid_is_resampled(name):
    position = randomise(relative_position(name, (3, 3), 1, 2, 4), np.random.default_rng(0))
    resized, tables = position.resized((5, 4)).state_dict(), position.state_dict()
    for key, table in tables.items():
        assert (resized[key].shape == table.shape) == (key != "relative_position_bias_table")
        if resized[key].shape == table.shape:
            np.testing.assert_array_equal(resized[key], table)


# --- starting values -----------------------------------------------------------------------------------------------


class Model(Module):
    def __init__(self, name):
        self.parts = [relative_position(name, (4, 4), 1, 8, 32) for _ in range(3)]


@each_name
@pytest.mark.parametrize("preset", init.PRESETS)
def test_starting_values_of_every_preset(name, preset):
    model = Model(name)
    init.init_weights(model, preset, seed=1)
    tables = list(model.state_dict().items())
    for key, table in tables:
        if key.endswith("freqs"):
            speeds = np.hypot(*table)  # (H, d/2): the lengths of the frequency vectors
            expected = np.tile(10.0 ** (-4 * np.arange(8) / 32), 2)
            np.testing.assert_allclose(speeds, np.broadcast_to(expected, speeds.shape), rtol=1e-5)
            np.testing.assert_allclose((table[:, :, :8] * table[:, :, 8:]).sum(axis=0), 0, atol=1e-6)  # at right angles
            first = np.arctan2(table[1, :, 0], table[0, :, 0])
            assert len(np.unique(first.round(3))) == 8  # one angle a head
        else:
            assert 0.015 < table.std() < 0.025
            assert abs(table.mean()) < 0.005
    assert len({table.tobytes() for _, table in tables}) == len(tables)


# --- by name -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: relative_position("rope", (2, 2), 1, 2, 4), "name must be one of rel_bias, .*, got 'rope'"),
        (lambda: relative_position("rope_axial", (2, 2), 1, 2, 6), "head_dim to be a multiple of 4, got 6"),
        (lambda: relative_position("rope_mixed", (2, 2), 1, 2, 6), "head_dim to be a multiple of 4, got 6"),
        (lambda: RELATIVE["rel_shaw"]((2, 2), 1, 2, 4, max_distance=0), "max_distance must be at least 1, got 0"),
        (lambda: RELATIVE["rel_t5"]((2, 2), 1, 2, 4, num_buckets=30), "num_buckets must be a multiple of 4, .*got 30"),
        (lambda: RELATIVE["rel_t5"]((2, 2), 1, 2, 4, max_distance=8), "larger than a quarter of it, got 32 and 8"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- on the strict twin of CuPy ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cupy_twin")
@given(cases())
def test_on_a_gpu_the_same_without_waiting(case):
    position, *arrays = case
    on_gpu = copy.deepcopy(position).to("cuda")
    q, k, v = (Tensor(wrap(x), requires_grad=True) for x in arrays)
    with forbid_synchronisation():
        y = attend(on_gpu, q, k, v)
        y.backward(wrap(np.ones(y.shape)))
    q_host, k_host, v_host = (Tensor(x, requires_grad=True) for x in arrays)
    expected = attend(position, q_host, k_host, v_host)
    expected.backward(np.ones(expected.shape))
    np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(q.grad.get(), q_host.grad, atol=1e-12)
    for ours, theirs in zip(on_gpu.parameters(), position.parameters()):
        np.testing.assert_allclose(ours.grad.get(), theirs.grad, atol=1e-12)
    assert [p.device for p in on_gpu.resized((2, 2)).parameters()] == ["cuda:0"] * len(on_gpu.parameters())
