import threading
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.random import bookmark, generator, key, layer_uniform, philox, replaying, sampling, uniform

sample_lists = st.lists(st.integers(0, 2**40), min_size=1, max_size=8)
shapes = st.sampled_from([(), (1,), (3,), (4,), (2, 3), (9,)])


@pytest.mark.parametrize(
    ("counter", "words", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_philox_gives_the_known_answers(counter, words, answer):
    """The vectors that its authors publish with their code, for ten rounds of Philox4x32."""
    counter = [np.array([int(word, 16)], np.uint64) for word in counter.split()]
    drawn = philox(counter, tuple(int(word, 16) for word in words.split()))
    assert [f"{int(word[0]):08x}" for word in drawn] == answer.split()


@given(sample_lists, shapes, st.integers(0, 100))
def test_a_row_depends_on_its_sample_alone(samples, shape, seed):
    """So the rows of a batch are the same however the batch is ordered or cut, and equal samples have equal rows."""
    stream, samples = key(seed, "test"), np.array(samples)
    rows = uniform(stream, samples, shape)
    assert rows.shape == (len(samples), *shape) and rows.dtype == np.float32
    np.testing.assert_array_equal(uniform(stream, samples[::-1], shape), rows[::-1])
    for i in range(len(samples)):
        np.testing.assert_array_equal(uniform(stream, samples[i : i + 1], shape)[0], rows[i])


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_different_samples_and_streams_have_different_numbers(a, b):
    """Sample indices beyond 32 bits too. Four numbers agree by chance in 1 of 2⁹⁶ cases."""
    x, y = (uniform(key(0), np.array([i]), (4,)) for i in (a, b))
    assert (x == y).all() == (a == b)
    x, y = (uniform(key(seed), np.array([0]), (4,)) for seed in (a, b))
    assert (x == y).all() == (a == b)


def test_numbers_are_uniform_and_independent():
    x = uniform(key(0, "uniform"), np.arange(1000), (100,)).astype(np.float64)
    assert 0 <= x.min() < 1e-4 and 1 - 1e-4 < x.max() < 1
    counts = np.histogram(x, bins=50, range=(0, 1))[0]
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert 25 < chi_squared < 80  # 49 ± 10 is expected
    centred = (x - 0.5) * 12**0.5
    for neighbours in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1], centred[:, 4:] * centred[:, :-4]):
        assert abs(neighbours.mean()) < 4 / neighbours.size**0.5


def test_a_key_is_made_of_two_words_and_of_values_not_types():
    """A step that was read from a file as np.int64 names the stream that it named as an int."""
    assert all(0 <= word < 2**32 for word in key(0, "a", 1))
    assert key(np.int64(7), "step", np.int32(3)) == key(7, "step", 3)
    assert len({key(0), key(1), key(0, 0), key(0, "0"), key(0, "a", "b"), key(0, "ab"), key(0, "b", "a")}) == 7


def test_generators_are_keyed():
    a, b, c = generator(0, "init", "a"), generator(0, "init", "a"), generator(0, "init", "b")
    a.normal()
    np.testing.assert_array_equal(generator(0, "init", "a").normal(size=3), b.normal(size=3))
    assert c.normal() != generator(0, "init", "a").normal()


def draw_twice(batch):
    return np.stack([layer_uniform(batch, (2,)), layer_uniform(batch, (2,))])


@given(sample_lists, st.data())
def test_layers_draw_the_same_for_a_sample_in_any_micro_batch(samples, data):
    samples = np.array(samples)
    cut = data.draw(st.integers(0, len(samples)))
    with sampling(0, 5, samples):
        whole = draw_twice(len(samples))
    parts = []
    for part in (samples[:cut], samples[cut:]):
        with sampling(0, 5, part):
            parts.append(draw_twice(len(part)))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert (whole[0] != whole[1]).any()


def test_seeds_and_steps_draw_differently():
    drawn = set()
    for seed, step in [(0, 0), (0, 1), (1, 0)]:
        with sampling(seed, step, np.arange(2)):
            drawn.add(draw_twice(2).tobytes())
    assert len(drawn) == 3


def test_sampling_may_be_nested_and_ends_with_an_error():
    with sampling(0, 0, np.arange(2)):
        first = layer_uniform(2)
        with pytest.raises(KeyError), sampling(0, 1, np.arange(3)):
            layer_uniform(3)
            raise KeyError
        second = layer_uniform(2)
    with sampling(0, 0, np.arange(2)):
        np.testing.assert_array_equal([layer_uniform(2), layer_uniform(2)], [first, second])


def test_outside_of_sampling_every_call_draws_anew():
    assert (layer_uniform(4, (4,)) != layer_uniform(4, (4,))).any()


def test_sampling_belongs_to_its_thread():
    shapes = []
    with sampling(0, 0, np.arange(2)):
        thread = threading.Thread(target=lambda: shapes.append(layer_uniform(3).shape))
        thread.start()
        thread.join()
    assert shapes == [(3,)]


def test_a_batch_that_was_not_announced():
    with sampling(0, 0, np.arange(2)), pytest.raises(ValueError, match=r"announced 2 samples, .* a batch of 3"):
        layer_uniform(3)


@given(st.booleans(), st.integers(0, 3), st.integers(0, 3))
def test_a_replay_draws_the_same_again_and_leaves_no_trace(sampled, before, between):
    """Wherever it starts from, however many draws came in between, and inside another ``sampling``."""
    with sampling(0, 5, np.arange(2)) if sampled else nullcontext():
        for _ in range(before):
            layer_uniform(2)
        place = bookmark()
        first = draw_twice(2)
        for _ in range(between):
            layer_uniform(2)
        place_after = bookmark()
        with sampling(1, 1, np.arange(7)), replaying(place):
            again = draw_twice(2)
            layer_uniform(2)
        following = layer_uniform(2)
        with replaying(place_after):
            np.testing.assert_array_equal(layer_uniform(2), following)
    np.testing.assert_array_equal(again, first)


def test_a_replay_may_run_in_another_thread_and_ends_with_an_error():
    with sampling(3, 5, np.arange(4, 6)):
        place = bookmark()
        first = draw_twice(2)
    drawn = []

    def replay():
        here = bookmark()
        with pytest.raises(KeyError), replaying(place):
            drawn.append(draw_twice(2))
            raise KeyError
        drawn.append(bookmark() == here)

    thread = threading.Thread(target=replay)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(drawn[0], first)
    assert drawn[1]


def test_a_bookmark_may_be_replayed_many_times():
    place = bookmark()
    drawn = []
    for _ in range(3):
        with replaying(place):
            drawn.append(draw_twice(3))
    np.testing.assert_array_equal(drawn[1:], drawn[:-1])
