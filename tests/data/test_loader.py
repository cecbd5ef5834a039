import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.data import Dataset, Loader
from minivit.data.augment import RandomCrop, RandomHorizontalFlip


def dataset(n):
    """Image i is labelled i mod 5, and its pixels name it too."""
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] + np.zeros((n, 1, 4, 4), np.uint8)
    images[:, :, 0, 0] = 255
    return Dataset("numbered", images, np.arange(n) % 5, list("abcde"))


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def assert_same_batches(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for a, b in zip(first, second):
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x, y)


sizes = st.integers(1, 40)
AUGMENT = (RandomCrop(1), RandomHorizontalFlip())


@given(sizes, st.integers(1, 12), st.integers(0, 9), st.booleans(), st.integers(0, 3))
def test_an_epoch_visits_every_image_once_with_its_own_pixels_and_label(n, batch_size, epoch, shuffle, prefetch):
    data = dataset(n)
    loader = Loader(data, batch_size, seed=3, shuffle=shuffle, prefetch=prefetch)
    batches = list(loader.epoch(epoch))
    assert len(batches) == len(loader)
    assert all(len(batch.samples) == batch_size for batch in batches[:-1])
    samples = np.concatenate([batch.samples for batch in batches])
    np.testing.assert_array_equal(np.sort(samples), np.arange(n))
    if not shuffle:
        np.testing.assert_array_equal(samples, np.arange(n))
    for batch in batches:
        assert (batch.images.dtype, batch.labels.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(batch.labels, batch.samples % 5)
        np.testing.assert_array_equal(batch.images, data.normalise(data.images[batch.samples]))


@given(sizes, st.integers(1, 12), st.data(), st.integers(0, 3), st.booleans())
def test_resuming_gives_the_tail_of_the_epoch(n, batch_size, data, prefetch, drop_last):
    drop_last = drop_last and n >= batch_size
    loader = Loader(dataset(n), batch_size, augment=AUGMENT, prefetch=prefetch, drop_last=drop_last)
    start = data.draw(st.integers(0, len(loader)))
    whole = list(loader.epoch(7))
    assert_same_batches(loader.epoch(7, start), whole[start:])
    if start < len(loader):
        assert_same_batches([loader.batch(7, start)], [whole[start]])


@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 12))
def test_an_augmented_image_does_not_depend_on_the_batch_size(n, first, second):
    def by_sample(batch_size):
        batches = list(Loader(dataset(n), batch_size, seed=5, augment=AUGMENT).epoch(2))
        order = np.argsort(np.concatenate([batch.samples for batch in batches]))
        return np.concatenate([batch.images for batch in batches])[order]

    np.testing.assert_array_equal(by_sample(first), by_sample(second))


def test_drop_last_leaves_out_the_smaller_batch_only():
    data = dataset(10)
    assert [len(batch.labels) for batch in Loader(data, 4, drop_last=True).epoch(0)] == [4, 4]
    assert [len(batch.labels) for batch in Loader(data, 5, drop_last=True).epoch(0)] == [5, 5]
    assert [len(batch.labels) for batch in Loader(data, 4).epoch(0)] == [4, 4, 2]


def test_seed_and_epoch_each_change_the_order():
    orders = [Loader(dataset(40), 4, seed=seed).order(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


def test_augmentations_see_bytes_and_are_applied_in_order():
    seen = []

    def note(name):
        def augment(images, samples, seed, epoch):
            seen.append((name, images.dtype, samples.tolist(), seed, epoch))
            return images

        return augment

    list(Loader(dataset(3), 3, seed=8, shuffle=False, augment=(note("a"), note("b"))).epoch(6))
    assert seen == [("a", np.uint8, [0, 1, 2], 8, 6), ("b", np.uint8, [0, 1, 2], 8, 6)]


def test_batches_are_made_ahead_but_no_more_than_prefetch():
    made = []
    started = threading.Semaphore(0)

    def augment(images, samples, seed, epoch):
        made.append(samples.tolist())
        started.release()
        return images

    batches = Loader(dataset(10), 1, shuffle=False, augment=(augment,), prefetch=2).epoch(0)
    next(batches)
    for _ in range(3):  # the one that was asked for, and two more
        assert started.acquire(timeout=10)
    assert made == [[0], [1], [2]]
    batches.close()


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_an_exception_in_the_thread_is_raised_where_its_batch_was_due(prefetch):
    def fail(images, samples, seed, epoch):
        if 4 in samples:
            raise ArithmeticError("image 4 is special")
        return images

    batches = Loader(dataset(10), 2, shuffle=False, augment=(fail,), prefetch=prefetch).epoch(0)
    assert [next(batches).samples.tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ArithmeticError, match="image 4 is special"):
        next(batches)
    assert not loader_threads()


def test_the_thread_ends_with_the_epoch_and_when_the_loop_is_left():
    loader = Loader(dataset(20), 2)
    list(loader.epoch(0))
    assert not loader_threads()

    batches = loader.epoch(0)
    next(batches)
    assert loader_threads()
    batches.close()
    assert not loader_threads()

    for _ in loader.epoch(0):
        break
    assert not loader_threads()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1 .* got 0"),
        ({"batch_size": 2, "prefetch": -1}, "prefetch at least 0, got 2 and -1"),
        ({"batch_size": 11, "drop_last": True}, "batch_size 11 with drop_last=True makes no batch of 10 images"),
    ],
)
def test_settings_that_give_no_batch_get_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Loader(dataset(10), **settings)


@pytest.mark.parametrize("start", [-1, 4])
def test_a_start_outside_of_the_epoch_is_refused_at_once(start):
    with pytest.raises(ValueError, match=f"start must be a batch number in 0 … 3, got {start}"):
        Loader(dataset(5), 2).epoch(0, start)
