import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.ops import concatenate, scaled_dot_product_attention, self_attention
from tests.strategies import CASES, generators


@given(CASES["self_attention"])
def test_self_attention_is_attention_on_the_cut_projections(case):
    """qkv (B, N, 3D) holds q, k and v one after another, each with its heads side by side."""
    (qkv,), heads, scale = case.args, case.options["num_heads"], case.options["scale"]
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = (part.reshape(batch, tokens, heads, -1).swapaxes(1, 2) for part in np.split(qkv, 3, axis=2))
    expected = scaled_dot_product_attention.raw(q, k, v, scale=scale)[0].swapaxes(1, 2).reshape(batch, tokens, width)
    np.testing.assert_allclose(self_attention.raw(qkv, heads, scale)[0], expected, rtol=1e-12)


@given(CASES["scaled_dot_product_attention"], generators)
def test_the_order_of_keys_does_not_matter_and_that_of_queries_is_kept(case, rng):
    q, k, v = case.args[:3]
    out = scaled_dot_product_attention.raw(q, k, v)[0]
    keys, queries = rng.permutation(k.shape[2]), rng.permutation(q.shape[2])
    mixed = scaled_dot_product_attention.raw(q[:, :, queries], k[:, :, keys], v[:, :, keys])[0]
    np.testing.assert_allclose(mixed, out[:, :, queries], rtol=1e-10, atol=1e-12)


@given(CASES["scaled_dot_product_attention"])
def test_equal_values_come_out_as_they_are(case):
    """The rows of A sum to 1: a value that all tokens share is its own average."""
    q, k = case.args[:2]
    out = scaled_dot_product_attention.raw(q, k, np.full(k.shape, 3.0))[0]
    np.testing.assert_allclose(out, 3.0, rtol=1e-14)


def test_the_default_scale_is_one_over_the_root_of_the_head_width():
    q = np.random.default_rng(0).standard_normal((1, 1, 3, 4))
    for op, args in ((scaled_dot_product_attention, (q, q, q)), (self_attention, (q[0].repeat(6, -1), 2))):
        np.testing.assert_array_equal(op.raw(*args)[0], op.raw(*args, scale=0.5)[0])


def test_large_scores_do_not_overflow():
    q = Tensor(np.full((1, 1, 2, 1), 1e4, np.float32))
    assert np.isfinite(scaled_dot_product_attention(q, q, q).data).all()


@given(st.sampled_from([(1, 2, 3), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 3, 5)]))
def test_shapes_that_do_not_fit(wrong):
    q, other = Tensor(np.ones((1, 2, 3, 4))), Tensor(np.ones(wrong))
    with pytest.raises(ValueError, match=r"q \(B, H, N, d\), k and v \(B, H, M, d\), got"):
        scaled_dot_product_attention(q, other, other)
    with pytest.raises(ValueError, match=r"q \(B, H, N, d\), k and v \(B, H, M, d\), got"):
        scaled_dot_product_attention(q, q, other)


def test_a_key_with_a_bias_of_minus_infinity_is_not_there():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 2, 4, 3))
    bias = np.array([0.0, 0.0, -np.inf, 0.0])
    alone = scaled_dot_product_attention.raw(q, k[:, :, [0, 1, 3]], v[:, :, [0, 1, 3]])[0]
    np.testing.assert_allclose(scaled_dot_product_attention.raw(q, k, v, bias)[0], alone, rtol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 1, 1, 1, 1), (3, 1, 1, 1)])
def test_a_bias_that_does_not_fit(shape):
    q, k = np.zeros((2, 2, 3, 3)), np.zeros((2, 2, 4, 3))
    with pytest.raises(ValueError, match=r"a bias like its scores \(2, 2, 3, 4\), got"):
        scaled_dot_product_attention.raw(q, k, k, np.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 5, 10), (5, 12), (1, 5, 6)])
def test_widths_that_the_heads_do_not_divide(shape):
    with pytest.raises(ValueError, match=r"qkv \(B, N, 3D\), D a multiple of num_heads=4, got"):
        self_attention(Tensor(np.ones(shape)), num_heads=4)


def test_one_tensor_may_be_query_key_and_value():
    x = Tensor(np.random.default_rng(0).standard_normal((1, 1, 3, 2)), requires_grad=True)
    packed = Tensor(x.data[:, 0], requires_grad=True)
    scaled_dot_product_attention(x, x, x).sum().backward()
    self_attention(concatenate(packed, packed, packed, axis=-1), 1).sum().backward()
    np.testing.assert_allclose(x.grad[:, 0], packed.grad, rtol=1e-12)
