"""``set_grad_checkpointing``: the network computes the same, and keeps less."""

import threading

import numpy as np
import pytest
from hypothesis import given

from minivit import Tensor, no_grad, ops
from minivit.nn import observe
from minivit.random import sampling
from tests.models.test_last_block import run
from tests.models.test_vit import images, networks, small
from tests.strategies import flags


@given(networks(), flags, flags)
def test_outputs_and_gradients_are_the_same_bit_by_bit(drawn, training, single):
    model, x = drawn
    if single:
        model, x = model.astype(np.float32), x.astype(np.float32)
    model.train(training)
    plain, draws = run(model, model, x)
    model.set_grad_checkpointing()
    again, same_draws = run(model, model, x)
    assert draws == same_draws
    for expected, got in zip(plain, again):
        np.testing.assert_array_equal(got, expected)


def ops_of(y):
    """How often each op was recorded on the way to y."""
    counts, seen, waiting = {}, set(), [y.node]
    while waiting:
        node = waiting.pop()
        if node is None or isinstance(node, Tensor) or id(node) in seen:
            continue
        seen.add(id(node))
        counts[node.op] = counts.get(node.op, 0) + 1
        waiting.extend(node.parents)
    return counts


def test_blocks_are_checkpointed_while_training_and_where_a_graph_is_recorded():
    model = small(depth=3)
    assert "recompute" not in ops_of(model(images()))
    model.set_grad_checkpointing()
    assert ops_of(model(images()))["recompute"] == 3 and "gelu" not in ops_of(model(images()))
    assert "recompute" not in ops_of(model.eval()(images()))
    with no_grad():
        assert model.train()(images()).node is None
    model.set_grad_checkpointing(False)
    assert "recompute" not in ops_of(model(images()))


@pytest.mark.parametrize("pool", ["token", "avg", ""])
def test_the_last_block_still_computes_only_what_the_head_reads(pool):
    model, shapes = small(global_pool=pool), []
    model.set_grad_checkpointing()
    last = model.blocks[-1].mlp
    with observe(lambda layer, inputs, output: shapes.append(output.shape) if layer is last else None):
        model(images())
    assert shapes == [(4, 1 if pool == "token" else 7, 12)]


def test_pieces_of_a_batch_in_threads_add_up_to_the_whole():
    rates = dict.fromkeys(["drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"], 0.3)
    model, x, labels = small(**rates), images(8), np.arange(8) % 5
    model.set_grad_checkpointing()

    def gradients(samples, into):
        with sampling(0, 0, samples):
            loss = ops.cross_entropy(model(x[samples]), labels[samples], reduction="sum")
        loss.backward(into=into)

    whole, pieces = {}, [{} for _ in range(3)]
    gradients(np.arange(8), whole)
    cuts = np.split(np.arange(8), [3, 4])
    threads = [threading.Thread(target=gradients, args=pair) for pair in zip(cuts, pieces)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, p in model.named_parameters():
        total = sum(piece[p] for piece in pieces)
        np.testing.assert_allclose(total, whole[p], rtol=1e-9, atol=1e-12, err_msg=name)
