"""A pruned network computes what the whole one computes with those heads' outputs at zero, with less."""

import copy
import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.analysis.head_importance import gated
from minivit.data import Batch
from minivit.models import VisionTransformer, create_model
from minivit.models.pruning import head_arguments, lowest_heads, prune_heads
from minivit.nn import Attention
from minivit.nn.heads import outlet
from minivit.nn.lsa import LocalitySelfAttention
from minivit.nn.position import RELATIVE, relative_position
from minivit.nn.rela import RectifiedAttention
from minivit.objective import Classification
from minivit.optim import AdamW
from minivit.training import load_model, save_checkpoint, train_step
from tests.cupy_twin import wrap
from tests.models.test_vit import images, networks, small
from tests.nn.test_gradients import randomise
from tests.rules import cotangent
from tests.strategies import flags, generators


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


@st.composite
def removals(draw, heads):
    """{layer: heads}, of layers with so many heads, one of which stays."""
    return {
        layer: draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count - 1))
        for layer, count in enumerate(heads)
        if draw(flags)
    }


def gates_at_zero(heads, removed):
    gates = [np.ones(count) for count in heads]
    for layer, gone in removed.items():
        gates[layer][gone] = 0
    return gates


def value_and_gradients(model, x):
    x = Tensor(x, requires_grad=True)
    gradients = {}
    y = model(x)
    y.backward(cotangent(y.data), into=gradients)
    return y.data, gradients[x], gradients


three_heads = networks(num_heads=3, embed_dim=24)  # 8 channels a head, as rotary positions need a multiple of 4


@given(three_heads, flags, st.data())
def test_it_computes_what_the_whole_network_does_with_gates_at_zero(drawn, fused, data):
    """Under all options: biases, qk_norm, LayerScale, registers, every pool; the gradient of the images too.

    Rectified attention has a norm over all heads: equal but for its eps, which stays while the mean grows.
    """
    model, x = drawn
    for block in model.eval().blocks:
        block.attn.fused_attn = fused
        if outlet(block.attn) == "norm":
            block.attn.norm.eps = 1e-30
    heads = [3] * len(model.blocks)
    removed = data.draw(removals(heads))
    pruned = prune_heads(model, removed)
    value, dx, gradients = value_and_gradients(pruned, x)
    with gated(model, gates_at_zero(heads, removed)):
        expected = value_and_gradients(model, x)
    close(value, expected[0])
    close(dx, expected[1])
    close(gradients[pruned.patch_embed.proj.weight], expected[2][model.patch_embed.proj.weight])
    with gated(model, gates_at_zero(heads, removed)):
        close(pruned.forward_features(x).data, model.forward_features(x).data)


@pytest.mark.parametrize("kind", [Attention, RectifiedAttention, LocalitySelfAttention])
@given(rng=generators, qk_norm=flags, data=st.data())
def test_every_kind_of_attention(kind, rng, qk_norm, data):
    layer = randomise(kind(12, 4, True, qk_norm, norm_eps=1e-30), rng)
    removed, x = data.draw(removals([4])), Tensor(rng.standard_normal((2, 5, 12)))
    with gated(layer, gates_at_zero([4], removed)):
        expected = layer(x).data
    close(prune_heads(layer, removed)(x).data, expected)


def test_rows_and_columns_are_gone():
    model = small()
    pruned = prune_heads(model, {1: [0, 2]})
    attn = pruned.blocks[1].attn
    assert (attn.num_heads, attn.qkv.weight.shape, attn.qkv.bias.shape) == (1, (12, 12), (12,))
    assert attn.proj.weight.shape == (12, 4) and attn.proj.bias.shape == (12,)
    rows = [*range(4, 8), *range(16, 20), *range(28, 32)]  # the second head's q, k and v
    np.testing.assert_array_equal(attn.qkv.weight.data, model.blocks[1].attn.qkv.weight.data[rows])
    np.testing.assert_array_equal(attn.qkv.bias.data, model.blocks[1].attn.qkv.bias.data[rows])
    np.testing.assert_array_equal(attn.proj.weight.data, model.blocks[1].attn.proj.weight.data[:, 4:8])
    assert attn.proj.weight.data.flags.c_contiguous
    assert model.num_parameters() - pruned.num_parameters() == 2 * 4 * (3 * (12 + 1) + 12)
    assert pruned.blocks[0].attn.num_heads == 3


def test_the_model_itself_is_left_alone():
    model, x = small(), images()
    before, y = model.state_dict(), model(x).data
    pruned = prune_heads(model, {0: [0], 1: [1]})
    for p in pruned.parameters():
        p.data += 1
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(model(x).data, y)


def test_nothing_removed_is_a_copy():
    model, x = small(), images()
    for removed in ({}, {0: []}):
        np.testing.assert_array_equal(prune_heads(model, removed)(x).data, model(x).data)


def test_heads_are_numbered_anew():
    model, x = small(), images()
    twice = prune_heads(prune_heads(model, {0: [0]}), {0: [1]})
    np.testing.assert_array_equal(twice(x).data, prune_heads(model, {0: [0, 2]})(x).data)


@pytest.mark.parametrize("name", RELATIVE)
@given(rng=generators, queries=st.sampled_from([None, 1]), data=st.data())
def test_every_relative_position(name, rng, queries, data):
    """Tables of each head go with it, and tables that heads share stay."""
    layer = Attention(12, 3, rel_pos=partial(relative_position, name, (2, 2), 1))
    randomise(layer, rng)
    removed, x = data.draw(removals([3])), Tensor(rng.standard_normal((2, 5, 12)))
    with gated(layer, gates_at_zero([3], removed)):
        expected = layer(x, queries=queries).data
    pruned = prune_heads(layer, removed)
    close(pruned(x, queries=queries).data, expected)
    alike = relative_position(name, (2, 2), prefix_tokens=1, num_heads=pruned.num_heads, head_dim=4)
    assert [p.shape for p in pruned.rel_pos.parameters()] == [p.shape for p in alike.parameters()]


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({2: [0]}, "there is no attention layer 2: VisionTransformer has 0 … 1"),
        ({-1: [0]}, "there is no attention layer -1"),
        ({1: [0, 3]}, "layer 1 has no head 3: its heads are 0 … 2"),
        ({0: [2, 1, 0]}, "layer 0 would lose all of its 3 heads: it must keep at least one"),
    ],
)
def test_heads_that_cannot_be_removed_get_a_sentence(removed, message):
    with pytest.raises(ValueError, match=message):
        prune_heads(small(), removed)


def test_a_pruned_network_can_be_trained_on():
    model = small().astype(np.float32)
    model(images().astype(np.float32)).sum().backward()
    pruned = prune_heads(model, {0: [0], 1: [1, 2]})
    assert all(pruned.blocks[i].attn.qkv.weight.grad is None for i in (0, 1))
    optimizer = AdamW(pruned.named_parameters(), lr=1e-2)
    data = Batch(images().astype(np.float32), np.arange(4), np.arange(4))
    losses = [train_step(pruned, Classification(), data, optimizer, 0, step).loss for step in range(10)]
    assert losses[-1] < losses[0] - 0.1
    assert {p.dtype for p in pruned.parameters()} == {np.dtype(np.float32)}


def test_on_the_twin_of_a_gpu(cupy_twin):
    model, x = small(), images()
    pruned = prune_heads(copy.deepcopy(model).to("cuda"), {0: [1]})
    close(pruned(wrap(x)).numpy(), prune_heads(model, {0: [1]})(x).data)


# --- saved and loaded ------------------------------------------------------------------------------------------------


def test_its_arguments_build_it_again():
    options = dict(img_size=(8, 12), patch_size=4, in_chans=1, num_classes=5, embed_dim=12, depth=2, num_heads=3)
    model = VisionTransformer(**options)
    pruned = prune_heads(model, {0: [1], 1: [0, 2]})
    arguments = json.loads(json.dumps(head_arguments(pruned)))
    assert arguments == {"num_heads": [2, 1], "head_dim": 4}
    again = VisionTransformer(**options | arguments, weight_init="skip")
    again.load_state_dict(pruned.state_dict())
    x = images().astype(np.float32)
    np.testing.assert_array_equal(again(x).data, pruned(x).data)


def test_its_checkpoint_is_loaded_as_any_other(tmp_path):
    options, x = {"num_classes": 3}, np.ones((2, 1, 28, 28), np.float32)
    pruned = prune_heads(create_model("vit_nano_patch7_28", **options), {0: [0], 2: [1, 3]})
    meta = {"model": "vit_nano_patch7_28", "arguments": options | head_arguments(pruned)}
    save_checkpoint(tmp_path / "pruned.npz", pruned, meta=meta)
    loaded, _ = load_model(tmp_path / "pruned.npz")
    assert [block.attn.num_heads for block in loaded.blocks] == [3, 4, 2, 4]
    np.testing.assert_array_equal(loaded(x).data, pruned.eval()(x).data)


# --- which ones ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), generators, st.data())
def test_the_lowest_are_removed_and_the_last_of_a_layer_stays(heads, rng, data):
    scores = [rng.permutation(100)[:count] / 100 for count in heads]
    count = data.draw(st.integers(0, sum(heads) - len(heads)))
    removed = lowest_heads(scores, count)
    assert sum(map(len, removed.values())) == count
    gone = [score for i, layer in enumerate(scores) for h, score in enumerate(layer) if h in removed.get(i, [])]
    for i, layer in enumerate(scores):
        staying = [score for h, score in enumerate(layer) if h not in removed.get(i, [])]
        assert staying, "a layer has lost all heads"
        assert len(staying) == 1 or not gone or max(gone) <= min(staying)


def test_one_more_removes_the_same_and_one():
    scores = list(np.random.default_rng(0).uniform(size=(3, 4)))
    before = set()
    for count in range(10):
        now = {(i, h) for i, heads in lowest_heads(scores, count).items() for h in heads}
        assert before <= now and len(now) == count
        before = now


@pytest.mark.parametrize("count", [-1, 4])
def test_more_than_there_are_gets_a_sentence(count):
    with pytest.raises(ValueError, match=rf"count must lie in 0 … 3, as each layer keeps a head; got {count}"):
        lowest_heads([np.zeros(3), np.zeros(2)], count)
