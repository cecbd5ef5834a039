"""One step: the cut into micro-batches changes nothing, and what is not finite is named before any weight changes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import ops
from minivit.data import Batch
from minivit.nn import Dropout, Linear, Module
from minivit.objective import Classification
from minivit.optim import SGD
from minivit.random import generator
from minivit.training import Layout, NonFiniteLoss, train_step
from minivit.training.step import count_correct
from tests.training.objectives import LossOf

CLASSES = Classification()


class Net(Module):
    """Two layers with a dropout between them; ``middle`` is what they pass on, for tests to meddle with."""

    def __init__(self, dtype=np.float64, dropout=0.0, middle=None):
        self.fc1 = Linear(4, 6)
        self.middle = middle or Dropout(dropout)
        self.fc2 = Linear(6, 3)
        self.astype(dtype)
        rng = generator(0, "net")
        for p in self.parameters():
            p.data[...] = rng.normal(size=p.shape)

    def forward(self, x):
        return self.fc2(self.middle(ops.gelu(self.fc1(x))))


class Apply(Module):
    def __init__(self, function):
        self.function = function

    def forward(self, x):
        return self.function(x)


def batch(size=7, seed=0):
    rng = generator(seed, "batch")
    return Batch(rng.normal(size=(size, 4)), rng.integers(0, 3, size), rng.permutation(1000)[:size])


def step(model, data, lr=0.1, seed=0, number=0, objective=CLASSES, layout=None, max_norm=None):
    optimizer = SGD(model.named_parameters(), lr=lr)
    with layout or Layout() as inside:
        return train_step(model, objective, Batch(*data), optimizer, seed, number, inside, max_norm), optimizer


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5]))
def test_any_cut_gives_the_same_step(size, workers, micro_batch, seed, dropout):
    data = batch(size, seed)
    whole, cut = Net(dropout=dropout), Net(dropout=dropout)
    expected, _ = step(whole, data, seed=seed, number=3)
    result, _ = step(cut, data, seed=seed, number=3, layout=Layout(workers, micro_batch))
    assert result.loss == pytest.approx(expected.loss, rel=1e-12)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-11)
    assert result.correct == expected.correct
    for p, q in zip(whole.parameters(), cut.parameters()):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-11, atol=1e-13)


def test_a_step_is_the_gradient_of_the_mean_loss():
    data = batch()
    model, twin = Net(), Net()
    result, _ = step(model, data, lr=0.1)
    logits = twin(data[0])
    loss = ops.cross_entropy(logits, data[1])
    loss.backward()
    assert result.loss == loss.item()
    assert result.correct == (logits.data.argmax(-1) == data[1]).sum()
    assert result.grad_norm == pytest.approx(math.sqrt(sum((p.grad**2).sum() for p in twin.parameters())))
    for p, q in zip(model.parameters(), twin.parameters()):
        np.testing.assert_allclose(p.data, q.data - 0.1 * q.grad, rtol=1e-12)


def test_gradients_of_earlier_steps_are_forgotten():
    data, model = batch(), Net()
    _, optimizer = step(model, data, lr=0.0)
    again = [train_step(model, CLASSES, data, optimizer, 0, i).grad_norm for i in range(2)]
    assert again[0] == again[1]


def test_dropout_is_keyed_by_seed_step_and_sample():
    images, labels, samples, _ = batch()
    losses = {
        step(Net(dropout=0.5), (images, labels, drawn), seed=seed, number=number)[0].loss
        for seed, number, drawn in [(0, 0, samples), (1, 0, samples), (0, 1, samples), (0, 0, samples + 1)]
    }
    assert len(losses) == 4
    assert step(Net(dropout=0.5), (images, labels, samples))[0].loss in losses


def test_clipping_bounds_the_change():
    model, before = Net(), [p.data.copy() for p in Net().parameters()]
    result, _ = step(model, batch(), lr=1.0, max_norm=1e-3)
    change = math.sqrt(sum(((p.data - old) ** 2).sum() for p, old in zip(model.parameters(), before)))
    assert result.grad_norm > 1e-2 and change == pytest.approx(1e-3, rel=2e-3)


def test_soft_targets():
    images, labels, samples, _ = batch()
    hard, _ = step(Net(), (images, labels, samples), layout=Layout(micro_batch=3))
    soft, _ = step(Net(), (images, np.eye(3)[labels], samples), layout=Layout(micro_batch=3))
    assert soft == pytest.approx(hard)


def poisoned(name):
    model = Net()
    dict(model.named_parameters())[name].data[0] = np.nan
    return model


class Overflow(Net):
    def forward(self, x):
        return super().forward(x) * 1e300 * 1e300


def infinite_images():
    images, labels, samples, _ = batch()
    return images * [1, np.inf, 1, 1], labels, samples


@pytest.mark.parametrize("layout", [Layout(), Layout(micro_batch=3), Layout(2, 2)], ids=str)
@pytest.mark.parametrize(
    "model, options, first",
    [
        (poisoned("fc2.weight"), {}, "the parameter fc2.weight"),
        (Net(middle=Apply(lambda x: (0.0 * x).log())), {}, r"the output of middle \(Apply\)"),
        (Overflow(), {}, r"the output of the model itself \(Overflow\)"),
        (Net(), {"data": infinite_images()}, "the input images"),
        (Net(), {"objective": LossOf(lambda logits, labels: (0.0 * logits).log().mean())}, "the loss function"),
    ],
)
def test_the_first_nonfinite_value_of_a_forward_pass_is_named(model, options, first, layout):
    message = rf"the loss is -?(nan|inf) in step 5: the first to be not finite is {first}$"
    check_refused(model, message, layout=layout, **options)


@pytest.mark.parametrize("layout", [Layout(micro_batch=2), Layout(2, 2)], ids=str)
def test_a_later_micro_batch_is_looked_at_too(layout):
    images, labels, samples, _ = batch()
    images[6, 0] = np.nan
    check_refused(Net(), "not finite is the input images$", (images, labels, samples), layout=layout)


def test_a_gradient_that_is_not_finite_is_named():
    """√0 is 0, but its derivative is infinite: the loss is fine, and the weights would not be."""
    model = Net(middle=Apply(lambda x: (0.0 * x).sqrt()))
    check_refused(model, r"the gradient's norm is nan in step 5, of a loss of [\d.]+; .* is the gradient of fc1.bias$")


def check_refused(model, message, data=None, objective=CLASSES, layout=None):
    optimizer = SGD(model.named_parameters(), lr=0.1)
    before = [p.data.copy() for p in model.parameters()]
    with pytest.raises(NonFiniteLoss, match=message) as caught, layout or Layout() as inside:
        train_step(model, objective, Batch(*(data or batch())), optimizer, 0, 5, inside)
    assert caught.value.first in str(caught.value)
    assert optimizer.steps == 0
    for p, old in zip(model.parameters(), before):
        np.testing.assert_array_equal(p.data, old)


def test_bad_batches_get_a_sentence():
    images, labels, samples, _ = batch()
    with pytest.raises(ValueError, match="of one length, got 7, 6 and 7"):
        step(Net(), (images, labels[:6], samples))
    with pytest.raises(ValueError, match="at least one image"):
        step(Net(), (images[:0], labels[:0], samples[:0]))


def test_count_correct():
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert count_correct(logits, np.array([0, 1, 1])) == 2
    assert count_correct(logits, np.array([[0.9, 0.1], [0.6, 0.4], [1.0, 0.0]])) == 2
