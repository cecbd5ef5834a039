import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.nn import Identity, LayerNorm, LayerScale
from tests.nn.test_gradients import randomise
from tests.strategies import arrays, generators, some_axes


@given(some_axes.flatmap(arrays), st.sampled_from([1e-6, 1e-5, 0.5]), generators)
def test_layer_norm_is_its_formula(x, eps, rng):
    layer = randomise(LayerNorm(x.shape[-1], eps), rng)
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)  # biased
    expected = centred / np.sqrt(variance + eps) * layer.weight.data + layer.bias.data
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, rtol=1e-9, atol=1e-12)


@given(generators, st.floats(0.5, 100), st.floats(-100, 100))
def test_every_token_comes_out_with_mean_0_and_variance_1_whatever_its_scale_and_offset(rng, scale, offset):
    x, layer = rng.standard_normal((3, 4, 16)), LayerNorm(16).astype(np.float64)
    y = layer(Tensor(scale * x + offset)).data
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(-1), 1, rtol=1e-4)
    np.testing.assert_allclose(y, layer(Tensor(x)).data, rtol=1e-4, atol=1e-6)


def test_layer_norm_starts_with_weight_1_and_bias_0():
    layer = LayerNorm(3)
    assert layer.eps == 1e-6
    np.testing.assert_array_equal(layer.weight.data, np.ones(3, np.float32))
    np.testing.assert_array_equal(layer.bias.data, np.zeros(3, np.float32))


@given(some_axes.flatmap(arrays), generators)
def test_layer_scale_multiplies_each_channel_by_its_own_factor(x, rng):
    layer = randomise(LayerScale(x.shape[-1]), rng)
    np.testing.assert_array_equal(layer(Tensor(x)).data, x * layer.gamma.data)


def test_layer_scale_starts_at_its_init_values():
    np.testing.assert_array_equal(LayerScale(3, 0.25).gamma.data, np.full(3, 0.25, np.float32))
    np.testing.assert_array_equal(LayerScale(2).gamma.data, np.full(2, 1e-5, np.float32))


def test_identity_gives_back_the_object_that_it_was_given():
    x = Tensor([1.0])
    assert Identity()(x) is x
