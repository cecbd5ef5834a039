"""The modes of the engine: what is recorded, what is asked for, and anomalies looked for."""

import threading

import numpy as np
import pytest

from minivit import Tensor, detect_anomaly, no_grad, op, ops
from minivit.autograd import recording, wanted


def leaf(*numbers):
    return Tensor(list(numbers), requires_grad=True)


def test_no_grad_records_nothing():
    x = leaf(1.0)
    with no_grad():
        y = x * 2
    assert y.node is None and not y.requires_grad
    assert (x * 2).requires_grad


def test_modes_end_with_an_error_and_may_be_nested():
    x = leaf(1.0)
    for mode in (no_grad, detect_anomaly):
        with pytest.raises(KeyError), mode():
            with mode():
                pass
            if mode is no_grad:
                assert not (x * 2).requires_grad
            raise KeyError
    assert (x * 2).requires_grad
    with np.errstate(divide="ignore"):
        assert Tensor([0.0]).log().item() == -np.inf


def test_no_grad_belongs_to_its_thread():
    x, seen = leaf(1.0), []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_recording_says_whether_the_running_op_is_recorded():
    seen = []

    @op
    def asks(x):
        seen.append(recording())
        return x, lambda dy: dy

    asks(leaf(1.0))
    asks(Tensor([1.0]))
    with no_grad():
        asks(leaf(1.0))
    assert seen == [True, False, False]


def test_wanted_says_which_cotangents_will_be_asked_for():
    seen = []

    @op
    def asks(x, y, z=None):
        seen.append([wanted(i) for i in range(3)])
        return x + y, lambda dz: (dz if wanted(0) else None, dz)

    asks(leaf(1.0), np.ones(1))
    asks(Tensor([1.0]), leaf(1.0), leaf(1.0))
    with no_grad():
        asks(leaf(1.0), leaf(1.0))
    assert seen == [[True, False, False], [False, True, True], [False] * 3]
    assert wanted(0)


def test_an_op_that_fails_leaves_the_state_as_it_was():
    with pytest.raises(ValueError):
        ops.matmul(Tensor([1.0]), Tensor([1.0]))
    assert recording()


def test_detect_anomaly_names_the_op_and_the_direction():
    x = leaf(0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"), detect_anomaly():
        with pytest.raises(FloatingPointError, match="1 of 2 values are not finite in the forward pass of log"):
            x.log()
        loss = x.sqrt().sum()
        with pytest.raises(FloatingPointError, match="1 of 2 values are not finite in the backward pass of sqrt"):
            loss.backward()
