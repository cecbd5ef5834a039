"""SGD and AdamW against their formulas, written out over single numbers in float64, and their properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Parameter
from minivit.optim import SGD, AdamW
from minivit.optim.parameters import BLOCK_BYTES
from minivit.random import generator

SEEDS = st.integers(0, 2**32 - 1)
BLOCK = BLOCK_BYTES // 4  # elements of float32
RATES = st.sampled_from([0.0, 0.01, 0.1])
DECAYS = st.sampled_from([0.0, 0.05, 0.5])


def gradients(seed, steps, size):
    return generator(seed, "gradients").normal(size=(steps, size))


def trajectory(make, start, gradients, dtype=np.float64):
    """The parameters after each step of the optimizer that ``make`` makes, given these gradients."""
    p = Parameter(start.astype(dtype))
    optimizer = make([p])
    path = []
    for g in gradients:
        optimizer.zero_grad()
        p.grad += g
        optimizer.step()
        np.testing.assert_array_equal(p.grad, g.astype(dtype), "a step must leave the gradient as it is")
        path.append(p.data.copy())
    return np.array(path)


def sgd_by_hand(p, gradients, lr, momentum, nesterov, weight_decay):
    p, b = float(p), None
    for g in gradients:
        g = float(g) + weight_decay * p
        b = g if b is None else momentum * b + g  # PyTorch's: the first gradient is taken whole
        p -= lr * (g + momentum * b if nesterov else b)
        yield p


def adamw_by_hand(p, gradients, lr, betas, eps, weight_decay):
    p, (b1, b2) = float(p), betas
    for t in range(1, len(gradients) + 1):
        weights1 = [(1 - b1) * b1 ** (t - i) for i in range(1, t + 1)]
        weights2 = [(1 - b2) * b2 ** (t - i) for i in range(1, t + 1)]
        m_hat = sum(w * g for w, g in zip(weights1, gradients)) / sum(weights1)
        v_hat = sum(w * g * g for w, g in zip(weights2, gradients)) / sum(weights2)
        p = p - lr * weight_decay * p - lr * m_hat / (v_hat**0.5 + eps)
        yield p


@given(SEEDS, RATES, st.sampled_from([0.0, 0.5, 0.9]), st.booleans(), DECAYS)
def test_sgd_is_its_formula(seed, lr, momentum, nesterov, weight_decay):
    options = {"lr": lr, "momentum": momentum, "nesterov": nesterov and momentum > 0, "weight_decay": weight_decay}
    start, g = generator(seed, "start").normal(size=3), gradients(seed, 6, 3)
    path = trajectory(lambda params: SGD(params, **options), start, g)
    for i in range(3):
        np.testing.assert_allclose(path[:, i], list(sgd_by_hand(start[i], g[:, i], **options)), rtol=1e-12, atol=1e-14)


@given(SEEDS, RATES, st.sampled_from([(0.9, 0.999), (0.0, 0.5), (0.9, 0.95)]), st.sampled_from([1e-8, 0.1]), DECAYS)
def test_adamw_is_its_formula(seed, lr, betas, eps, weight_decay):
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    start, g = generator(seed, "start").normal(size=3), gradients(seed, 6, 3)
    path = trajectory(lambda params: AdamW(params, **options), start, g)
    for i in range(3):
        by_hand = list(adamw_by_hand(start[i], g[:, i], **options))
        np.testing.assert_allclose(path[:, i], by_hand, rtol=1e-11, atol=1e-14)


MAKERS = {
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "plain": lambda params: SGD(params, lr=0.1),
    "adamw": lambda params: AdamW(params, lr=0.1, weight_decay=0.1),
}
each_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@each_optimizer
def test_a_number_is_trained_alike_wherever_it_lies(make):
    """Blocks, neighbours and padding make no difference: every number has its own path."""
    size = BLOCK + 5
    start, g = generator(0, "start").normal(size=size), gradients(0, 3, size)
    whole = trajectory(make, start, g, np.float32)
    for i in (0, 1, BLOCK - 1, BLOCK, BLOCK + 4):
        np.testing.assert_array_equal(whole[:, i], trajectory(make, start[[i]], g[:, [i]], np.float32)[:, 0])


@each_optimizer
def test_padding_stays_zero(make):
    p = Parameter(np.ones(3, np.float32))
    optimizer = make([p])
    p.grad += 1
    optimizer.step()
    for array in (optimizer.flat.data, optimizer.flat.grad, *optimizer.state.values()):
        assert not array[3:].any()


@each_optimizer
def test_state_continues_bit_for_bit(make):
    start, g = generator(1, "start").normal(size=7), gradients(1, 8, 7)

    def take(p, optimizer, rows):
        for row in rows:
            optimizer.zero_grad()
            p.grad += row
            optimizer.step()

    p = Parameter(start.astype(np.float32))
    optimizer = make([p])
    take(p, optimizer, g[:5])
    saved, halfway = optimizer.state_dict(), p.data.copy()
    take(p, optimizer, g[5:])

    q = Parameter(halfway)
    resumed = make([q])
    resumed.load_state_dict(saved)
    assert resumed.steps == 5
    take(q, resumed, g[5:])
    np.testing.assert_array_equal(p.data, q.data)
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, resumed.state_dict()[name])


def test_state_of_another_optimizer_is_refused():
    state = SGD([Parameter([1.0])], lr=0.1, momentum=0.9).state_dict()
    assert set(state) == {"step", "momentum_buffer/0"}
    with pytest.raises(ValueError, match=r"not the state of AdamW, which keeps \['exp_avg', 'exp_avg_sq', 'step'\]"):
        AdamW([Parameter([1.0])]).load_state_dict(state)
    with pytest.raises(ValueError, match=r"momentum_buffer of 0 has shape \(1,\), the parameter \(2,\)"):
        SGD([Parameter([1.0, 2.0])], momentum=0.9).load_state_dict(state)


def test_groups_have_their_own_options_and_lr_their_scale():
    a, b = Parameter([1.0]), Parameter([1.0])
    optimizer = SGD([{"params": [a], "weight_decay": 0.5}, {"params": [b], "lr_scale": 0.1}], lr=0.0)
    optimizer.lr = 0.1
    assert optimizer.lr == 0.1
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.01])
    a.grad += 1
    b.grad += 1
    optimizer.step()
    assert a.item() == pytest.approx(1 - 0.1 * (1 + 0.5)) and b.item() == pytest.approx(1 - 0.01)


def test_the_scale_of_a_group_holds_from_the_first_step():
    a, b, c = Parameter([1.0]), Parameter([1.0]), Parameter([1.0])
    groups = [{"params": [a]}, {"params": [b], "lr_scale": 0.1}, {"params": [c], "lr": 7.0}]
    assert [group["lr"] for group in SGD(groups, lr=2.0).param_groups] == [2.0, 0.2, 7.0]


@given(SEEDS, st.floats(1e-3, 1e3))
def test_adamw_does_not_see_the_scale_of_the_loss(seed, scale):
    start, g = generator(seed, "start").normal(size=4), gradients(seed, 5, 4)
    paths = [trajectory(lambda params: AdamW(params, lr=0.1, eps=1e-30), start, k * g) for k in (1.0, scale)]
    np.testing.assert_allclose(paths[0], paths[1], rtol=1e-9, atol=1e-12)


def test_decay_is_decoupled():
    """With a zero gradient AdamW shrinks the weight by exactly 1 − lr·wd, and its moments stay zero."""
    p = Parameter(np.array([2.0]))
    optimizer = AdamW([p], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert p.item() == 2.0 * (1 - 0.1 * 0.5)
    assert not any(array.any() for array in optimizer.state.values())


def test_float32_stays_float32():
    p = Parameter([1.0])
    optimizer = AdamW([p])
    p.grad += 1
    optimizer.step()
    assert {array.dtype for array in (p.data, optimizer.flat.grad, *optimizer.state.values())} == {np.dtype(np.float32)}


def test_a_replaced_parameter_stops_the_step():
    p = Parameter([1.0])
    optimizer = SGD([p])
    p.data = p.data * 2
    with pytest.raises(RuntimeError, match="the data of 0 was replaced"):
        optimizer.step()
    assert optimizer.steps == 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: SGD(p, lr=-1), "lr must be a finite number of at least 0, got -1"),
        (lambda p: SGD(p, momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda p: SGD(p, nesterov=True), "nesterov .* needs momentum"),
        (lambda p: AdamW(p, betas=(0.9, 1.0)), r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
        (lambda p: AdamW(p, eps=float("nan")), "eps must be above 0, .*, got nan"),
        (lambda p: AdamW([{"params": p, "weight_dacay": 0.1}]), "AdamW has no option weight_dacay"),
        (lambda p: AdamW([{"params": p, "weight_decay": -0.1}]), "weight_decay must be a finite number"),
    ],
)
def test_bad_options_get_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make([Parameter([1.0])])
