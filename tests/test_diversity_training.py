"""Penalties in training: read from every layer of a network, whatever cuts the batch, and nothing is left behind."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings

from minivit import gradcheck, ops
from minivit.diversity import PENALTIES, HeadPenalties
from minivit.nn import Linear, observe
from minivit.nn.heads import outlet
from minivit.training import Layout
from tests.models.test_vit import images, networks, small
from tests.strategies import flags
from tests.test_diversity import close, cosines, pair_mean

ALL = dict.fromkeys(PENALTIES, 0.5)


def read_by_hand(model, x, how):
    """The terms of every layer, from the arrays that its parts were given and gave; all on the path of small ops."""
    seen = {}
    for block in model.blocks:
        block.attn.fused_attn = False
    with observe(lambda part, inputs, output: seen.update({id(part): (inputs[0].data, output)})):
        model(x)
    for block in model.blocks:
        block.attn.fused_attn = True

        def split(x, h=block.attn.num_heads):
            return x.reshape(*x.shape[:2], h, -1).transpose(0, 2, 1, 3)

        tokens, outputs = seen[id(block.attn.qkv)][0], seen[id(getattr(block.attn, outlet(block.attn)))][0]
        third = slice(2 * outputs.shape[-1], None)
        values = tokens @ block.attn.qkv.weight.data[third].T
        if block.attn.qkv.bias is not None:
            values = values + block.attn.qkv.bias.data[third]
        a, v, o = seen[id(block.attn.attn_drop)][0], split(values), split(outputs)
        yield {
            "disagreement_subspace": pair_mean(cosines(v, how.per_token), how.include_diagonal),
            "disagreement_position": pair_mean(
                np.einsum("binm,bjnm->bnij", a, a).reshape(-1, a.shape[1], a.shape[1]), how.include_diagonal
            ),
            "disagreement_output": pair_mean(cosines(o, how.per_token), how.include_diagonal),
            "margin": pair_mean(np.maximum(cosines(o, how.per_token) - how.margin, 0), False),
        }


@pytest.mark.parametrize("name", PENALTIES)
@given(drawn=networks(), per_token=flags, include_diagonal=flags)
@settings(max_examples=15)
def test_each_penalty_reads_what_it_says_from_every_layer(name, drawn, per_token, include_diagonal):
    model, x = drawn
    how = HeadPenalties({name: 0.3}, margin=0.1, per_token=per_token, include_diagonal=include_diagonal)
    with how.reading(model.eval()) as read:
        model(x)
    expected = [terms[name] for terms in read_by_hand(model, x, how)]
    close([term.item() for term in read.terms[name]], expected)
    close(read.total().item(), 0.3 * sum(expected))


@pytest.mark.parametrize("name", PENALTIES)
def test_the_gradient_reaches_every_parameter_before_the_heads(name):
    model, how = small(attn_drop_rate=0.0), HeadPenalties({name: 2.0}, margin=-0.9)

    def loss(x):
        with how.reading(model) as read:
            y = model(x)
        return (y * y).sum() + read.total()

    assert gradcheck(loss, images(2), parameters=dict(model.named_parameters()), eps=1e-5) <= 1e-6


def test_a_step_against_the_gradient_makes_heads_differ():
    model, x = small(), images()
    how = HeadPenalties(ALL)

    def total():
        with how.reading(model) as read:
            model(x)
        return read.total()

    before = total()
    before.backward()
    for p in model.parameters():
        if p.grad is not None:
            p.data = p.data - 0.01 * p.grad
    assert total().item() < before.item() - 1e-4


def test_the_fused_path_is_left_only_where_weights_are_read_and_only_inside():
    model, flags_inside = small(), []
    model.blocks[1].attn.fused_attn = False
    for name in PENALTIES:
        with HeadPenalties({name: 1.0}).reading(model):
            flags_inside.append([block.attn.fused_attn for block in model.blocks])
            model(images())
        assert [block.attn.fused_attn for block in model.blocks] == [True, False]
    position = list(PENALTIES).index("disagreement_position")
    assert flags_inside == [[False, False] if i == position else [True, False] for i in range(4)]


def test_the_logits_are_the_same():
    model, x = small(), images()
    plain = model(x).data
    with HeadPenalties({"disagreement_output": 1.0}).reading(model):
        np.testing.assert_array_equal(model(x).data, plain)
    with HeadPenalties(ALL).reading(model):
        close(model(x).data, plain)


def test_an_exception_leaves_every_layer_as_it_was():
    model = small()
    with pytest.raises(ValueError, match="images must have shape"), HeadPenalties(ALL).reading(model):
        model(np.zeros((1, 1, 4, 4)))
    assert all(block.attn.fused_attn for block in model.blocks)


def test_pieces_and_threads_add_up_to_the_whole_batch():
    """The sum over pieces, weighted by their sizes, of loss and gradients; three pieces on two threads."""
    model, x, labels, how = small(), images(5), np.arange(5), HeadPenalties(ALL, margin=0.2)

    def share(worker, piece):
        with how.reading(model) as read:
            logits = model(x[piece])
        loss = (ops.cross_entropy(logits, labels[piece]) + read.total()) * (len(labels[piece]) / len(labels))
        gradients = {}
        loss.backward(into=gradients)
        return loss.item(), [gradients[p] for p in model.parameters()]

    whole = share(0, slice(None))
    with Layout(workers=2, micro_batch=2) as layout:
        parts = layout.map(share, len(x))
    assert len(parts) > 2
    close(sum(loss for loss, _ in parts), whole[0])
    for i, expected in enumerate(whole[1]):
        close(sum(gradients[i] for _, gradients in parts), expected)
    assert all(block.attn.fused_attn for block in model.blocks)


def test_a_thread_that_is_ready_does_not_take_the_weights_from_another():
    model, how = small(), HeadPenalties({"disagreement_position": 1.0})
    entered, left, totals = threading.Event(), threading.Event(), []

    def slow():
        with how.reading(model) as read:
            entered.set()
            assert left.wait(10)
            model(images(3))
        totals.append(read.total().item())

    thread = threading.Thread(target=slow)
    with how.reading(model) as read:
        model(images(3))
        thread.start()
        assert entered.wait(10)
    left.set()
    thread.join()
    assert totals == [read.total().item()]
    assert all(block.attn.fused_attn for block in model.blocks)


def test_another_model_and_another_thread_are_not_read():
    model, other = small(), small(depth=1)
    with HeadPenalties(ALL).reading(model) as read:
        other(images())
        thread = threading.Thread(target=model, args=(images(),))
        thread.start()
        thread.join()
    with pytest.raises(RuntimeError, match="no penalty was read: run the model inside of reading"):
        read.total()


def test_dropout_does_not_hide_weights():
    """Position disagreement is of what heads would look at, whatever is dropped of it in this step."""
    model, x = small(attn_drop_rate=0.5, depth=1), images()
    how, values = HeadPenalties({"disagreement_position": 1.0}), []
    for training in (True, False):
        with how.reading(model.train(training)) as read:
            model.forward_features(x)
        values.append(read.total().item())
    close(*values)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "needs at least one of disagreement_subspace, .*, margin, got none"),
        ({"disagreement": 1.0}, "there is no head penalty 'disagreement': choose from disagreement_subspace, "),
        ({"margin": -1.0}, r"the weight of margin must be at least 0, got -1\.0"),
        ({"margin": math.nan}, "the weight of margin must be at least 0, got nan"),
    ],
)
def test_penalties_that_make_no_sense_get_a_sentence(weights, message):
    with pytest.raises(ValueError, match=message):
        HeadPenalties(weights)


def test_models_that_cannot_be_read_get_a_sentence():
    how, model = HeadPenalties({"margin": 1.0}), small()
    with pytest.raises(ValueError, match="Linear has no attention layer"), how.reading(Linear(2, 2)):
        pass
    model.set_grad_checkpointing()
    with pytest.raises(ValueError, match="recomputation does not keep"), how.reading(model):
        pass
    with how.reading(model.eval()) as read:
        model(images())
    assert len(read.terms["margin"]) == 2


def test_two_passes_are_both_counted():
    model, x, how = small(), images(), HeadPenalties({"margin": 1.0}, margin=-1.0)
    totals = []
    for passes in (1, 2):
        with how.reading(model) as read:
            for _ in range(passes):
                model(x)
        totals.append(read.total().item())
    close(totals[1], 2 * totals[0])
