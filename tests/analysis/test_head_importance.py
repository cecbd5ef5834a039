"""Gates: their gradient by two other ways, that looking changes nothing, and what importance means."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings

from minivit import Tensor, no_grad, ops
from minivit.analysis.head_importance import gated, head_importance, leave_one_out
from minivit.data import Batch
from minivit.models.pruning import prune_heads
from minivit.nn import Module
from minivit.nn.heads import observe_heads, outlet
from minivit.nn.rela import RectifiedAttention
from minivit.training import evaluate
from tests.cupy_twin import wrap
from tests.models.test_vit import images, networks, small
from tests.nn.test_gradients import randomise
from tests.strategies import flags


def close(x, y, rtol=1e-9):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-12)


def batch(x, labels):
    return Batch(x, labels, np.arange(len(x)))


def ones(model):
    return [np.ones(block.attn.num_heads) for block in model.blocks]


class Tap(Module):
    """Adds zeros to what a part is given: their gradient is that of what was given."""

    def __init__(self, part):
        self.part, self.zeros = part, None

    def forward(self, x):
        self.zeros = Tensor(np.zeros(x.shape), requires_grad=True)
        return self.part(x + self.zeros)


def gate_gradients(model, x):
    """∂(Σ y²)/∂ξ of every image and head, by gates: a list of (B, H)."""
    gates = [Tensor(np.ones((len(x), block.attn.num_heads)), requires_grad=True) for block in model.blocks]
    with gated(model, gates):
        y = model(x)
    (y * y).sum().backward(into={})
    found = {}
    with gated(model, gates):
        y = model(x)
    (y * y).sum().backward(into=found)
    return [found[gate] for gate in gates]


@given(networks(), flags)
@settings(max_examples=25)
def test_the_gradient_of_a_gate_is_the_inner_product_of_output_and_gradient(drawn, fused):
    """Σ O ⊙ ∂L/∂O over tokens and channels, read off without gates."""
    model, x = drawn
    for block in model.eval().blocks:
        block.attn.fused_attn = fused
    gradients = gate_gradients(model, x)

    taps, outputs = [Tap(getattr(block.attn, outlet(block.attn))) for block in model.blocks], []
    for block, tap in zip(model.blocks, taps):
        setattr(block.attn, outlet(block.attn), tap)
    with observe_heads(model, lambda layer, heads: outputs.append(heads.outputs.data)):
        y = model(x)
    found = {}
    (y * y).sum().backward(into=found)
    for gradient, o, tap in zip(gradients, outputs, taps):
        do = found[tap.zeros].reshape(o.shape[0], o.shape[2], o.shape[1], -1).swapaxes(1, 2)
        close(gradient, (o * do).sum((2, 3)))


@pytest.mark.parametrize("kind", ["softmax", "rectified"])
def test_the_gradient_of_a_gate_is_a_central_difference(kind):
    model, x, eps = small(), images(2), 1e-5
    if kind == "rectified":
        for block in model.blocks:
            block.attn = randomise(RectifiedAttention(12, 3, norm_eps=0.1), np.random.default_rng(2))
    gradients = gate_gradients(model, x)
    for i in range(2):
        for h in range(3):
            values = []
            for step in (eps, -eps):
                gates = ones(model)
                gates[i][h] += step
                with gated(model, gates), no_grad():
                    values.append((model(x).data ** 2).sum())
            close(gradients[i][:, h].sum(), (values[0] - values[1]) / (2 * eps), rtol=1e-6)


def test_open_gates_change_nothing_and_leave_nothing_behind():
    model, x = small(), images()
    parts, plain, state = [block.attn.proj for block in model.blocks], model(x).data, model.state_dict()
    with gated(model, ones(model)):
        np.testing.assert_array_equal(model(x).data, plain)
    with pytest.raises(ValueError, match="images must have shape"), gated(model, ones(model)):
        model(np.zeros((1, 1, 4, 4)))
    assert all(block.attn.proj is part for block, part in zip(model.blocks, parts))
    assert list(model.state_dict()) == list(state)


def test_gates_of_images_are_those_of_the_images_alone():
    model, x = small(), images()
    gates = np.random.default_rng(0).uniform(0, 1, (2, 4, 3))
    with gated(model, gates):
        together = model(x).data
    for n in range(4):
        with gated(model, gates[:, n]):
            close(model(x[n : n + 1]).data[0], together[n])


@pytest.mark.parametrize("gates", [[np.ones(3)], [np.ones(3), np.ones(2)], [np.ones((4, 1))] * 2])
def test_gates_that_do_not_fit_get_a_sentence(gates):
    with pytest.raises(ValueError, match=r"do not fit a model whose layers have \[3, 3\] heads"), gated(small(), gates):
        pass


# --- importance ------------------------------------------------------------------------------------------------------


def test_importance_takes_the_absolute_value_of_every_image_before_the_mean():
    model, x, labels = small(), images(6), np.arange(6) % 5
    together = head_importance(model, [batch(x, labels)], normalise=False)
    alone = [head_importance(model, [batch(x[n : n + 1], labels[n : n + 1])], normalise=False) for n in range(6)]
    for i in range(2):
        close(together[i], np.mean([scores[i] for scores in alone], axis=0))
    gates = [Tensor(np.ones(3), requires_grad=True) for _ in range(2)]
    with gated(model, gates):
        loss = ops.cross_entropy(model(x), labels)
    loss.backward()
    for gate, scores in zip(gates, together):  # the absolute value of the mean is less: signs differ among the images
        assert (abs(gate.grad) < scores - 1e-6).any() and (abs(gate.grad) <= scores + 1e-12).all()


@pytest.mark.parametrize("size", [1, 4, 7])
def test_how_images_are_cut_into_batches_makes_no_difference(size):
    model, x, labels = small(), images(7), np.arange(7) % 5
    pieces = [batch(x[i : i + size], labels[i : i + size]) for i in range(0, 7, size)]
    for one, other in zip(head_importance(model, pieces), head_importance(model, [batch(x, labels)])):
        close(one, other)


def test_each_layer_is_divided_by_its_norm():
    model, data = small(), [batch(images(), np.arange(4))]
    for raw, scores in zip(head_importance(model, data, normalise=False), head_importance(model, data)):
        close(scores, raw / np.linalg.norm(raw))


def test_a_layer_without_importance_stays_zero():
    model = small()
    model.blocks[0].attn.proj.weight.data[...] = 0
    scores = head_importance(model, [batch(images(), np.arange(4))])
    assert (scores[0] == 0).all() and (scores[1] > 0).all()


def test_looking_leaves_the_model_as_it_was():
    model = small(drop_rate=0.5, proj_drop_rate=0.5)
    model.blocks[1].eval()
    model.head.weight.requires_grad = False
    modes = [module.training for _, module in model.named_modules()]
    data = [batch(images(), np.arange(4))]
    scores = head_importance(model, data)
    assert [module.training for _, module in model.named_modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [p is not model.head.weight for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    for one, other in zip(scores, head_importance(model.eval(), data)):  # without dropout
        np.testing.assert_array_equal(one, other)


def test_soft_targets_and_another_loss():
    model, x = small(), images()
    labels, targets = np.arange(4), np.eye(5)[:4]
    for one, other in zip(*(head_importance(model, [batch(x, y)]) for y in (labels, targets))):
        close(one, other)

    def double(logits, labels, reduction):
        return ops.cross_entropy(logits, labels, reduction=reduction) * 2

    raw = [head_importance(model, [batch(x, labels)], normalise=False, loss_fn=f) for f in (ops.cross_entropy, double)]
    for one, other in zip(*raw):
        close(2 * one, other)


def test_on_the_twin_of_a_gpu(cupy_twin):
    model, x = small(), images()
    here = head_importance(model, [batch(x, np.arange(4))])
    on_gpu = copy.deepcopy(model).to("cuda")
    there = head_importance(on_gpu, [Batch(wrap(x), wrap(np.arange(4)), wrap(np.arange(4)))])
    for one, other in zip(there, here):
        close(one, other)
    results = leave_one_out(on_gpu, lambda: on_gpu(wrap(x)).numpy())
    close(results[1][2], leave_one_out(model, lambda: model(x).numpy())[1][2])


# --- leaving one out -------------------------------------------------------------------------------------------------


def test_leaving_a_head_out_is_pruning_it():
    model, x, labels = small(), images(20), np.arange(20) % 5
    results = leave_one_out(model, lambda: evaluate(model, [batch(x, labels)]))
    for i in range(2):
        for h in range(3):
            close(results[i][h], evaluate(prune_heads(model, {i: [h]}), [batch(x, labels)]))
    close(evaluate(model, [batch(x, labels)]), evaluate(small(), [batch(x, labels)]))


def test_importance_and_leaving_out_agree_in_order_where_heads_differ_clearly():
    """In each layer one head is cut off, one has a small say, one a large one."""
    model, x, labels = small(), images(30), np.arange(30) % 5
    orders = ([2, 0, 1], [1, 2, 0])
    for block, order in zip(model.blocks, orders):
        for share, head in zip((0, 0.05, 1), order):
            block.attn.proj.weight.data[:, 4 * head : 4 * head + 4] *= share

    def losses():
        with no_grad():
            return ops.cross_entropy(model(x), labels, reduction="none").data

    whole = losses()
    changes = [[abs(loss - whole).mean() for loss in layer] for layer in leave_one_out(model, losses)]
    scores = head_importance(model, [batch(x, labels)])
    for change, score, order in zip(changes, scores, orders):
        assert np.argsort(change).tolist() == np.argsort(score).tolist() == order
        assert change[order[0]] < 1e-15 and score[order[0]] == 0


def test_layers_may_differ_in_heads():
    model, data = prune_heads(small(), {0: [1], 1: [0, 2]}), [batch(images(), np.arange(4))]
    assert [len(layer) for layer in head_importance(model, data)] == [2, 1]
    assert [len(layer) for layer in leave_one_out(model, lambda: evaluate(model, data))] == [2, 1]
