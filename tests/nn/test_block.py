"""The residual block: two branches that add to what was there."""

import numpy as np
import pytest
from hypothesis import given

from minivit import Tensor
from minivit.nn import Block, DropPath, LayerScale, observe
from minivit.random import sampling
from tests.nn.test_gradients import blocks, randomise, tokens
from tests.strategies import generators


@given(blocks(), generators)
def test_it_is_the_sum_of_its_input_and_two_normalised_branches(drawn, rng):
    block, x = drawn
    randomise(block.eval(), rng)
    gamma1, gamma2 = (ls.gamma.data if isinstance(ls, LayerScale) else 1 for ls in (block.ls1, block.ls2))
    z = x + gamma1 * block.attn(block.norm1(Tensor(x))).data
    z = z + gamma2 * block.mlp(block.norm2(Tensor(z))).data
    np.testing.assert_allclose(block(Tensor(x)).data, z, rtol=1e-12, atol=1e-14)


@given(blocks(), generators)
def test_with_nothing_at_the_end_of_both_branches_it_is_the_identity(drawn, rng):
    block, x = drawn
    randomise(block, rng)
    for layer in (block.attn.proj, block.mlp.fc2):
        for parameter in layer.parameters():
            parameter.data[...] = 0
    np.testing.assert_array_equal(block(Tensor(x)).data, x)


@given(tokens(4), generators)
def test_layer_scale_at_zero_makes_it_the_identity(x, rng):
    block = randomise(Block(4, 2, init_values=0.1), rng)
    block.ls1.gamma.data[...] = block.ls2.gamma.data[...] = 0
    np.testing.assert_array_equal(block(Tensor(x)).data, x)


@given(blocks(), generators)
def test_the_order_of_tokens_is_kept_and_makes_no_other_difference(drawn, rng):
    block, x = drawn
    randomise(block.eval(), rng)
    order = rng.permutation(x.shape[1])
    np.testing.assert_allclose(block(Tensor(x[:, order])).data, block(Tensor(x)).data[:, order], rtol=1e-9, atol=1e-12)


def test_drop_path_skips_each_branch_of_a_sample_on_its_own():
    """A sample goes through both branches, the first only, the second only, or none; what stays is doubled."""
    block, x = randomise(Block(4, 2, drop_path=0.5), np.random.default_rng(0)), np.ones((40, 3, 4))
    x[...] = np.random.default_rng(1).standard_normal(4)
    with sampling(0, 0, np.arange(40)):
        y = block(Tensor(x)).data
    block.eval()
    after = {}
    for first in (0, 2):
        z = x[0] + first * block.attn(block.norm1(Tensor(x[:1]))).data[0]
        for second in (0, 2):
            after[first, second] = z + second * block.mlp(block.norm2(Tensor(z[None]))).data[0]
    ways = [[way for way, z in after.items() if np.allclose(sample, z, rtol=1e-10)] for sample in y]
    assert all(len(way) == 1 for way in ways)
    assert {way[0] for way in ways} == set(after)


def test_branches_are_scaled_then_dropped():
    """With LayerScale outermost a dropped branch would still be 0, and a kept one the same; the order is timm's."""
    block, order = Block(4, 2, init_values=0.1, drop_path=0.1), []
    with observe(lambda module, inputs, output: order.append(module)):
        block(Tensor(np.ones((1, 2, 4), np.float32)))
    parts = [block.norm1, block.attn, block.ls1, block.drop_path1, block.norm2, block.mlp, block.ls2, block.drop_path2]
    assert [module for module in order if module in parts] == parts


@pytest.mark.parametrize(("mlp_ratio", "hidden"), [(4.0, 24), (2.5, 15), (0.5, 3)])
def test_the_hidden_width_is_the_ratio_of_the_width(mlp_ratio, hidden):
    assert Block(6, 2, mlp_ratio).mlp.fc1.weight.shape == (hidden, 6)


def test_options_reach_the_parts():
    block = Block(
        8, 2, qkv_bias=False, qk_norm=True, proj_drop=0.1, attn_drop=0.2, init_values=0.3, drop_path=0.4, norm_eps=0.5,
        act="relu",
    )  # fmt: skip
    assert block.attn.qkv.bias is None
    assert {n.eps for n in (block.norm1, block.norm2, block.attn.q_norm, block.attn.k_norm)} == {0.5}
    assert {d.p for d in (block.attn.proj_drop, block.mlp.drop1, block.mlp.drop2)} == {0.1}
    assert block.attn.attn_drop.p == 0.2
    assert (block.ls1.gamma.data == np.float32(0.3)).all()
    assert (type(block.drop_path1), block.drop_path1.p, block.drop_path2.p) == (DropPath, 0.4, 0.4)
    assert block.mlp.act == "relu"
