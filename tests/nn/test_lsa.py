"""Locality self-attention: nobody looks at itself, and the temperature is learned."""

import numpy as np
import pytest
from hypothesis import given

from minivit import Tensor, ops
from minivit.nn import Attention, LocalitySelfAttention, observe
from tests.nn.test_gradients import randomise, tokens
from tests.strategies import generators


def weights_of(layer, x):
    seen = {}
    layer.fused_attn = False
    with observe(lambda module, inputs, output: seen.update({id(module): output.data})):
        layer(Tensor(x))
    return seen[id(layer.attn_drop)]


@given(tokens(6), generators)
def test_weights_are_the_softmax_of_the_tempered_scores_without_the_diagonal(x, rng):
    layer = randomise(LocalitySelfAttention(6, 2), rng)
    q, k, _ = np.split(x @ layer.qkv.weight.data.T + layer.qkv.bias.data, 3, axis=-1)
    for h, found in enumerate(weights_of(layer, x).swapaxes(0, 1)):
        scores = q[..., 3 * h : 3 * h + 3] @ k[..., 3 * h : 3 * h + 3].swapaxes(1, 2)
        powers = np.exp(scores * np.exp(layer.temperature.data)) * (1 - np.eye(x.shape[1]))
        if x.shape[1] > 1:
            np.testing.assert_allclose(found, powers / powers.sum(-1, keepdims=True), rtol=1e-9, atol=1e-15)
            assert (np.diagonal(found, axis1=1, axis2=2) == 0).all()


@given(tokens(6), generators)
def test_fused_and_composed_agree_in_value_and_all_gradients(x, rng):
    layer, results = randomise(LocalitySelfAttention(6, 2), rng), []
    for fused in (True, False):
        layer.fused_attn = fused
        layer.zero_grad()
        ops.sum(layer(Tensor(x))[..., :3]).backward()
        results.append([p.grad for p in layer.parameters()])
    for fused, composed in zip(*results):
        np.testing.assert_allclose(fused, composed, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("queries", [1, 2])
def test_the_first_tokens_alone_see_the_same(queries):
    layer = randomise(LocalitySelfAttention(6, 2), np.random.default_rng(0))
    x = Tensor(np.random.default_rng(1).standard_normal((2, 4, 6)))
    np.testing.assert_allclose(layer(x, queries=queries).data, layer(x).data[:, :queries], rtol=1e-12)


def test_the_temperature_starts_at_attentions_own_scale_and_learns():
    layer = LocalitySelfAttention(32, 2)
    assert layer.temperature.shape == ()
    assert np.exp(layer.temperature.data) == pytest.approx(1 / 4)
    ops.sum(layer(Tensor(np.random.default_rng(0).standard_normal((1, 4, 32), np.float32)))[:, 0, :5]).backward()
    assert layer.temperature.grad.shape == () and layer.temperature.grad != 0


def test_a_single_token_has_nobody_but_itself():
    layer, plain = LocalitySelfAttention(6, 2), Attention(6, 2)
    plain.load_state_dict({n: x for n, x in layer.state_dict().items() if n != "temperature"})
    x = Tensor(np.ones((2, 1, 6), np.float32))
    np.testing.assert_allclose(layer(x).data, plain(x).data, rtol=1e-5)
