"""The moving average of the weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Parameter
from minivit.optim import EMA, SGD, FlatParameters
from minivit.random import generator


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 0.99]), st.integers(1, 8))
def test_average_is_a_weighted_mean_of_all_weights_so_far(seed, decay, updates):
    path = generator(seed, "path").normal(size=(updates + 1, 3))
    p = Parameter(path[0].copy())
    ema = EMA(FlatParameters([p]), decay)
    for point in path[1:]:
        p.data[:] = point
        ema.update()
    weights = np.array([decay**updates] + [(1 - decay) * decay ** (updates - i) for i in range(1, updates + 1)])
    assert weights.sum() == pytest.approx(1)
    with ema.applied():
        np.testing.assert_allclose(p.data, weights @ path, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(p.data, path[-1])


def test_warmup_starts_with_a_short_memory():
    p = Parameter(np.array([0.0]))
    ema = EMA(FlatParameters([p]), decay=0.5, warmup=True)
    expected = 0.0
    for t, decay in enumerate([2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5], start=1):
        p.data[:] = t
        ema.update()
        expected = decay * expected + (1 - decay) * t
        assert ema.average[0] == pytest.approx(expected)


def test_weights_come_back_after_an_exception():
    p = Parameter([1.0])
    ema = EMA(SGD([p]), 0.5)
    p.data[:] = 2.0
    with pytest.raises(KeyError), ema.applied():
        assert p.item() == 1.0
        raise KeyError
    assert p.item() == 2.0 and ema.average[0] == 1.0


def test_state_round_trip_by_name():
    p, q = Parameter([1.0, 2.0]), Parameter([0.0, 0.0])
    ema, other = (EMA(FlatParameters([("weight", w)]), 0.5, warmup=True) for w in (p, q))
    p.data += 1
    ema.update()
    state = ema.state_dict()
    assert set(state) == {"updates", "average/weight"}
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.average, ema.average)
    assert other.updates == 1
    np.testing.assert_array_equal(q.data, [0, 0])


def test_refusals_are_sentences():
    flat = FlatParameters([("weight", Parameter([1.0]))])
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1"):
        EMA(flat, decay=1)
    ema = EMA(flat)
    with pytest.raises(ValueError, match="not the state of an EMA"):
        ema.load_state_dict({"weight": np.zeros(1)})
    with pytest.raises(ValueError, match="the average is for other parameters"):
        ema.load_state_dict({"updates": np.array(1), "average/bias": np.zeros(1)})
    flat.parameters["weight"].data = np.zeros(1, np.float32)
    with pytest.raises(RuntimeError, match="replaced"):
        ema.update()
