import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, ops
from minivit.nn import Dropout, Mlp
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


def test_an_unknown_activation_gets_the_list():
    with pytest.raises(ValueError, match="act must be one of gelu, gelu_tanh, relu, got 'swish'"):
        Mlp(2, 4, act="swish")
