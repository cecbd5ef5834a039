"""Rectified linear attention: its definition, exact zeros, and the norm that brings its sums to one size."""

import numpy as np
from hypothesis import given

from minivit import Tensor, ops
from minivit.nn import GatedRMSNorm, RectifiedAttention, observe
from tests.nn.test_gradients import randomise, tokens
from tests.strategies import arrays, generators


def by_hand(layer, x):
    """ReLU(q kᵀ / √d) v, image by image and head by head, then norm, gate and projection."""
    d, outs = layer.head_dim, []
    q, k, v = np.split(x @ layer.qkv.weight.data.T + layer.qkv.bias.data, 3, axis=-1)
    for h in range(layer.num_heads):
        at = slice(h * d, (h + 1) * d)
        scores = q[..., at] @ k[..., at].swapaxes(1, 2) / d**0.5
        outs.append(np.maximum(scores, 0) @ v[..., at])
    o = np.concatenate(outs, axis=-1)
    normal = o / np.sqrt((o * o).mean(-1, keepdims=True) + layer.norm.eps) * layer.norm.weight.data
    gated = normal / (1 + np.exp(-layer.norm.gate.data * o))
    return gated @ layer.proj.weight.data.T + layer.proj.bias.data


@given(tokens(6), generators)
def test_it_is_its_definition(x, rng):
    layer = randomise(RectifiedAttention(6, 2), rng)
    np.testing.assert_allclose(layer(Tensor(x)).data, by_hand(layer, x), rtol=1e-7, atol=1e-10)


def test_weights_are_exact_zeros_where_a_key_points_away_and_rows_need_not_sum_to_one():
    layer, seen = randomise(RectifiedAttention(6, 2), np.random.default_rng(0)), {}
    with observe(lambda module, inputs, output: seen.update({id(module): output})):
        layer(Tensor(np.random.default_rng(1).standard_normal((2, 7, 6))))
    weights = seen[id(layer.attn_drop)]
    assert 0.2 < (weights.data == 0).mean() < 0.8
    assert np.ptp(weights.data.sum(-1)) > 0.1
    ops.sum(weights).backward()
    assert layer.qkv.weight.grad is not None


def test_a_token_at_which_nobody_looks_back_gets_the_bias_of_the_projection_alone():
    layer = randomise(RectifiedAttention(4, 1), np.random.default_rng(0))
    layer.qkv.weight.data[4:8] = -layer.qkv.weight.data[:4]  # k = −q
    layer.qkv.bias.data[:8] = 0
    y = layer(Tensor(np.random.default_rng(1).standard_normal((1, 1, 4)))).data
    np.testing.assert_array_equal(y[0, 0], layer.proj.bias.data)


@given(arrays((3, 8)), generators)
def test_the_gated_norm_of_a_scaled_input_differs_by_its_gate_only(x, rng):
    layer = GatedRMSNorm(8, eps=1e-12)
    layer.weight.data = rng.standard_normal(8)
    np.testing.assert_allclose(layer(Tensor(1e3 * x)).data, layer(Tensor(x)).data, rtol=1e-7)


def test_parameters_start_as_the_docstring_says():
    norm = RectifiedAttention(4, 2).norm
    assert norm.weight.data.tolist() == [1, 1, 1, 1]
    assert norm.gate.data.tolist() == [0, 0, 0, 0]
