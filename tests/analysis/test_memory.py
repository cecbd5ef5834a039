"""The memory report against what NumPy allocated, byte by byte, and against arrays that are known to be kept."""

import functools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, op, ops
from minivit.analysis import training_memory
from minivit.analysis.memory import Kept
from minivit.backend import formulas_only
from minivit.models import VisionTransformer
from minivit.nn import LayerNorm, Linear, Mlp, Module
from minivit.random import sampling
from tests.models.test_vit import images, networks, small
from tests.strategies import flags


class Model(Module):
    """A module that calls ``function``, with two weights."""

    def __init__(self, function):
        self.function = function
        self.fc = Linear(3, 3)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def report_of(function, *inputs):
    return training_memory(Model(function), ops.sum, *inputs)


x = np.arange(6, dtype=np.float32).reshape(2, 3)


@given(networks(), flags, flags, flags)
def test_the_graph_keeps_what_numpy_allocated_and_not_a_byte_more(drawn, training, fused, recompute):
    """Besides what is kept there is the loss itself, a number."""
    model, pixels = drawn
    model.train(training).set_grad_checkpointing(recompute)
    for block in model.blocks:
        block.attn.fused_attn = fused
    with sampling(0, 0, np.arange(len(pixels))):
        report = training_memory(model, ops.sum, pixels)
    bookmarks = sum(row.bytes for row in report.activations if "place" in row.name)  # the samples, made before
    assert report.traced == report.kept - bookmarks + 8
    assert report.peak >= report.traced


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_every_row_has_the_layer_whose_op_it_is(pool):
    model = small(global_pool=pool, drop_path_rate=0.5, proj_drop_rate=0.1, qk_norm=True)
    kinds = {name: type(module) for name, module in model.named_modules()}
    rows = training_memory(model, lambda z: ops.cross_entropy(z, np.zeros(4, int)), images()).activations
    made = {row.layer: kinds.get(row.layer) for row in rows}
    for row in rows:
        if row.op == "layer_norm":
            assert made[row.layer] is LayerNorm
        if row.op == "linear" and not (pool == "token" and row.layer == "blocks.1.attn"):
            assert issubclass(made[row.layer], Linear) or row.layer == "patch_embed.proj"
        if row.op == "gelu":
            assert made[row.layer] is Mlp
        if row.op == "cross_entropy":
            assert row.layer == "(loss)"
    expected = {"blocks.0.norm1", "blocks.0.attn.qkv", "blocks.0.attn.q_norm", "blocks.0.attn", "blocks.1.drop_path2"}
    assert expected | {"patch_embed.proj", "blocks.1.mlp.drop1", "head", "(loss)"} <= set(made)


def test_checkpointed_blocks_keep_their_inputs_under_their_own_names():
    model = small(depth=3, global_pool="avg")
    model.set_grad_checkpointing()
    report = training_memory(model, ops.sum, images())
    rows = [row for row in report.activations if row.op == "recompute"]
    assert [(row.layer, row.shape, row.bytes) for row in rows] == [
        (f"blocks.{i}", (4, 7, 12), 4 * 7 * 12 * 8) for i in range(3)
    ]
    assert {"gelu", "self_attention"} & set(report.totals("op")) == set()


def test_recomputation_divides_what_a_deep_network_keeps():
    """Each further block costs its input; without, twenty times that."""
    kept = {}
    for recompute in (False, True):
        for depth in (2, 6):
            model = VisionTransformer(32, 8, 1, 2, embed_dim=48, depth=depth, num_heads=3, global_pool="avg")
            model.set_grad_checkpointing(recompute)
            kept[recompute, depth] = training_memory(model, ops.sum, np.zeros((2, 1, 32, 32), np.float32)).kept
    per_block = {recompute: (kept[recompute, 6] - kept[recompute, 2]) / 4 for recompute in (False, True)}
    assert per_block[True] == 2 * 17 * 48 * 4
    assert per_block[False] > 10 * per_block[True]


@given(st.integers(1, 3), st.integers(1, 3))
def test_what_is_kept_grows_with_the_batch(batch, times):
    model = small(global_pool="avg")
    one, many = (training_memory(model, ops.sum, images(n)).kept for n in (batch, times * batch))
    assert many == times * one


# --- what a pullback holds -----------------------------------------------------------------------------------------


@op
def holds(x, *things):
    return x + 0, lambda dy: dy if things else None


def rows_of(*things):
    """Names, shapes and bytes of what an op that keeps these things keeps."""
    report = report_of(lambda model, x: holds(x * 1.0, *things), Tensor(x, requires_grad=True))
    return [(row.name, row.shape, row.bytes, row.kind) for row in report.rows if row.op == "holds"]


def test_arrays_are_found_in_tuples_lists_dicts_functions_and_partials():
    a, b, c, d, e = (np.zeros(n) for n in range(1, 6))

    def outer():
        inner_array, deeper = c, lambda: d
        return lambda: (inner_array, deeper)

    found = rows_of([a, {"key": b}], outer(), functools.partial(np.add, e), "a word", 3, None)
    names = {shape: (name, size) for name, shape, size, _ in found}
    assert names == {
        (1,): ("things.0.0", 8),
        (2,): ("things.0.1.key", 16),
        (3,): ("things.1.inner_array", 24),
        (4,): ("things.1.deeper.d", 32),
        (5,): ("things.2.1", 40),
    }


def test_a_buffer_is_counted_once_whatever_looks_at_it():
    buffer = np.zeros((4, 6))
    views = (buffer[1:], buffer[:, 2].T, buffer.reshape(2, 12)[0], buffer)
    assert [size for *_, size, _ in rows_of(*views)] == [buffer.nbytes, 0, 0, 0]
    assert rows_of(np.broadcast_to(np.float64(1), (5, 5)))[0][1:3] == ((5, 5), 8), "a buffer of one number"
    (row,) = rows_of(buffer, buffer)
    assert row == ("things.0", (4, 6), 192, "activation"), "the same array twice is one row"


def test_a_buffer_that_several_ops_keep_is_counted_where_it_is_met_first():
    report = report_of(lambda model, x: ops.relu(model.fc(x)).exp() * 2.0, Tensor(x, requires_grad=True))
    assert [(row.op, row.bytes) for row in report.activations] == [("relu", 24), ("exp", 24)]
    report = report_of(lambda model, x: model.fc(ops.exp(model.fc(x))), x)
    assert [(row.op, row.layer, row.bytes) for row in report.activations] == [
        ("exp", "(model)", 24),
        ("linear", "fc", 0),
    ]


def test_parameters_and_inputs_are_told_apart_also_through_views():
    """Weights may lie in an optimizer's flat buffer, and a batch in the array of the whole data set."""
    data, flat = np.ones((5, 2, 3), np.float32), np.ones(12, np.float32)
    model = Model(lambda model, x, y: ops.mul(model.fc(x[:, ::-1]), y))
    model.fc.weight.data = flat[3:].reshape(3, 3)
    x, y = Tensor(data[2], requires_grad=True), Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    with formulas_only():  # a loop would copy what runs backwards
        report = training_memory(model, ops.sum, x, y)
    kinds = {}
    for row in report.rows:
        kinds.setdefault((row.op, row.shape), []).append(row.kind)
    assert kinds == {
        ("linear", (3, 3)): ["parameter"],
        ("linear", (2, 3)): ["input"],
        ("mul", (2, 3)): ["activation", "input"],
    }
    assert report.kept == 24


# --- the report ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "block"),
    [("blocks.3.attn.qkv", "blocks.3"), ("blocks.11", "blocks.11"), ("head", "head"), ("(loss)", "(loss)"),
     ("patch_embed.proj", "patch_embed"), ("encoder.layers.2.fc", "encoder.layers.2")],
)  # fmt: skip
def test_the_block_of_a_layer(layer, block):
    assert Kept(layer, "linear", "rows", (2, 3), 24, "activation").block == block


def test_totals_add_up_to_what_is_kept():
    report = training_memory(small(), ops.sum, images())
    for by in (["op"], ["block"], ["layer"], ["name"], ["block", "op"]):
        assert sum(report.totals(*by).values()) == report.kept > 0
    assert list(report.totals("block")) == ["patch_embed", "blocks.0", "blocks.1", "norm", "head"]
    assert {block for block, _ in report.totals("block", "op")} == set(report.totals("block"))


def test_the_table_shows_every_activation():
    report = training_memory(small(depth=1), ops.sum, images())
    header, *lines = str(report).splitlines()
    assert header.split() == ["layer", "op", "variable", "shape", "bytes"]
    assert len({len(line) for line in [header, *lines]}) == 1
    for line, row in zip(lines, report.activations, strict=True):
        shown = f"{row.bytes:,}" if row.bytes else "(above)"
        assert line.split()[:3] == [row.layer, row.op, row.name] and line.endswith(shown) and str(row.shape) in line


def test_looking_leaves_no_trace():
    model = small()
    model.head.weight.grad = before = np.ones_like(model.head.weight.data)
    training_memory(model, ops.sum, images())
    assert not tracemalloc.is_tracing()
    assert model.head.weight.grad is before and (before == 1).all()
    assert all(p.grad is None for p in model.parameters() if p is not model.head.weight)
    tracemalloc.start()
    try:
        training_memory(model, ops.sum, images())
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


def test_an_error_ends_the_tracing():
    with pytest.raises(ValueError, match="images must have shape"):
        training_memory(small(), ops.sum, np.zeros((1, 1, 3, 3)))
    assert not tracemalloc.is_tracing()
