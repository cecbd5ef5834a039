"""Sums on the way back: of every part once, when it is final, in one order; and nobody is left waiting."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.autograd import Parameter, op
from minivit.data import Batch
from minivit.models import MaskedAutoencoderViT, VisionTransformer
from minivit.nn import Linear, Module
from minivit.objective import Classification, Reconstruction
from minivit.optim import SGD
from minivit.optim.parameters import ALIGNMENT, FlatParameters
from minivit.random import sampling
from minivit.training import Layout, Ranks, all_reduce, train_step
from tests.training.short_run import CUTS, train


class Two(Ranks):
    """Rank 0 of two that have the same gradient. It notes what it is asked to sum, and what comes out."""

    def __init__(self):
        self.summed = []

    def sum(self, array):
        array *= 2
        self.summed.append((array, array.copy()))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(all_reduce, "PART_BYTES", 512)


def vit(**options):
    return VisionTransformer(8, 4, 1, 3, embed_dim=16, depth=2, num_heads=2, **options)


def batch(count=6):
    rng = np.random.default_rng(0)
    return Batch(rng.standard_normal((count, 1, 8, 8), np.float32), rng.integers(3, size=count), np.arange(count))


def step(model, layout, images=6):
    """A step without a step: what the gradient is."""
    optimizer = SGD(model.named_parameters(), lr=0.0)
    with layout:
        train_step(model, Classification(), batch(images), optimizer, 0, 0, layout)
    return optimizer.flat


@given(st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=6), min_size=1, max_size=3), st.integers(1, 900))
def test_parts_cover_the_gradient_and_cut_no_parameter(sizes, least):
    groups = [{"params": [Parameter(np.zeros(n, np.float32)) for n in group]} for group in sizes]
    named = [(f"{i}.{j}", p) for i, group in enumerate(groups) for j, p in enumerate(group["params"])]
    flat = FlatParameters([{"params": [p for p in named if p[0].startswith(f"{i}.")]} for i in range(len(groups))])
    parts = flat.parts(least)
    assert [i for part, _ in parts for i in range(flat.data.size)[part]] == list(range(flat.data.size))
    assert [p for _, parameters in parts for p in parameters] == [p for _, p in named]
    for part, parameters in parts:
        assert all(np.shares_memory(p.data, flat.data[part]) for p in parameters)
        assert part.stop - part.start == sum(-(-p.size // ALIGNMENT) * ALIGNMENT for p in parameters)
        short = 4 * (part.stop - part.start) < least
        assert not short or any(part.stop == group["slice"].stop for group in flat.groups)
        assert 4 * (part.stop - part.start - -(-parameters[-1].size // ALIGNMENT) * ALIGNMENT) < least


class Twice(Module):
    """Uses a weight three times, and another not at all."""

    def __init__(self):
        self.fc, self.unused = Linear(3, 3), Linear(3, 3)

    def forward(self, x):
        return self.fc(self.fc(x)) * self.fc.bias


def recomputing():
    model = vit()
    model.grad_checkpointing = True
    return model


MODELS = {
    "ViT": (vit(), Classification()),
    "recomputing": (recomputing(), Classification()),
    "MAE": (MaskedAutoencoderViT(8, 4, 1, 16, 2, 2, 8, 1, 2), Reconstruction()),
}


@pytest.mark.parametrize("name", MODELS)
def test_as_much_arrives_as_was_foretold(name):
    model, objective = MODELS[name]
    images, labels, samples, _ = batch()
    with sampling(0, 0, samples):
        loss, _ = objective(model.train(), images, labels)
    due, done = all_reduce.arrivals(loss), []
    assert set(due) == set(model.parameters()) - {p for p in model.parameters() if not p.requires_grad}
    sink = all_reduce._Counting({}, due, done.append)
    loss.backward(into=sink)
    assert set(due.values()) == {0} and len(done) == len(due)


def test_a_weight_is_final_after_its_last_use_and_one_without_any_is_not_foretold():
    model, done = Twice(), []
    loss = model(Tensor(np.ones((2, 3), np.float32))).sum()
    due = all_reduce.arrivals(loss)
    assert due == {model.fc.weight: 2, model.fc.bias: 3}
    loss.backward(into=all_reduce._Counting({}, due, done.append))
    assert sorted(map(id, done)) == sorted(map(id, (model.fc.weight, model.fc.bias)))
    assert not all_reduce.arrivals(Tensor([1.0]))


@pytest.mark.parametrize("cut", CUTS[:4])
def test_the_same_bits_as_at_the_end(cut):
    on_the_way, at_the_end = (train(Layout(*cut, overlap=overlap), seed=0, steps=3) for overlap in (True, False))
    assert all(np.array_equal(on_the_way[name], at_the_end[name]) for name in at_the_end)


@pytest.mark.parametrize("cut", [(1, 2), (2, 2), (2, None), (9, 1)])
def test_each_part_is_summed_once_when_it_is_final(cut):
    ranks = Two()
    flat = step(vit(), Layout(*cut, ranks=ranks, overlap=True))
    parts = [array for array in ranks.summed if array[0].size > 2]  # without the losses
    assert len(parts) == len(flat.parts(512)) > 4 and sum(array.size for array, _ in parts) == flat.grad.size
    assert all(np.array_equal(array, then) for array, then in parts)  # nothing came afterwards
    once = step(vit(), Layout(*cut)).grad
    np.testing.assert_array_equal(flat.grad, 2 * once)


def test_the_network_s_end_comes_first():
    ranks, model = Two(), vit()
    step(model, Layout(ranks=ranks, overlap=True))
    parts = [array for array, _ in ranks.summed]
    named = dict(model.named_parameters())

    def place(name):
        return [np.shares_memory(named[name].grad, part) for part in parts].index(True)

    assert place("head.weight") < place("blocks.1.attn.qkv.weight") < place("blocks.0.attn.qkv.weight")
    assert place("blocks.0.attn.qkv.weight") < place("patch_embed.proj.weight")


def test_a_rank_without_images_takes_part():
    ranks, model = Two(), vit()
    optimizer = SGD(model.named_parameters(), lr=0.0)
    layout = Layout(2, ranks=ranks, overlap=True)
    nothing = Batch(*(array[:0] for array in batch()[:3]), 4)
    with layout:
        train_step(model, Classification(), nothing, optimizer, 0, 0, layout)
    assert sum(array.size for array, _ in ranks.summed) == optimizer.flat.grad.size + 2  # loss, and right answers
    assert not optimizer.flat.grad.any()


class Idle(Module):
    """Has a weight that it does not use."""

    def __init__(self):
        self.fc, self.unused = Linear(64, 128), Linear(64, 128)

    def forward(self, x):
        return self.fc(Tensor(x.reshape(len(x), -1)))


def test_what_is_not_used_is_not_waited_for():
    ranks = Two()
    flat = step(Idle(), Layout(2, ranks=ranks, overlap=True))
    assert len(ranks.summed) == len(flat.parts(512)) + 1


class Slow(Module):
    """Two layers; backward stops before the first until ``go`` is set."""

    def __init__(self, go):
        self.first, self.second, self.go, self.waited = Linear(64, 128), Linear(128, 3), go, []

    def forward(self, x):
        return self.second(hold(self.first(Tensor(x.reshape(len(x), -1))), wait=self.wait))

    def wait(self):
        self.waited.append(self.go.wait(20))


@op
def hold(x, wait):
    def pullback(dy):
        wait()
        return dy

    return x, pullback


class Telling(Ranks):
    def __init__(self, go):
        self.go = go

    def sum(self, array):
        self.go.set()


def test_sums_begin_before_backward_ends():
    go = threading.Event()
    model = Slow(go)
    step(model, Layout(ranks=Telling(go), overlap=True))
    assert model.waited == [True]


class Failing(Ranks):
    def sum(self, array):
        raise ConnectionError("the cable")


def test_an_exception_of_the_sum_is_raised():
    with pytest.raises(ConnectionError, match="the cable"):
        step(vit(), Layout(2, ranks=Failing(), overlap=True))


class Absent(Telling):
    """The others never come."""

    def sum(self, array):
        super().sum(array)
        threading.Event().wait(60)


def test_a_worker_that_fails_does_not_wait_for_others():
    go = threading.Event()
    model = Slow(go)

    def fail():
        go.wait(20)
        raise KeyError("backward")

    model.wait = fail
    with pytest.raises(KeyError, match="backward"):
        step(model, Layout(ranks=Absent(go), overlap=True))
    assert go.is_set() and any(thread.name == "all-reduce" for thread in threading.enumerate())  # still waiting


def test_overlap_is_for_several_machines():
    ranks = Ranks()
    ranks.size, ranks.neighbours = 4, 2
    assert Layout(ranks=ranks).overlap and not Layout().overlap and not Layout(ranks=ranks, overlap=False).overlap
