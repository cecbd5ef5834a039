"""What a graph keeps in memory, and for how long. The cycle collector is off: only reference counts free anything."""

import gc
import weakref

import numpy as np
import pytest

from minivit import Tensor, no_grad, op


@pytest.fixture(autouse=True)
def no_gc():
    gc.disable()
    yield
    gc.enable()


def leaf(*numbers):
    return Tensor(list(numbers), requires_grad=True)


@op
def keeps(x, log):
    """The identity, with an array of its own that lives as long as the pullback; ``log`` holds weak references."""
    held = np.ones(3)
    log.append(weakref.ref(held))
    return x + 0, lambda dy: dy * held.mean()


def test_no_grad_keeps_nothing():
    log = []
    with no_grad():
        y = keeps(leaf(1.0), log)
    assert y.node is None
    assert log[0]() is None, "what the pullback would have needed is still there"


def test_a_graph_dies_with_its_last_reference():
    log = []
    y = keeps(leaf(1.0), log)
    z = keeps(y, log) + y
    assert [ref() is None for ref in log] == [False, False]
    del z
    assert [ref() is None for ref in log] == [False, True]
    del y
    assert [ref() is None for ref in log] == [True, True]


def test_nodes_hold_no_data():
    """A result that no pullback mentions dies when the caller drops it, though it lies on the way back."""
    x = leaf(1.0, 2.0)
    middle = x * 3
    data, tensor = weakref.ref(middle.data), weakref.ref(middle)
    y = (middle + 1).sum()
    del middle
    assert data() is None and tensor() is None
    y.backward()
    np.testing.assert_array_equal(x.grad, [3, 3])


def test_memory_is_freed_while_backward_proceeds():
    log, alive = [], []

    @op
    def counts(x):
        held = np.ones(3)
        log.append(weakref.ref(held))

        def pullback(dy):
            alive.append(sum(ref() is not None for ref in log))
            return dy * held.mean()

        return x + 0, pullback

    y = leaf(1.0)
    for _ in range(5):
        y = counts(y)
    y.sum().backward()
    assert alive == [5, 4, 3, 2, 1]
    assert all(ref() is None for ref in log)


def test_cotangents_are_freed_while_backward_proceeds():
    """At any time only those that are still on their way exist, not one for each op."""
    log, alive = [], []

    @op
    def counts(x):
        def pullback(dy):
            alive.append(sum(ref() is not None for ref in log))
            dx = dy * 1.0
            log.append(weakref.ref(dx))
            return dx

        return x + 0, pullback

    y = leaf(1.0, 2.0)
    for _ in range(10):
        y = counts(y)
    y.backward(np.ones(2, np.float32))
    assert max(alive) <= 2


def test_leaves_hold_no_graph():
    log = []
    x = leaf(1.0)
    keeps(x, log).sum().backward()
    assert log[0]() is None
