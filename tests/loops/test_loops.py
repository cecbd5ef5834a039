"""Loops against their formulas in float64, run by Python and compiled."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import ops
from minivit.autograd import Tensor, no_grad, op
from minivit.optim.adamw import adamw
from tests.compare import UNIT, as_tuple, errors, exact, numbers
from tests.rules import kept

TOLERANCE = 16 * UNIT["float32"]


seeds = st.integers(0, 2**31)


def sizes(most: int) -> st.SearchStrategy[int]:
    return st.integers(1, most)


# --- e^x, GELU -----------------------------------------------------------------------------------------------------


def test_the_exponential_is_as_good_as_float32(loops):
    x = np.linspace(-87, 0, 2000 if loops.compiled else 300).astype(np.float32)
    found = np.array([loops.exp(number) for number in x])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.exp(x.astype(float)), rtol=2.5 * UNIT["float32"])


@pytest.mark.parametrize("x, right", [(0, 1), (-87.5, 0), (-1e30, 0), (-np.inf, 0), (np.nan, np.nan)])
def test_the_exponential_at_its_ends(loops, x, right):
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(loops.exp(np.float32(x)), np.float32(right))


@given(st.lists(sizes(5), min_size=1, max_size=3), seeds)
def test_gelu(loops, shape, seed):
    x = numbers(seed, *shape, scale=3)
    x.reshape(-1)[0] = 1  # errors are relative to the largest number
    assert max(errors(loops.gelu, np, (x,))) < TOLERANCE


def test_gelu_has_tails(loops):
    x = np.linspace(-8, 8, 401, dtype=np.float32)
    value, right = exact(loops.gelu(x)[0]), ops.gelu.raw(x.astype(float))[0]
    np.testing.assert_allclose(value, right, rtol=5e-3, atol=0)
    np.testing.assert_allclose(value, right, rtol=2.5e-7, atol=2e-7)


def test_gelu_of_large_numbers(loops):
    x = np.array([1e4, 1e15, -1e4, -1e15, 0, np.nan], np.float32)
    with np.errstate(all="ignore"):
        y, pullback = loops.gelu(x)
    np.testing.assert_array_equal(y, np.array([1e4, 1e15, 0, 0, 0, np.nan], np.float32))
    np.testing.assert_allclose(pullback(np.ones(6, np.float32)), [1, 1, 0, 0, 0.5, np.nan], rtol=1e-6)


# --- normalisation -------------------------------------------------------------------------------------------------


@given(st.lists(sizes(4), max_size=2), st.integers(3, 20), seeds)
def test_layer_norm_and_the_sum_before_it(loops, leading, width, seed):
    x, branch = (numbers(seed + i, *leading, width) for i in range(2))
    weight, bias = 1 + numbers(seed + 2, width), numbers(seed + 3, width)
    assert max(errors(loops.layer_norm, np, (x, weight, bias), eps=1e-2)) < 1e-5
    assert max(errors(loops.add_layer_norm, np, (x, branch, weight, bias), eps=1e-2)) < 1e-5


def test_a_large_mean_costs_no_precision_of_the_variance(loops):
    args = 1000 + numbers(0, 4, 64), np.ones(64, "f"), np.zeros(64, "f")
    assert max(errors(loops.layer_norm, np, args)) < 1e-4


# --- linear layers, and two with a GELU between them ---------------------------------------------------------------


@given(st.lists(sizes(4), max_size=2), sizes(6), sizes(6), st.booleans(), seeds)
def test_linear(loops, leading, inputs, outputs, with_bias, seed):
    args = numbers(seed, *leading, inputs), numbers(seed + 1, outputs, inputs)
    args += (numbers(seed + 2, outputs),) if with_bias else ()
    assert max(errors(loops.linear, np, args)) < TOLERANCE


@pytest.mark.parametrize("trained", ["x", "weight", "bias"])
def test_linear_computes_what_is_wanted(trained):
    """Through the tape, which says what it wants: images want no gradient, frozen weights neither."""
    tensors = {"x": numbers(0, 3, 4), "weight": numbers(1, 2, 4), "bias": numbers(2, 2)}
    tensors = {name: Tensor(array, requires_grad=name == trained) for name, array in tensors.items()}
    ops.linear(*tensors.values()).sum().backward()
    right = {"x": np.ones((3, 2)) @ tensors["weight"].data, "weight": np.ones((2, 3)) @ tensors["x"].data, "bias": 3}
    np.testing.assert_allclose(tensors[trained].grad, np.broadcast_to(right[trained], tensors[trained].shape), 1e-5)


def perceptron(seed: int, *leading: int, inputs: int = 4, hidden: int = 6, outputs: int = 3) -> tuple[np.ndarray, ...]:
    shapes = (*leading, inputs), (hidden, inputs), (hidden,), (outputs, hidden), (outputs,)
    return tuple(numbers(seed + i, *shape) for i, shape in enumerate(shapes))


@given(st.lists(sizes(4), max_size=2), *(sizes(5) for _ in range(4)), st.booleans(), seeds)
def test_a_perceptron_some_rows_at_a_time(loops, leading, inputs, hidden, outputs, rows, large, seed):
    args = perceptron(seed, *leading, inputs=inputs, hidden=hidden, outputs=outputs)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"FEWEST": rows, "HIDDEN": 8, "LARGE": 0 if large else 100}.items():
            patch.setitem(loops.mlp.__globals__, name, value)
        agrees(loops.mlp, args)
        with no_grad():  # the same, by way of one block of the hidden layer
            tensors = (Tensor(x, requires_grad=True) for x in args)
            np.testing.assert_allclose(op(loops.mlp)(*tensors).data, loops.mlp(*args)[0], rtol=1e-5, atol=1e-6)


def test_without_a_way_back_a_perceptron_makes_one_block_of_its_hidden_layer(loops, monkeypatch):
    args, made, empty = perceptron(0, 7), [], np.empty
    monkeypatch.setitem(loops.mlp.__globals__, "FEWEST", 3)
    monkeypatch.setitem(loops.mlp.__globals__, "HIDDEN", 0)
    loops.mlp(*args)  # compiled before memory is counted
    monkeypatch.setattr(np, "empty", lambda shape, *rest: made.append(shape) or empty(shape, *rest))
    with no_grad():
        op(loops.mlp)(*map(Tensor, args))
    assert made == [(3, 6), (7, 3)]  # three of seven rows, and the result
    op(loops.mlp)(*(Tensor(x, requires_grad=True) for x in args))
    assert made[2:] == [(7, 6), (7, 3)]


@pytest.mark.parametrize("trained", range(5))
def test_a_perceptron_computes_what_is_wanted(loops, trained):
    args = perceptron(0, 3)
    tensors = [Tensor(x, requires_grad=i == trained) for i, x in enumerate(args)]
    y = op(loops.mlp)(*tensors)
    dy = numbers(9, *y.shape)
    cotangents, right = y.node.pullback(dy), ops.mlp.raw(*map(exact, args))[1](exact(dy))
    found = cotangents[trained]
    np.testing.assert_allclose(found, right[trained].reshape(-1, *found.shape).sum(0), rtol=1e-4, atol=1e-5)
    assert all(cotangents[factor] is None for factor in (0, 1, 3) if factor != trained)
    assert not any(np.may_share_memory(args[trained], array) for array in kept(y.node.pullback))


# --- attention -----------------------------------------------------------------------------------------------------


def attention(attend):
    """``ops.scaled_dot_product_attention.raw`` around another ``attend``, and with that for its formula."""

    def stand_in(q, k, v, bias=None, scale=None):
        o = np.empty(q.shape, q.dtype)
        pullback = attend(q, k, v, bias, scale, o)

        def pull(do):
            cotangents = [np.empty(x.shape, x.dtype) for x in (q, k, v)]
            dbias = pullback(do, *cotangents)
            return *cotangents, dbias

        return o, pull

    stand_in.formula = ops.scaled_dot_product_attention.raw
    return stand_in


@given(*(sizes(3) for _ in range(2)), *(sizes(6) for _ in range(3)), st.sampled_from([None, -1.5, 0.3]), seeds)
def test_attention(loops, batch, heads, queries, keys, width, scale, seed):
    shapes = (batch, heads, queries, width), *[(batch, heads, keys, width)] * 2
    args = tuple(numbers(seed + i, *shape) for i, shape in enumerate(shapes))
    assert max(errors(attention(loops.attend), np, args, scale=scale)) < 4 * TOLERANCE


def test_scores_of_any_size_are_no_danger(loops):
    args = tuple(numbers(i, 1, 2, 5, 4, scale=40) for i in range(3))
    assert max(errors(attention(loops.attend), np, args)) < 1e-4


def test_a_bias_on_the_scores_is_left_to_the_formula(loops):
    args = *(numbers(i, 1, 2, 5, 4) for i in range(3)), numbers(3, 1, 2, 5, 5)
    assert max(errors(attention(loops.attend), np, args)) < 4 * TOLERANCE


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_become_finite(loops, bad):
    """A training step looks for it: see ``training/step.py``."""
    q, k, v = (numbers(i, 1, 1, 3, 2) for i in range(3))
    q[0, 0, 1, 0] = x = bad
    row, ones, zeros = np.array([[1, x, 2]], np.float32), np.ones(3, "f"), np.zeros(3, "f")
    with np.errstate(all="ignore"):
        o = attention(loops.attend)(q, k, v)[0]
        assert not np.isfinite(loops.batch_norm(row.T)[0]).any()
        normed = [loops.layer_norm(row, ones, zeros)[0], loops.add_layer_norm(row, row, ones, zeros)[0][0]]
        linear = loops.linear(row, np.ones((1, 3), "f"))[0]
        mlp = loops.mlp(row, np.ones((2, 3), "f"), np.zeros(2, "f"), np.ones((1, 2), "f"), np.zeros(1, "f"))[0]
    assert not np.isfinite(o[0, 0, 1]).any() and np.isfinite(o[0, 0, [0, 2]]).all()
    assert not np.isfinite(normed).any() and not np.isfinite([linear, mlp]).any()


# --- AdamW, and what all have in common ----------------------------------------------------------------------------


@given(sizes(40), seeds)
def test_adamw(loops, size, seed):
    p, g, m = (numbers(seed + i, size) for i in range(3))
    v = numbers(seed + 3, size) ** 2
    figures = np.array([0.999, 0.9, 0.1, 0.95, 0.05, 1e-6, 1e-2], np.float32)
    right = [array.astype(float) for array in (p, g, m, v)]
    before = g.copy()
    adamw(figures.astype(float), None, *right)
    loops.adamw(figures, None, p, g, m, v)
    np.testing.assert_array_equal(g, before)
    for found, expected in zip((p, g, m, v), right):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def odd(kind: str, array: np.ndarray) -> np.ndarray:
    """The same numbers, float32 in a form that is no plain array in a row, or of another type."""
    match kind:
        case "float64":
            return array.astype(np.float64)
        case "backwards":
            return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
        case "every second":
            return np.repeat(array, 2, axis=-1)[..., ::2]
        case "columns":
            return np.asfortranarray(array)
        case "locked":
            array = array.copy()
            array.flags.writeable = False
            return array


def agrees(stand_in, args, plain=None, form=lambda dy: dy) -> None:
    """With the formula: numbers are near 1, so errors are absolute ones. ``plain`` are ``args`` in another form."""
    plain = args if plain is None else plain
    value, pullback = stand_in(*plain)
    assert {y.dtype for y in as_tuple(value)} == {plain[0].dtype}
    right, right_pullback = stand_in.formula(*map(exact, args))
    dys = [numbers(7 + i, *y.shape) for i, y in enumerate(as_tuple(right))]
    cotangents = as_tuple(pullback(*map(form, dys)))
    for found, expected in [
        *zip(as_tuple(value), as_tuple(right)),
        *zip(cotangents, as_tuple(right_pullback(*map(exact, dys)))),
    ]:
        if expected is not None:
            expected = expected if found.shape == expected.shape else expected.reshape(-1, *found.shape).sum(0)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["float64", "backwards", "every second", "columns", "locked"])
@pytest.mark.parametrize("name", ["gelu", "layer_norm", "add_layer_norm", "batch_norm", "linear", "mlp", "attend"])
def test_arrays_of_every_form(loops, name, kind):
    stand_in = getattr(loops, name)
    vector = numbers(9, 4)
    args = {
        "gelu": (numbers(0, 3, 4),),
        "layer_norm": (numbers(0, 3, 4), vector, vector),
        "add_layer_norm": (numbers(0, 3, 4), numbers(1, 3, 4), vector, vector),
        "batch_norm": (numbers(0, 3, 4, 2), vector, vector),
        "linear": (numbers(0, 2, 3, 4), numbers(1, 5, 4), numbers(2, 5)),
        "mlp": perceptron(0, 2, 3),
        "attend": tuple(numbers(i, 2, 3, 5, 4) for i in range(3)),
    }[name]
    stand_in = attention(stand_in) if name == "attend" else stand_in
    plain = tuple(odd(kind, array) for array in args)
    agrees(stand_in, args, plain, lambda dy: odd(kind, dy))
    for array, given_array in zip(plain, args):
        np.testing.assert_array_equal(array, given_array)  # nothing was written to


@pytest.mark.parametrize(
    "name, shapes, sentence",
    [
        ("layer_norm", [(2, 3), (4,), (4,)], r"weight and bias of shape \(3,\)"),
        ("add_layer_norm", [(2, 3), (1, 3), (3,), (3,)], r"arrays of one shape"),
        ("batch_norm", [(2, 3), (4,), (4,)], r"weight and bias of shape \(3,\)"),
        ("batch_norm", [(1, 3), (3,), (3,)], r"several values a channel"),
        ("batch_norm", [(3,), (3,), (3,)], r"batch_norm needs x"),
        ("linear", [(2, 3), (4, 5)], r"linear needs x"),
        ("linear", [(2, 3), (4, 3), (3,)], r"bias of shape \(4,\)"),
        ("mlp", [(2, 3), (4, 5), (4,), (2, 4), (2,)], r"linear needs x"),
        ("mlp", [(2, 3), (4, 3), (3,), (2, 4), (2,)], r"bias of shape \(4,\)"),
        ("mlp", [(2, 3), (4, 3), (4,), (2, 5), (2,)], r"linear needs x"),
        ("mlp", [(2, 3), (4, 3), (4,), (2, 4), (4,)], r"bias of shape \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_the_formula(loops, name, shapes, sentence):
    with pytest.raises(ValueError, match=sentence):
        getattr(loops, name)(*(np.ones(shape, np.float32) for shape in shapes))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (2, 0, 4)])
def test_nothing_is_left_to_the_formula(loops, shape):
    assert loops.gelu(np.ones(shape, np.float32))[0].shape == shape


def test_the_tanh_form_is_left_to_the_formula(loops):
    assert max(errors(loops.gelu, np, (numbers(0, 9),), approximate="tanh")) < TOLERANCE
    with pytest.raises(ValueError, match="approximate must be one of"):
        loops.gelu(np.ones(1, np.float32), "erf")


def test_without_a_way_back_gelu_makes_no_slope(loops, monkeypatch):
    x, made, empty_like = numbers(0, 5), [], np.empty_like
    right = loops.gelu(x)[0]
    monkeypatch.setattr(np, "empty_like", lambda array: made.append(1) or empty_like(array))
    with no_grad():
        np.testing.assert_allclose(op(loops.gelu)(Tensor(x)).data, right, rtol=1e-6)
    assert len(made) == 1
    op(loops.gelu)(Tensor(x, requires_grad=True))
    assert len(made) == 3


def test_a_wrong_loop_is_noticed(monkeypatch, capsys):
    """A tool that cannot report a survivor would prove nothing; ``python -m tests.loops.mutation`` tries them all."""
    from tests.loops import mutation

    monkeypatch.setattr(mutation, "NAMES", {"optim": ["adamw"]})
    assert mutation.main() == 0
    assert '"survived": 0}' in capsys.readouterr().out
    monkeypatch.setattr(mutation, "compare", lambda loops: None)
    assert mutation.main() == 1
    assert "survived, in _adamw:\n- m[i] = beta1 * m[i] + rest1 * g[i]\n+ pass" in capsys.readouterr().out
