"""Multi-head attention against its definition, head by head, and what follows from it."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, ops
from minivit.nn import Attention, observe
from minivit.nn.position import ShawPosition
from minivit.random import sampling
from tests.nn.test_gradients import EPS, attentions, randomise, tokens
from tests.rules import cotangent
from tests.strategies import arrays, flags, generators


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def normalised(x, norm):
    """What ``LayerNorm`` makes of each row."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + norm.eps) * norm.weight.data + norm.bias.data


def one_head(layer, x, head):
    """softmax(q kᵀ / √d) v for one image (N, D) and one head, with the rows of the weights that belong to the head."""
    d = layer.head_dim
    rows = [slice(part * layer.width + head * d, part * layer.width + (head + 1) * d) for part in range(3)]
    q, k, v = (x @ layer.qkv.weight.data[at].T for at in rows)
    if layer.qkv.bias is not None:
        q, k, v = (z + layer.qkv.bias.data[at] for z, at in zip((q, k, v), rows))
    if layer.qk_norm:
        q, k = normalised(q, layer.q_norm), normalised(k, layer.k_norm)
    weights = softmax(q @ k.T / d**0.5)
    return weights, weights @ v


def by_hand(layer, x):
    """The layer's output for images of tokens (B, N, D), one image and one head at a time."""
    heads = [[one_head(layer, image, h)[1] for h in range(layer.num_heads)] for image in x]
    return np.stack([np.concatenate(row, axis=-1) for row in heads]) @ layer.proj.weight.data.T + layer.proj.bias.data


@given(attentions(), generators)
def test_it_is_its_definition_head_by_head(drawn, rng):
    layer, x = drawn
    randomise(layer.eval(), rng)
    np.testing.assert_allclose(layer(Tensor(x)).data, by_hand(layer, x), rtol=1e-9, atol=1e-12)


@given(tokens(6), flags, generators)
def test_with_one_head_it_is_single_head_attention(x, qkv_bias, rng):
    layer = randomise(Attention(6, 1, qkv_bias), rng)
    w, b = layer.qkv.weight.data, layer.qkv.bias.data if qkv_bias else np.zeros(18)
    q, k, v = x @ w[:6].T + b[:6], x @ w[6:12].T + b[6:12], x @ w[12:].T + b[12:]
    y = softmax(q @ k.swapaxes(1, 2) / np.sqrt(6)) @ v
    expected = y @ layer.proj.weight.data.T + layer.proj.bias.data
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, rtol=1e-9, atol=1e-12)


@given(tokens(6), flags, flags, generators)
def test_fused_and_composed_attention_agree_in_value_and_all_gradients(x, qkv_bias, qk_norm, rng):
    layer, results = randomise(Attention(6, 2, qkv_bias, qk_norm, norm_eps=EPS), rng), []
    for fused in (True, False):
        layer.fused_attn = fused
        layer.zero_grad()
        image = Tensor(x, requires_grad=True)
        y = layer(image)
        y.backward(cotangent(y.data))
        results.append([y.data, image.grad, *(p.grad for p in layer.parameters())])
    for fused, composed in zip(*results):
        np.testing.assert_allclose(fused, composed, rtol=1e-9, atol=1e-12)


@given(attentions(), generators)
def test_the_order_of_tokens_is_kept_and_makes_no_other_difference(drawn, rng):
    layer, x = drawn
    randomise(layer.eval(), rng)
    order = rng.permutation(x.shape[1])
    np.testing.assert_allclose(layer(Tensor(x[:, order])).data, layer(Tensor(x)).data[:, order], rtol=1e-9, atol=1e-12)


def channels_reached_by(layer, head):
    """Which channels of the other tokens make a difference to what this head says of the first one?"""
    dim = layer.qkv.weight.shape[1]
    d = dim // layer.num_heads
    layer.proj.weight.data = np.eye(dim)
    x = Tensor(np.random.default_rng(1).standard_normal((1, 3, dim)), requires_grad=True)
    ops.sum(layer(x)[:, 0, head * d : (head + 1) * d]).backward()
    return abs(x.grad[0, 1:]).sum(0) > 1e-9


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("head", [0, 1])
def test_every_head_sees_all_channels(head, fused):
    """Splitting the tokens before projecting them is another network: its projections are block-diagonal."""
    layer = randomise(Attention(6, 2), np.random.default_rng(0))
    layer.fused_attn = fused
    assert channels_reached_by(layer, head).all()

    blocks = np.kron(np.eye(2), np.ones((3, 3)))
    layer.qkv.weight.data = layer.qkv.weight.data * np.tile(blocks, (3, 1))
    assert channels_reached_by(layer, head).tolist() == [h == head for h in (0, 1) for _ in range(3)]


@given(tokens(6), generators)
def test_attention_weights_are_a_tensor_of_the_graph_that_a_loss_can_be_put_on(x, rng):
    layer, seen = randomise(Attention(6, 2), rng), {}
    layer.fused_attn = False
    with observe(lambda module, inputs, output: seen.update({id(module): output})):
        layer(Tensor(x))
    weights = seen[id(layer.attn_drop)]
    expected = np.stack([[one_head(layer, image, h)[0] for h in range(2)] for image in x])
    np.testing.assert_allclose(weights.data, expected, rtol=1e-9, atol=1e-12)
    ops.sum(weights * weights).backward()
    assert layer.qkv.weight.grad is not None and layer.proj.weight.grad is None


@pytest.mark.parametrize("training", [True, False])
def test_dropout_of_attention_weights_takes_the_path_of_small_ops_while_training(training):
    layer, seen = randomise(Attention(4, 2, attn_drop=0.5).train(training), np.random.default_rng(0)), []
    samples, x = np.arange(9), Tensor(np.random.default_rng(1).standard_normal((9, 5, 4)))
    with sampling(0, 0, samples), observe(lambda module, inputs, output: seen.append((module, inputs, output))):
        y = layer(x)
    masked = [(inputs[0].data, output.data) for module, inputs, output in seen if module is layer.attn_drop]
    if not training:
        assert masked == []
        np.testing.assert_allclose(y.data, by_hand(layer, x.data), rtol=1e-9)
        return
    ((before, after),) = masked
    assert 0.3 < (after == 0).mean() < 0.7
    np.testing.assert_allclose(after[after != 0], 2 * before[after != 0])
    v = np.split(layer.qkv(x).data, 3, axis=-1)[2].reshape(9, 5, 2, 2).swapaxes(1, 2)
    np.testing.assert_allclose(y.data, layer.proj(Tensor((after @ v).swapaxes(1, 2).reshape(9, 5, 4))).data, rtol=1e-9)


def test_dropout_of_the_output_comes_last():
    layer = randomise(Attention(4, 2, proj_drop=0.5), np.random.default_rng(0))
    x = Tensor(np.random.default_rng(1).standard_normal((9, 5, 4)))
    with sampling(0, 0, np.arange(9)):
        y = layer(x).data
    whole = layer.eval()(x).data
    assert 0.3 < (y == 0).mean() < 0.7
    np.testing.assert_allclose(y[y != 0], 2 * whole[y != 0])


@given(arrays((1, 4, 6)), st.floats(1, 1000), generators)
def test_with_qk_norm_the_length_of_queries_and_keys_does_not_matter(x, factor, rng):
    layer = randomise(Attention(6, 2, qk_norm=True, norm_eps=1e-12), rng)
    y = layer(Tensor(x)).data
    for part in range(2):
        layer.qkv.weight.data[6 * part : 6 * part + 6] *= factor
        layer.qkv.bias.data[6 * part : 6 * part + 6] *= factor
    np.testing.assert_allclose(layer(Tensor(x)).data, y, rtol=1e-6, atol=1e-9)


def test_parameters_have_timms_names_and_shapes():
    plain = {"qkv.weight": (18, 6), "qkv.bias": (18,), "proj.weight": (6, 6), "proj.bias": (6,)}
    norms = {f"{x}_norm.{name}": (3,) for x in "qk" for name in ("weight", "bias")}
    assert {name: p.shape for name, p in Attention(6, 2).named_parameters()} == plain
    assert {name: p.shape for name, p in Attention(6, 2, qk_norm=True).named_parameters()} == plain | norms
    assert "qkv.bias" not in dict(Attention(6, 2, qkv_bias=False).named_parameters())


@pytest.mark.parametrize(("dim", "heads"), [(6, 4), (2, 4), (6, 0)])
def test_heads_that_do_not_divide_the_width_get_a_sentence(dim, heads):
    with pytest.raises(ValueError, match=f"num_heads {heads} must divide dim {dim}"):
        Attention(dim, heads)


def test_flops_with_shaw_are_those_of_its_vectors_too():
    """2 · 3 + 1 for keys and as many for values, beside five keys and five values."""
    plain, shaw = Attention(12, 3), Attention(12, 3, rel_pos=partial(ShawPosition, (2, 2), 1, max_distance=3))
    x = Tensor(np.ones((2, 5, 12), np.float32))
    assert shaw.flops((x,), shaw(x)) * 10 == plain.flops((x,), plain(x)) * (10 + 14)


def test_flops_are_those_of_the_two_products_of_every_head():
    layer, x = Attention(6, 2), Tensor(np.ones((2, 5, 6), np.float32))
    q_k = a_v = 2 * (2 * 2) * 5 * 5 * 3  # a multiply-add is two; images × heads, queries, keys, channels
    assert layer.flops((x,), layer(x)) == q_k + a_v
