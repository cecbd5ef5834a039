"""``checkpoint``: the same values and gradients as a plain call, bit by bit, from the inputs alone."""

import threading
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, op
from minivit.nn import Block, Linear, Module, observe
from minivit.nn.recompute import checkpoint
from minivit.random import bookmark, layer_uniform, replaying, sampling
from tests.nn.test_gradients import CASES, blocks, check_gradients, randomise
from tests.rules import cotangent
from tests.strategies import flags, generators


class Checkpointed(Module):
    """A layer that keeps only its inputs."""

    def __init__(self, layer):
        self.layer = layer

    def forward(self, *inputs):
        return checkpoint(self.layer, *inputs)


class Chain(Module):
    def __init__(self, *layers):
        self.layers = layers

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def chain(depth, rng=None, wrap=lambda layer: layer, **options):
    """Blocks of 8 channels one after another, with everything on that drops at random."""
    options = {"proj_drop": 0.3, "attn_drop": 0.3, "drop_path": 0.4, "init_values": 0.5} | options
    layers = [wrap(Block(8, 2, **options)) for _ in range(depth)]
    return randomise(Chain(*layers), rng or np.random.default_rng(0))


def through(run, module, x, sampled=True, needs_gradient=True):
    """Value, gradients by name (and of x), and where the draws stand afterwards."""
    module.zero_grad()
    x = Tensor(x, requires_grad=needs_gradient)
    with sampling(3, 5, 10 + np.arange(len(x))) if sampled else nullcontext():
        y = run(module, x)
        y.backward(cotangent(y.data))
        place = bookmark()
    found = {name: p.grad if p.grad is None else p.grad.copy() for name, p in module.named_parameters()}
    return y.data, found | {"x": x.grad}, {name: place[name] for name in ("seed", "step", "count") if name in place}


def plain(module, x):
    return module(x)


def same(first, second):
    assert set(first[1]) == set(second[1]) and first[2] == second[2]
    np.testing.assert_array_equal(first[0], second[0])
    for name, gradient in first[1].items():
        if gradient is None:
            assert second[1][name] is None, name
        else:
            assert gradient.dtype == second[1][name].dtype
            np.testing.assert_array_equal(gradient, second[1][name], err_msg=name)


# --- the same numbers ----------------------------------------------------------------------------------------------


@given(blocks(), flags, flags, generators)
def test_a_checkpointed_block_is_the_block_bit_by_bit(drawn, training, single, rng):
    block, x = drawn
    randomise(block.train(training), rng)
    if single:
        block, x = block.astype(np.float32), x.astype(np.float32)
    same(through(plain, block, x), through(checkpoint, block, x))


@given(st.data())
@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_a_checkpoint_of_any_layer_is_the_layer(kind, data):
    layer, x = data.draw(CASES[kind])
    randomise(layer.train(data.draw(flags)), data.draw(generators))
    results = []
    for run in (lambda x: layer(x + 0), lambda x: checkpoint(layer, x + 0)):
        layer.zero_grad()
        image = Tensor(x, requires_grad=True)
        with sampling(0, 0, np.arange(len(x))):
            y = run(image)
        y.backward(cotangent(y.data))
        results.append([y.data, image.grad, *(p.grad for p in layer.parameters())])
    for expected, got in zip(*results):
        np.testing.assert_array_equal(got, expected)


@given(blocks(), generators)
def test_gradients_of_a_checkpointed_block(drawn, rng):
    block, x = drawn
    assert check_gradients(Checkpointed(randomise(block, rng)), x) <= 1e-7


@given(st.integers(0, 3))
def test_outside_of_sampling_too_and_what_is_drawn_afterwards_is_the_same(before):
    module, x, results = chain(2), np.random.default_rng(1).standard_normal((6, 3, 8)), []
    for _ in range(before):
        layer_uniform(6)
    place = bookmark()
    for run in (plain, checkpoint):
        with replaying(place):
            value, gradients, after = through(run, module, x, sampled=False)
            results.append((value, gradients | {"the next draw": layer_uniform(6)}, after))
    same(*results)
    assert results[1][2]["count"] == place.get("count", 0) + 12


@given(st.integers(1, 3), st.integers(0, 2), generators)
def test_checkpoints_in_a_row_and_inside_one_another(depth, inner, rng):
    """Every block of a chain, and around the whole chain ``inner`` more: what a replay replays may be a checkpoint."""
    x = rng.standard_normal((4, 3, 8))
    reference = chain(depth)
    nested = chain(depth, wrap=Checkpointed)
    expected = through(plain, reference, x)
    for _ in range(inner):
        nested = Checkpointed(nested)
    got = through(checkpoint, nested, x)
    assert expected[2] == got[2]
    np.testing.assert_array_equal(got[0], expected[0])
    for a, b in zip(expected[1].values(), got[1].values()):
        np.testing.assert_array_equal(b, a)


def test_several_inputs_of_which_some_are_arrays_numbers_and_options():
    class Mixed(Module):
        def __init__(self):
            self.fc = Linear(3, 3)

        def forward(self, x, mask, y, factor, negative=False):
            z = self.fc(x) * y * factor + mask
            return -z if negative else z

    module = randomise(Mixed(), np.random.default_rng(0))
    a, b, mask = np.random.default_rng(1).standard_normal((3, 2, 3))
    results = []
    for run in (lambda *inputs, **options: module(*inputs, **options), lambda *i, **o: checkpoint(module, *i, **o)):
        module.zero_grad()
        x, y = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
        z = run(x, mask, y, 2.0, negative=True)
        z.backward(cotangent(z.data))
        results.append([z.data, x.grad, y.grad, module.fc.weight.grad])
    for expected, got in zip(*results):
        np.testing.assert_array_equal(got, expected)


def test_one_tensor_given_twice_gets_both_gradients():
    class Product(Module):
        def forward(self, x, y):
            return x * y

    x = Tensor([2.0, 3.0], requires_grad=True)
    checkpoint(Product(), x, x).sum().backward()
    np.testing.assert_array_equal(x.grad, [4, 6])


# --- who needs a gradient ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needs_gradient", [True, False])
@pytest.mark.parametrize("frozen", ["none", "some", "all"])
def test_frozen_parameters_and_inputs_that_need_no_gradient(needs_gradient, frozen):
    module, x = chain(1), np.random.default_rng(1).standard_normal((4, 3, 8))
    for i, parameter in enumerate(module.parameters()):
        parameter.requires_grad = frozen == "none" or (frozen == "some" and i % 2 == 0)
    if frozen == "all" and not needs_gradient:
        y = checkpoint(module, Tensor(x))
        assert y.node is None and not y.requires_grad
        return
    results = [through(run, module, x, needs_gradient=needs_gradient) for run in (plain, checkpoint)]
    same(*results)
    asked = {name for name, p in module.named_parameters() if p.requires_grad} | ({"x"} if needs_gradient else set())
    assert {name for name, gradient in results[1][1].items() if gradient is not None} == asked


def test_what_makes_no_difference_gets_zeros():
    class Half(Module):
        def __init__(self):
            self.used, self.unused = Linear(2, 2), Linear(2, 2)

        def forward(self, x, y):
            return self.used(x)

    module, x, y = Half(), *(Tensor([[1.0, 2.0]], requires_grad=True) for _ in range(2))
    checkpoint(module, x, y).sum().backward()
    assert x.grad.any() and module.used.weight.grad.any()
    for unused in (y, module.unused.weight, module.unused.bias):
        np.testing.assert_array_equal(unused.grad, np.zeros(unused.shape))


@pytest.mark.parametrize("into", [False, True])
def test_gradients_are_added_to_what_is_there(into):
    module, x = chain(1).eval(), np.random.default_rng(1).standard_normal((4, 3, 8))
    once = through(checkpoint, module, x)[1]
    found = {}
    for _ in range(2):
        y = checkpoint(module, Tensor(x))
        y.backward(cotangent(y.data), into=found if into else None)
    for name, parameter in module.named_parameters():
        times = 1 if into else 3
        np.testing.assert_allclose(parameter.grad, times * once[name], rtol=1e-12, atol=1e-14)
        if into:
            np.testing.assert_allclose(found[parameter], 2 * once[name], rtol=1e-12, atol=1e-14)


def test_threads_go_back_through_the_same_parameters_at_once():
    module, x = chain(3, wrap=Checkpointed), np.random.default_rng(1).standard_normal((8, 3, 8))
    cut, found = np.split(np.arange(8), 4), [{} for _ in range(4)]

    def work(samples, into):
        with sampling(0, 0, samples):
            y = module(Tensor(x[samples]))
        y.backward(cotangent(y.data), into=into)

    def go(into, threads):
        workers = [threading.Thread(target=work, args=pair) for pair in zip(cut, into)]
        for worker in workers:
            worker.start()
            if not threads:
                worker.join()
        for worker in workers:
            worker.join()

    alone = [{} for _ in range(4)]
    go(found, threads=True)
    go(alone, threads=False)
    for ours, theirs in zip(found, alone):
        assert set(ours) == set(theirs) == set(module.parameters())
        for parameter, gradient in ours.items():
            np.testing.assert_array_equal(gradient, theirs[parameter])
    assert all(parameter.grad is None for parameter in module.parameters())


# --- what is kept --------------------------------------------------------------------------------------------------


@op
def noted(x, log):
    """The identity, with an array that lives as long as its pullback; ``log`` holds weak references."""
    held = np.ones(3)
    log.append(weakref.ref(held))
    return x + 0, lambda dy: dy * held.mean()


class Noted(Module):
    def __init__(self, log, ops):
        self.log, self.ops = log, ops

    def forward(self, x):
        for _ in range(self.ops):
            x = noted(x, self.log)
        return x


@pytest.mark.parametrize("depth", [1, 5])
def test_a_graph_keeps_nothing_of_its_layers_and_one_layer_at_a_time_on_the_way_back(depth):
    log, alive = [], []

    @op
    def counts(x):
        def pullback(dy):
            alive.append(sum(ref() is not None for ref in log))
            return dy

        return x + 0, pullback

    class Counted(Noted):
        def forward(self, x):
            return counts(super().forward(x))

    def run(wrap):
        log.clear(), alive.clear()
        y = Tensor([1.0, 2.0], requires_grad=True)
        for _ in range(depth):
            y = wrap(Counted(log, 3))(y)
        kept = sum(ref() is not None for ref in log)
        y.sum().backward()
        assert all(ref() is None for ref in log)
        return kept, max(alive)

    assert run(lambda layer: layer) == (3 * depth, 3 * depth)
    assert run(Checkpointed) == (0, 3)


def test_the_inputs_of_the_layers_are_kept():
    """One array a layer, and each dies with its layer's pullback."""
    refs, x = [], Tensor(np.ones((2, 3, 8)), requires_grad=True)
    module = chain(4, wrap=Checkpointed)

    def look(layer, inputs, output):
        if isinstance(layer, Checkpointed):
            refs.append(weakref.ref(inputs[0].data))

    with observe(look):
        y = module(x)
    assert [ref() is not None for ref in refs] == [True] * 4
    loss = y.sum()
    del y
    loss.backward()
    assert [ref() is not None for ref in refs] == [True] + [False] * 3  # the first is x itself
