"""The flat layout: views, groups, and every way in which it can be misused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Parameter
from minivit.optim import FlatParameters, weight_decay_groups
from minivit.optim.parameters import ALIGNMENT, BLOCK_BYTES
from minivit.random import generator

SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**32 - 1)
BLOCK = BLOCK_BYTES // 4  # elements of float32


def named_parameters(shapes, seed=0, dtype=np.float32):
    rng = generator(seed, "test")
    return [(f"layer{i}.weight", Parameter(rng.normal(size=s).astype(dtype))) for i, s in enumerate(shapes)]


@given(SHAPES, st.integers(0, 5), SEEDS)
def test_parameters_and_buffers_are_the_same_memory(shapes, cut, seed):
    named = named_parameters(shapes, seed)
    before = [p.data.copy() for _, p in named]
    flat = FlatParameters([{"params": named[:cut]}, {"params": named[cut:]}])
    for (_, p), old in zip(named, before):
        assert p.data.dtype == p.grad.dtype == old.dtype
        np.testing.assert_array_equal(p.data, old)
        np.testing.assert_array_equal(p.grad, np.zeros_like(old))
        assert np.shares_memory(p.data, flat.data) and np.shares_memory(p.grad, flat.grad)
    flat.data += 1
    for (_, p), old in zip(named, before):
        np.testing.assert_array_equal(p.data, old + 1)
        p.grad += 2
    assert flat.grad.sum() == 2 * sum(p.size for _, p in named)
    flat.zero_grad()
    assert not flat.grad.any()


@given(SHAPES, st.integers(0, 5))
def test_groups_are_consecutive_and_parameters_aligned(shapes, cut):
    named = named_parameters(shapes)
    flat = FlatParameters([{"params": named[:cut], "lr_scale": 0.5}, {"params": named[cut:]}])
    first, second = flat.groups
    assert first["slice"].start == 0 and first["slice"].stop == second["slice"].start
    assert second["slice"].stop == flat.data.size == flat.grad.size
    assert first["params"] == [name for name, _ in named[:cut]] and first["lr_scale"] == 0.5
    for name, view in flat.views(np.arange(flat.data.size)).items():
        start = view.ravel()[0]
        assert start % ALIGNMENT == 0
        np.testing.assert_array_equal(view.ravel(), np.arange(start, start + view.size))
        group = first if name in first["params"] else second
        assert group["slice"].start <= start and start + view.size <= group["slice"].stop


@given(st.integers(1, 3 * BLOCK), st.integers(0, 100))
def test_blocks_cover_a_slice_once(size, start):
    flat = FlatParameters([Parameter(np.zeros(start + size, np.float32))])
    blocks = list(flat.blocks(slice(start, start + size)))
    assert [i for b in blocks for i in (b.start, b.stop)][1:-1] == [b.stop for b in blocks[:-1] for _ in range(2)]
    assert blocks[0].start == start and blocks[-1].stop == start + size
    assert all(0 < b.stop - b.start <= BLOCK for b in blocks)


@given(SHAPES, SEEDS)
def test_export_and_load_are_inverse(shapes, seed):
    flat = FlatParameters(named_parameters(shapes, seed))
    exported = flat.export(flat.data)
    flat.data[:] = 0
    assert any(array.any() for array in exported.values()), "export must copy"
    flat.load(flat.data, exported, "data")
    for name, array in exported.items():
        np.testing.assert_array_equal(flat.parameters[name].data, array)


def test_load_refuses_other_parameters():
    flat = FlatParameters(named_parameters([(2,), (3,)]))
    with pytest.raises(ValueError, match=r"exp_avg is for other parameters: layer1.weight is on one side only"):
        flat.load(flat.data, {"layer0.weight": np.zeros(2)}, "exp_avg")
    wrong = {"layer0.weight": np.ones(2), "layer1.weight": np.ones(4)}
    before = flat.data.copy()
    with pytest.raises(ValueError, match=r"exp_avg of layer1.weight has shape \(4,\), the parameter \(3,\)"):
        flat.load(flat.data, wrong, "exp_avg")
    np.testing.assert_array_equal(flat.data, before)


def test_backward_adds_into_the_flat_gradient():
    p = Parameter([1.0, 2.0])
    flat = FlatParameters([p])
    for _ in range(2):
        (p * p).sum().backward()
    np.testing.assert_array_equal(flat.grad[:2], [4.0, 8.0])


def test_a_shared_parameter_is_laid_out_once():
    p = Parameter([1.0, 2.0])
    flat = FlatParameters([("encoder.weight", p), ("decoder.weight", p)])
    assert list(flat.parameters) == ["encoder.weight"] and flat.data.size == ALIGNMENT


def test_frozen_parameters_are_left_out():
    frozen = Parameter([1.0], requires_grad=False)
    flat = FlatParameters([("a", Parameter([1.0])), ("b", frozen)])
    assert list(flat.parameters) == ["a"] and frozen.grad is None


def test_parameters_without_names_are_numbered():
    assert list(FlatParameters([Parameter([1.0]), Parameter([2.0])]).parameters) == ["0", "1"]


def test_refusals_are_sentences():
    p = Parameter([1.0])
    with pytest.raises(ValueError, match="nothing to train"):
        FlatParameters([])
    with pytest.raises(ValueError, match="nothing to train"):
        FlatParameters([Parameter([1.0], requires_grad=False)])
    with pytest.raises(ValueError, match="parameter b is in group 0 and in group 1"):
        FlatParameters([{"params": [("a", p)]}, {"params": [("b", p)]}])
    with pytest.raises(ValueError, match="two parameters are named a"):
        FlatParameters([("a", p), ("a", Parameter([1.0]))])
    with pytest.raises(TypeError, match=r"a is float32 on cpu and b is float64 on cpu"):
        FlatParameters([("a", p), ("b", Parameter(np.zeros(2)))])
    with pytest.raises(TypeError, match="trains Parameters, got ndarray in group 0"):
        FlatParameters([np.zeros(2)])


def test_replaced_data_and_gradients_are_noticed():
    p = Parameter([1.0])
    flat = FlatParameters([("weight", p)])
    flat.check()
    p.grad = None
    with pytest.raises(RuntimeError, match=r"gradient of weight was replaced .* optimizer.zero_grad\(\)"):
        flat.check()
    flat.zero_grad()
    flat.check()
    p.data = p.data.copy()
    with pytest.raises(RuntimeError, match=r"data of weight was replaced .* before making the optimizer"):
        flat.check()


def test_weight_decay_groups():
    shapes = {
        "cls_token": (1, 1, 4), "pos_embed": (1, 5, 4), "encoder.reg_token": (1, 2, 4), "odd.bias": (2, 2),
        "blocks.0.attn.qkv.weight": (12, 4), "blocks.0.attn.qkv.bias": (12,), "blocks.0.norm1.weight": (4,),
        "patch_embed.proj.weight": (4, 3, 2, 2),
    }  # fmt: skip

    class Model:
        def named_parameters(self):
            return iter([(name, Parameter(np.zeros(shape, np.float32))) for name, shape in shapes.items()])

    decayed, kept = weight_decay_groups(Model(), 0.05)
    assert [name for name, _ in decayed["params"]] == ["blocks.0.attn.qkv.weight", "patch_embed.proj.weight"]
    assert decayed["weight_decay"] == 0.05 and kept["weight_decay"] == 0
    assert len(kept["params"]) == len(shapes) - 2
    FlatParameters([decayed, kept])


def test_weight_decay_groups_leaves_out_an_empty_group():
    class Model:
        def named_parameters(self):
            return iter([("bias", Parameter([1.0]))])

    assert [group["weight_decay"] for group in weight_decay_groups(Model(), 0.1)] == [0.0]
