"""The learning rate over a run."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.optim import warmup_cosine


@given(st.integers(1, 50), st.integers(0, 50), st.floats(1e-4, 1.0), st.floats(0, 1.0), st.floats(0, 1.0))
def test_shape_of_the_curve(total, warmup, base, low, start):
    warmup = min(warmup, total)
    final_lr, start_lr = low * base, start * base
    rates = [warmup_cosine(step, total, warmup, base, final_lr, start_lr) for step in range(total + 3)]
    assert rates[0] == pytest.approx(start_lr if warmup else base)
    assert rates[total:] == [final_lr] * 3
    if warmup < total:
        assert rates[warmup] == max(rates) == pytest.approx(base)
    change = np.diff(rates)
    assert (change[: max(0, warmup - 1)] >= 0).all() and (change[warmup:] <= 1e-12).all()


@given(st.integers(1, 40), st.integers(0, 20))
def test_the_cosine_is_symmetric_about_its_middle(half, warmup):
    total = warmup + 2 * half
    for i in range(half + 1):
        pair = warmup_cosine(warmup + i, total, warmup, 1.0, 0.2) + warmup_cosine(total - i, total, warmup, 1.0, 0.2)
        assert pair == pytest.approx(1.2)


def test_known_values():
    assert warmup_cosine(1, 100, 4, base_lr=1.0, start_lr=0.2) == pytest.approx(0.4)
    assert warmup_cosine(28, 100, 4, base_lr=1.0) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert warmup_cosine(52, 100, 4, base_lr=1.0, final_lr=0.5) == pytest.approx(0.75)


@pytest.mark.parametrize("step, total, warmup", [(-1, 10, 0), (0, 10, 11), (0, 10, -1)])
def test_bad_arguments_get_a_sentence(step, total, warmup):
    with pytest.raises(ValueError, match=f"got step {step}, warmup_steps {warmup}, total_steps {total}"):
        warmup_cosine(step, total, warmup, 1.0)
