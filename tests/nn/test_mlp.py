import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, ops
from minivit.nn import Dropout, Linear, Mlp, observe
from minivit.random import sampling
from tests.nn.test_gradients import randomise, tokens
from tests.strategies import generators, sizes

ACTS = {
    "gelu": lambda x: ops.gelu.raw(x)[0],
    "gelu_tanh": lambda x: ops.gelu.raw(x, approximate="tanh")[0],
    "relu": lambda x: np.maximum(x, 0),
}


@given(tokens(3), sizes, st.sampled_from(list(ACTS)), generators)
def test_it_is_its_formula_token_by_token(x, hidden, act, rng):
    mlp = randomise(Mlp(3, hidden, act), rng)
    w1, b1, w2, b2 = (p.data for p in mlp.parameters())
    assert (w1.shape, w2.shape) == ((hidden, 3), (3, hidden))
    for token, y in zip(x.reshape(-1, 3), mlp(Tensor(x)).data.reshape(-1, 3)):
        np.testing.assert_allclose(y, w2 @ ACTS[act](w1 @ token + b1) + b2, rtol=1e-10, atol=1e-12)


def test_the_activations_differ_and_the_exact_gelu_is_the_default():
    mlps = {act: randomise(Mlp(3, 8, act), np.random.default_rng(0)) for act in ACTS}
    x = Tensor(np.random.default_rng(1).standard_normal((5, 3)))
    default = randomise(Mlp(3, 8), np.random.default_rng(0))(x).data
    outputs = {act: mlp(x).data for act, mlp in mlps.items()}
    assert [act for act, y in outputs.items() if (y == default).all()] == ["gelu"]


def test_dropout_comes_after_the_activation_and_at_the_end():
    mlp, x = randomise(Mlp(4, 6, drop=0.5), np.random.default_rng(0)), Tensor(np.ones((8, 2, 4)))
    drop, samples = Dropout(0.5), np.arange(8)
    with sampling(0, 0, samples):
        y = mlp(x)
    with sampling(0, 0, samples):
        expected = drop(mlp.fc2(drop(ops.gelu(mlp.fc1(x)))))
    np.testing.assert_array_equal(y.data, expected.data)
    assert (y.data == 0).any() and (mlp.eval()(x).data != 0).all()


class Other(Linear):
    """A layer that somebody put in the place of another."""

    def forward(self, x):
        return 2 * super().forward(x)


def without_bias(mlp):
    mlp.fc1.bias = None


def exchanged(mlp):
    mlp.fc2 = randomise(Other(6, 4), np.random.default_rng(0))


CHANGES = {  # what is done to Mlp(4, 6), in training mode, and whether one op computes it then
    "as it is": ({}, lambda mlp: None, True),
    "dropout": ({"drop": 0.5}, lambda mlp: None, False),
    "dropout in evaluation mode": ({"drop": 0.5}, lambda mlp: mlp.eval(), True),
    "another activation": ({"act": "relu"}, lambda mlp: None, False),
    "no bias": ({}, without_bias, False),
    "another layer": ({}, exchanged, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_op_computes_it_where_that_is_faster_and_no_different(change, monkeypatch):
    options, done, fused = CHANGES[change]
    mlp, x = randomise(Mlp(4, 6, **options), np.random.default_rng(0)), Tensor(np.ones((8, 2, 4)), requires_grad=True)
    done(mlp)
    found = {}
    for stand_in in ({}, {ops.mlp.raw: lambda *args: ops.mlp.raw(*args)}):
        monkeypatch.setattr("minivit.backend.LOOPS", stand_in)
        mlp.zero_grad()
        x.grad = None
        with sampling(0, 0, np.arange(8)):
            y = mlp(x)
        assert (y.node.op == "mlp") == (fused and bool(stand_in))
        y.sum().backward()
        found[bool(stand_in)] = [y.data, x.grad, *(p.grad for p in mlp.parameters())]
    for ours, theirs in zip(*found.values()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_who_observes_sees_each_layer(monkeypatch):
    monkeypatch.setattr("minivit.backend.LOOPS", {ops.mlp.raw: lambda *args: ops.mlp.raw(*args)})
    mlp, seen = Mlp(4, 6), []
    with observe(lambda module, inputs, output: seen.append(module)):
        mlp(Tensor(np.ones((2, 4))))
    assert seen == [mlp.fc1, mlp.drop1, mlp.fc2, mlp.drop2, mlp]


def test_an_unknown_activation_gets_the_list():
    with pytest.raises(ValueError, match="act must be one of gelu, gelu_tanh, relu, got 'swish'"):
        Mlp(2, 4, act="swish")
