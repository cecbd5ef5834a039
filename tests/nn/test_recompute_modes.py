"""``checkpoint`` under no_grad, observe and detect_anomaly, and what it says where it cannot work."""

import numpy as np
import pytest

from minivit import Tensor, detect_anomaly, no_grad, op
from minivit.nn import Block, Dropout, Linear, Mlp, Module, observe
from minivit.nn.recompute import checkpoint
from minivit.random import sampling
from tests.nn.test_recompute import Checkpointed, chain, plain, same, through


def test_under_no_grad_it_is_a_plain_call():
    module, x = chain(1), Tensor(np.random.default_rng(1).standard_normal((4, 3, 8)), requires_grad=True)
    seen = []
    with sampling(0, 0, np.arange(4)):
        expected = module(x).data
    with no_grad(), sampling(0, 0, np.arange(4)), observe(lambda layer, inputs, output: seen.append(layer)):
        y = checkpoint(module, x)
    assert y.node is None and not y.requires_grad
    np.testing.assert_array_equal(y.data, expected)
    assert set(map(id, seen)) <= {id(layer) for _, layer in module.named_modules()} and module in seen


def test_backward_inside_no_grad_gets_a_sentence():
    y = checkpoint(Linear(2, 2), Tensor([[1.0, 2.0]]))
    with (
        no_grad(),
        pytest.raises(RuntimeError, match=r"nothing was recorded: either backward\(\) was called inside"),
    ):
        y.backward(np.ones((1, 2), np.float32))


def test_observers_see_the_first_run_and_not_the_second():
    module, seen = chain(2, wrap=Checkpointed), []
    with observe(lambda layer, inputs, output: seen.append((layer, output.node))):
        y = module(Tensor(np.ones((2, 3, 8)), requires_grad=True))
        first = list(seen)
        y.backward(np.ones(y.shape))
        assert seen == first
        Linear(2, 2)(Tensor([[1.0, 2.0]]))
    assert len(seen) == len(first) + 1, "after backward observers are called again"
    wrapped = [node for layer, node in first if isinstance(layer, Checkpointed)]
    inside = [node for layer, node in first if isinstance(layer, Block | Mlp | Linear)]
    assert [node.op for node in wrapped] == ["recompute"] * 2 and inside and set(inside) == {None}


def test_observers_are_back_after_an_error():
    class Fails(Module):
        def __init__(self):
            self.runs = 0

        def forward(self, x):
            self.runs += 1
            if self.runs == 2:
                raise ValueError("the second time")
            return x * 2

    seen, x = [], Tensor([1.0], requires_grad=True)
    y = checkpoint(Fails(), x)
    with observe(lambda layer, inputs, output: seen.append(layer)):
        with pytest.raises(ValueError, match="the second time"):
            y.sum().backward()
        Dropout()(x)
    assert len(seen) == 1


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_anomalies_are_found_inside(direction):
    @op
    def breaks(x):
        bad = np.full_like(x, np.nan)
        return (bad, lambda dy: dy) if direction == "forward" else (x + 0, lambda dy: bad)

    class Breaks(Module):
        def forward(self, x):
            return breaks(x * 2)

    x = Tensor([1.0, 2.0], requires_grad=True)
    with detect_anomaly(), pytest.raises(FloatingPointError, match=f"in the {direction} pass of breaks"):
        checkpoint(Breaks(), x).sum().backward()
    with detect_anomaly():
        same(*(through(run, chain(1), np.ones((4, 3, 8))) for run in (plain, checkpoint)))


def test_a_tensor_from_elsewhere_gets_a_sentence():
    elsewhere = Tensor([1.0, 2.0], requires_grad=True) * 2

    class Reads(Module):
        def forward(self, x):
            return x * elsewhere

    y = checkpoint(Reads(), Tensor([1.0, 2.0], requires_grad=True))
    with pytest.raises(RuntimeError, match="read a Tensor that is neither an input nor one of its Parameters"):
        y.sum().backward()


def test_a_tensor_as_an_option_gets_a_sentence():
    with pytest.raises(TypeError, match="Tensors as inputs only: no gradient would reach the option bias"):
        checkpoint(Linear(2, 2), Tensor([[1.0, 2.0]]), bias=Tensor([1.0]))


def test_a_module_of_two_results_gets_a_sentence():
    class Two(Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="needs a module that returns one Tensor, got tuple"):
        checkpoint(Two(), Tensor([1.0], requires_grad=True))


def test_a_second_backward_is_refused_as_everywhere():
    y = checkpoint(Linear(2, 2), Tensor([[1.0, 2.0]])).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="went through this graph before"):
        y.backward()
