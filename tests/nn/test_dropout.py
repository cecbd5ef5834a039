"""What dropout and drop-path leave, and that a mask belongs to its sample, however the batch is cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, ops
from minivit.nn import Dropout, DropPath
from minivit.random import sampling
from tests.strategies import arrays, flags, some_axes

each_layer = pytest.mark.parametrize("kind", [Dropout, DropPath])
rates = st.sampled_from([0.1, 0.5, 0.9])


def masked(layer, samples, seed=0, step=0, shape=(8, 3)):
    """What is left of ones, for these samples."""
    with sampling(seed, step, np.asarray(samples)):
        return layer(Tensor(np.ones((len(samples), *shape)))).data


@each_layer
@given(x=some_axes.flatmap(arrays), p=rates, training=flags)
def test_each_number_becomes_0_or_is_divided_by_the_chance_to_stay(kind, x, p, training):
    y = kind(p).train(training)(Tensor(x)).data
    expected = np.where(y == 0, 0, x / (1 - p)) if training else x
    np.testing.assert_allclose(y, expected, rtol=1e-14)


@each_layer
def test_in_evaluation_mode_and_at_rate_0_the_input_is_passed_on_as_it_is(kind):
    x = Tensor([1.0, 2.0])
    assert kind(0.5).eval()(x) is x
    assert kind(0.0)(x) is x
    assert kind()(x) is x


@given(rates, st.integers(0, 2**32 - 1))
def test_drop_path_keeps_or_drops_whole_samples(p, seed):
    y = masked(DropPath(p), np.arange(50), seed)
    assert (y == y[:, :1, :1]).all()


@given(rates)
def test_dropout_decides_for_every_number_on_its_own(p):
    y = masked(Dropout(p), np.arange(50))
    for axis in range(3):
        assert (y.std(axis) > 0).any()


@each_layer
@given(p=rates, seed=st.integers(0, 2**32 - 1))
def test_the_mean_stays(kind, p, seed):
    y = masked(kind(p), np.arange(20_000), seed, shape=(1,))
    scatter = (p / (1 - p) / y.size) ** 0.5  # the standard deviation of the mean of such masks
    assert abs(y.mean() - 1) < 6 * scatter
    assert abs((y == 0).mean() - p) < 6 * (p * (1 - p) / y.size) ** 0.5


@each_layer
@given(
    p=rates,
    samples=st.lists(st.integers(0, 2**40), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    where=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_a_mask_depends_on_the_index_of_its_sample_only(kind, p, samples, cuts, where):
    """The whole batch is what its pieces are, one after another, whatever the cut."""
    layer, pieces = kind(p), np.split(np.array(samples), sorted(cuts))
    whole = masked(layer, samples, *where)
    np.testing.assert_array_equal(np.concatenate([masked(layer, piece, *where) for piece in pieces]), whole)


@each_layer
def test_seeds_steps_samples_and_layers_differ(kind):
    layer, samples = kind(0.5), np.arange(64)
    with sampling(0, 0, samples):
        masks = [layer(Tensor(np.ones((64, 1)))).data for _ in range(2)]
    masks += [masked(layer, samples + 64, shape=(1,)), masked(layer, samples, seed=1, shape=(1,))]
    masks += [masked(layer, samples, step=1, shape=(1,))]
    assert all((a != b).any() for i, a in enumerate(masks) for b in masks[:i])


@each_layer
def test_a_dropped_number_passes_no_gradient_and_a_kept_one_its_factor(kind):
    x = Tensor(np.ones((50, 4)), requires_grad=True)
    with sampling(0, 0, np.arange(50)):
        y = kind(0.5)(x)
    ops.sum(y).backward()
    np.testing.assert_array_equal(x.grad, y.data)
    assert set(np.unique(y.data)) == {0, 2}


@each_layer
@pytest.mark.parametrize("p", [-0.1, 1, 1.5, float("nan")])
def test_a_rate_that_is_no_chance_to_stay_gets_a_sentence(kind, p):
    with pytest.raises(ValueError, match=rf"the probability of {kind.__name__} must lie in \[0, 1\), got {p}"):
        kind(p)


@each_layer
def test_another_batch_than_announced_gets_a_sentence(kind):
    with sampling(0, 0, np.arange(3)), pytest.raises(ValueError, match=r"announced 3 samples, .* a batch of 2"):
        kind(0.5)(Tensor(np.ones((2, 4))))


@each_layer
def test_float32_stays_float32(kind):
    assert kind(0.5)(Tensor(np.ones((2, 3), np.float32))).dtype == np.float32
