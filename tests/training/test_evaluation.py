"""Models in use."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, ops
from minivit.data import Batch, Dataset, Loader
from minivit.nn import Dropout, Linear, Module, evaluating
from minivit.random import generator
from minivit.training import Layout, evaluate, predict


class Net(Module):
    def __init__(self):
        self.fc1 = Linear(4, 6)
        self.drop = Dropout(0.5)
        self.frozen = Dropout(0.5).eval()
        self.fc2 = Linear(6, 3)

    def forward(self, x):
        return self.fc2(self.frozen(self.drop(ops.relu(self.fc1(ops.reshape(x, (len(x), 4)))))))


def images(size, seed=0):
    return generator(seed, "images").normal(size=(size, 1, 2, 2)).astype(np.float32)


layouts = st.builds(Layout, workers=st.integers(1, 3), micro_batch=st.none() | st.integers(1, 10))


@given(st.integers(1, 9), layouts)
def test_predict_does_not_depend_on_the_layout(size, layout):
    model = Net()
    with layout:
        logits = predict(model, images(size), layout)
    assert isinstance(logits, np.ndarray) and logits.shape == (size, 3) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, model.eval()(images(size)).data, rtol=1e-5, atol=1e-6)


def test_pieces_that_keep_no_graph_are_larger():
    sizes = []
    for layout in (Layout(micro_batch=2), None):
        predict(Net(), images(90), layout, forward=lambda x: sizes.append(len(x)) or Tensor(x))
    assert max(sizes[:-2]) == 4 and sum(sizes[:-2]) == 90 and sizes[-2:] == [45, 45]


def test_every_layer_gets_its_own_mode_back():
    model = Net()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for _, module in model.named_modules())
        assert not model(images(2)).requires_grad
        raise KeyError
    assert model.training and model.drop.training and not model.frozen.training
    assert model(images(2)).requires_grad


def test_predict_gives_features_too():
    model = Net().eval()
    features = predict(model, images(5), Layout(micro_batch=2), forward=lambda x: model.fc1(x.reshape(len(x), 4)))
    np.testing.assert_allclose(features, model.fc1(images(5).reshape(5, 4)).data, rtol=1e-5)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1), layouts)
def test_evaluate_is_a_mean_over_images_not_over_batches(size, batch_size, seed, layout):
    labels = generator(seed, "labels").integers(0, 3, size)
    model, x = Net(), images(size, seed)
    cuts = [slice(i, i + batch_size) for i in range(0, size, batch_size)]
    with layout:
        loss, accuracy = evaluate(model, [Batch(x[c], labels[c], np.arange(size)[c]) for c in cuts], layout)
    z = model.eval()(x).data.astype(np.float64)
    probability = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    assert loss == pytest.approx(-np.log(probability[np.arange(size), labels]).mean(), rel=1e-5)
    assert accuracy == (z.argmax(-1) == labels).mean()


def test_evaluate_takes_a_loader():
    labels = np.array([0, 1, 2, 0, 1])
    data = Dataset("x", generator(0, "bytes").integers(0, 256, (5, 1, 2, 2)).astype(np.uint8), labels, ["a", "b", "c"])
    model = Net()
    for p in model.fc2.parameters():
        p.data[...] = 0
    result = evaluate(model, Loader(data, batch_size=2, shuffle=False))
    assert result.loss == pytest.approx(math.log(3)) and result.accuracy == 0.4


def test_nothing_to_work_on_gets_a_sentence():
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        evaluate(Net(), [])
    with pytest.raises(ValueError, match="at least one image"):
        predict(Net(), images(0))
