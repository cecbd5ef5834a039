"""LARS against a twin that knows one parameter at a time, and what its trust ratio promises."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Parameter
from minivit.backend import to_device
from minivit.optim import LARS
from minivit.optim.lars import trust_ratio
from minivit.random import generator
from tests.devices import cupy, no_waiting

SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32 - 1)


def random_arrays(seed, purpose, shapes):
    rng = generator(seed, purpose)
    return [rng.normal(size=shape) for shape in shapes]


def trajectory(start, gradients, device="cpu", dtype=np.float64, **options):
    """All parameters, and their momentum, after one step of LARS for each list of gradients."""
    parameters = [Parameter(to_device(array.astype(dtype), device)) for array in start]
    optimizer = LARS(parameters, **options)
    for step in gradients:
        optimizer.zero_grad()
        for p, g in zip(parameters, step):
            p.grad += to_device(g.astype(dtype), device)
        optimizer.step()
        for p, g in zip(parameters, step):
            np.testing.assert_array_equal(to_device(p.grad, "cpu"), g.astype(dtype), "a step must not write to it")
    return parameters, optimizer


def lars_by_hand(p, gradients, lr, momentum, weight_decay, trust_coefficient):
    """The path of one parameter in Python's own numbers; the momentum starts with the first gradient."""
    shape, p, b = p.shape, [float(x) for x in p.ravel()], None
    for g in gradients:
        g = [float(x) for x in g.ravel()]
        if len(shape) > 1:
            g = [x + weight_decay * y for x, y in zip(g, p)]
            lengths = math.hypot(*p), math.hypot(*g)
            if all(lengths):
                g = [x * trust_coefficient * lengths[0] / lengths[1] for x in g]
        b = g if b is None else [momentum * y + x for x, y in zip(g, b)]
        p = [x - lr * y for x, y in zip(p, b)]
    return np.reshape(p, shape)


@given(SHAPES, SEEDS, st.sampled_from([0.1, 6.4]), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.05]),
       st.sampled_from([1e-3, 0.1]))  # fmt: skip
def test_lars_is_its_formula(shapes, seed, lr, momentum, weight_decay, trust):
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust}
    start = random_arrays(seed, "start", shapes)
    gradients = [random_arrays(seed + step, "gradients", shapes) for step in range(4)]
    found, _ = trajectory(start, gradients, **options)
    for i, p in enumerate(found):
        expected = lars_by_hand(start[i], [step[i] for step in gradients], **options)
        np.testing.assert_allclose(p.data, expected, rtol=1e-11, atol=1e-13)


@given(SEEDS, st.floats(1e-3, 1e3))
def test_matrices_do_not_see_the_scale_of_the_loss_and_vectors_do(seed, scale):
    shapes = [(3, 4), (2, 1, 5), (4,)]
    start, gradients = random_arrays(seed, "start", shapes), [random_arrays(seed, "gradients", shapes)]
    (a, b, c), _ = trajectory(start, gradients)
    (a_, b_, c_), _ = trajectory(start, [[scale * g for g in gradients[0]]])
    np.testing.assert_allclose(a_.data, a.data, rtol=1e-12)
    np.testing.assert_allclose(b_.data, b.data, rtol=1e-12)
    np.testing.assert_allclose(start[2] - c_.data, scale * (start[2] - c.data), rtol=1e-9, atol=1e-12)


@given(SEEDS)
def test_the_first_step_is_a_share_of_the_weights_length(seed):
    start, gradients = random_arrays(seed, "start", [(3, 4)]), [random_arrays(seed, "gradients", [(3, 4)])]
    (p,), _ = trajectory(start, gradients, lr=2.0, weight_decay=0.3, trust_coefficient=0.01)
    assert np.linalg.norm(p.data - start[0]) == pytest.approx(2.0 * 0.01 * np.linalg.norm(start[0]), rel=1e-9)


@pytest.mark.parametrize("p, g", [(0.0, 2.0), (3.0, 0.0), (0.0, 0.0)])
def test_where_a_length_is_zero_the_gradient_stays_as_it_is(p, g):
    """And nothing is divided by zero, which would be a warning."""
    p, g = np.full((1, 1), p), np.full((1, 1), g)
    assert float(trust_ratio(np.float64(0.001), p, g)) == 1.0
    (after,), _ = trajectory([p], [[g]], lr=0.5)
    np.testing.assert_array_equal(after.data, p - 0.5 * g)


def test_groups_have_their_own_options():
    a, b = Parameter(np.ones((1, 1))), Parameter(np.ones((1, 1)))
    optimizer = LARS([{"params": [a], "trust_coefficient": 0.5}, {"params": [b], "lr_scale": 0.1}], momentum=0.0)
    optimizer.lr = 1.0
    a.grad += 7
    b.grad += 7
    optimizer.step()
    assert a.item() == pytest.approx(1 - 0.5) and b.item() == pytest.approx(1 - 0.1 * 1e-3)


def test_state_continues_bit_for_bit_and_padding_stays_zero():
    shapes = [(3, 3), (5,)]
    gradients = [random_arrays(step, "gradients", shapes) for step in range(6)]
    start = random_arrays(0, "start", shapes)
    _, optimizer = trajectory(start, gradients, dtype=np.float32)
    half, first = trajectory(start, gradients[:3], dtype=np.float32)
    resumed = LARS([Parameter(p.data.copy()) for p in half])
    resumed.load_state_dict(first.state_dict())
    for step in gradients[3:]:
        for view, g in zip(resumed.flat.views(resumed.flat.grad).values(), step):
            view[...] = g
        resumed.step()
    np.testing.assert_array_equal(resumed.flat.data, optimizer.flat.data)
    np.testing.assert_array_equal(resumed.state["momentum_buffer"], optimizer.state["momentum_buffer"])
    for array in (optimizer.flat.data, optimizer.state["momentum_buffer"]):
        assert array.dtype == np.float32 and not array[9:16].any() and not array[21:].any()


def test_on_a_gpu_the_same_numbers_and_no_wait(gpu):
    shapes = [(3, 4), (2, 2, 2), (5,)]
    start, gradients = random_arrays(0, "start", shapes), [random_arrays(step, "gradients", shapes) for step in (1, 2)]
    start[1][...] = 0
    there, optimizer = trajectory(start, gradients, "cuda", weight_decay=0.1)
    here, _ = trajectory(start, gradients, weight_decay=0.1)
    for p, q in zip(there, here):
        assert isinstance(p.data, cupy().ndarray)
        np.testing.assert_allclose(p.data.get(), q.data, rtol=1e-12)
    before = optimizer.flat.data.get()
    with no_waiting():
        optimizer.prepare()
        optimizer.apply(cupy().zeros((), "float64"))  # a scale of 0: no step
    np.testing.assert_array_equal(optimizer.flat.data.get(), before)
    optimizer.apply(cupy().full((), 0.5))
    assert (optimizer.flat.data.get() != before).any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"trust_coefficient": 0.0}, "trust_coefficient must be above 0, got 0.0"),
        ({"trust_coefficient": float("nan")}, "trust_coefficient must be above 0, got nan"),
        ({"lr": -1}, "lr must be a finite number of at least 0, got -1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_options_get_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        LARS([Parameter([1.0])], **options)
