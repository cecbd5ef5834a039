import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.data import Dataset, Loader
from minivit.data.augment import Mix, RandomCrop, RandomErasing, RandomHorizontalFlip, RandomResizedCrop
from tests.devices import no_waiting


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
EVERYTHING = (RandomResizedCrop(), *AUGMENT, RandomErasing(0.5))
modes = st.sampled_from(["batch", "pair", "elem"])


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


@given(st.integers(2, 20), st.integers(3, 12), st.integers(3, 12), st.integers(1, 3))
def test_an_augmented_image_does_not_depend_on_the_batch_size(n, first, second, repeats):
    def by_sample(batch_size):
        loader = Loader(dataset(n), batch_size, seed=5, augment=EVERYTHING, repeats=repeats, prefetch=0)
        batches = list(loader.epoch(2))
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


def test_floats_come_after_bytes_and_are_normalised():
    seen = []

    class Note:
        stage = "floats"

        def __call__(self, images, samples, seed, epoch):
            seen.append((samples.tolist(), seed, epoch))
            np.testing.assert_array_equal(images, data.normalise(255 - data.images[samples]))
            return images + 1

    data = dataset(3)
    loader = Loader(data, 3, seed=8, shuffle=False, augment=(lambda x, *key: 255 - x, Note()))
    [batch] = loader.epoch(6)
    assert seen == [([0, 1, 2], 8, 6)] and batch.images.dtype == np.float32
    np.testing.assert_array_equal(batch.images, data.normalise(255 - data.images) + 1)


@given(st.integers(1, 20), st.integers(4, 12), st.integers(1, 5), modes, st.integers(0, 9), st.booleans())
def test_ranks_make_together_what_one_makes(n, batch_size, ranks, mode, epoch, mixing):
    augment = (*EVERYTHING, *([Mix(mode=mode)] if mixing else []))
    loader = Loader(dataset(n), batch_size, seed=3, augment=augment, prefetch=0)
    shards = [list(loader.shard(rank, ranks).epoch(epoch)) for rank in range(ranks)]
    for parts, whole in zip(zip(*shards), loader.epoch(epoch)):
        assert {part.total for part in parts} == {whole.total}
        for name in ("images", "labels", "samples"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert joined.dtype == getattr(whole, name).dtype
            np.testing.assert_array_equal(joined, getattr(whole, name))


def test_a_rank_makes_its_own_images_and_their_partners_only():
    made = []

    def note(images, samples, seed, epoch):
        made.append(samples.tolist())
        return images

    loader = Loader(dataset(9), 9, shuffle=False, augment=(note, Mix()), prefetch=0)
    for rank in range(4):
        loader.shard(rank, 4).batch(0, 0)
    assert made == [[0, 1, 7, 8], [2, 3, 5, 6], [3, 4, 5], [0, 1, 2, 6, 7, 8]]


@given(st.integers(1, 20), st.integers(2, 12), modes, st.data(), st.integers(0, 3))
def test_mixed_batches_do_not_depend_on_where_the_epoch_is_entered(n, batch_size, mode, data, prefetch):
    loader = Loader(dataset(n), batch_size, augment=(*AUGMENT, Mix(mode=mode)), prefetch=prefetch)
    start = data.draw(st.integers(0, len(loader)))
    assert_same_batches(loader.epoch(7, start), [loader.batch(7, number) for number in range(start, len(loader))])


def test_a_mixed_batch_has_a_distribution_for_each_image():
    data = dataset(10)
    mix = Mix(cutmix_alpha=0, label_smoothing=0)
    loader, plain = (Loader(data, 5, shuffle=False, augment=augment) for augment in ([mix], []))
    for mixed, batch in zip(loader.epoch(0), plain.epoch(0)):
        assert (mixed.labels.shape, mixed.labels.dtype) == ((5, 5), np.float32)
        np.testing.assert_array_equal(mixed.samples, batch.samples)
        lam = mixed.labels[0, 0]
        np.testing.assert_allclose(mixed.images, lam * batch.images + (1 - lam) * batch.images[::-1], atol=1e-6)
        hot = np.eye(5)[batch.labels]
        np.testing.assert_allclose(mixed.labels, lam * hot + (1 - lam) * hot[::-1], atol=1e-6)


@given(sizes, st.integers(1, 12), st.integers(1, 5), st.integers(0, 9), st.booleans())
def test_repeated_images_come_one_after_the_other_each_with_a_key_of_its_own(n, batch_size, repeats, epoch, shuffle):
    data = dataset(n)
    batches = list(Loader(data, batch_size, shuffle=shuffle, repeats=repeats, prefetch=0).epoch(epoch))
    samples = np.concatenate([batch.samples for batch in batches])
    images = samples % n
    assert len(samples) == n == len(set(samples.tolist()))
    assert len(set(images.tolist())) == -(-n // repeats)  # ⌈n / repeats⌉
    for start in range(0, n, repeats):
        copies = samples[start : start + repeats]
        np.testing.assert_array_equal(copies, images[start] + n * np.arange(len(copies)))
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), data.labels[images])
    if not shuffle:
        np.testing.assert_array_equal(images, np.arange(n) // repeats)


def test_each_copy_is_augmented_on_its_own():
    images = np.tile(np.random.default_rng(0).integers(0, 256, (1, 1, 32, 32), dtype=np.uint8), (9, 1, 1, 1))
    data = Dataset("the same", images, np.zeros(9, int), ["a"])
    for augment in EVERYTHING[:2] + EVERYTHING[3:]:
        [batch] = Loader(data, 9, augment=[augment], repeats=9).epoch(0)
        assert len(np.unique(batch.images, axis=0)) > 1


def test_other_epochs_repeat_other_images():
    loader = Loader(dataset(40), 40, repeats=4)
    chosen = [frozenset((loader.order(epoch) % 40).tolist()) for epoch in range(30)]
    assert len(set(chosen)) == 30 and len(frozenset.union(*chosen)) == 40


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("mixing", [[], [Mix(mode="elem")]])
def test_on_a_gpu(gpu, where, mixing):
    """Of a data set on the host or on the GPU, all stages, in a thread."""
    loader = Loader(dataset(10), 4, seed=1, augment=(*EVERYTHING, *mixing), repeats=2)
    there = Loader(dataset(10).to(where), 4, seed=1, augment=(*EVERYTHING, *mixing), repeats=2).to("cuda")
    for on_gpu, on_cpu in zip(there.epoch(3), loader.epoch(3)):
        with no_waiting():
            on_gpu.images + on_gpu.labels.sum() + on_gpu.samples.sum()  # all of them on the device
        np.testing.assert_allclose(on_gpu.images.get(), on_cpu.images, atol=0.05)  # a crop's byte may differ by 1
        np.testing.assert_allclose(on_gpu.labels.get(), on_cpu.labels, atol=1e-6)
        np.testing.assert_array_equal(on_gpu.samples.get(), on_cpu.samples)


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
        ({"batch_size": 2, "repeats": 0}, "repeats must be at least 1, got 0"),
        ({"batch_size": 11, "drop_last": True}, "batch_size 11 with drop_last=True makes no batch of 10 images"),
    ],
)
def test_settings_that_give_no_batch_get_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Loader(dataset(10), **settings)


class Late:
    stage = "late"


@pytest.mark.parametrize(
    ("augment", "sentence"),
    [
        ([RandomErasing(), RandomCrop()], r"RandomCrop\(.*\) acts on bytes .* before RandomErasing\(.*acts on floats"),
        ([Mix(), RandomErasing()], r"RandomErasing\(.*\) acts on floats .* before Mix\(.*\), which acts on batch"),
        ([RandomCrop(), Mix(), Mix()], r"mixed once, but augment has Mix\(.*\) and Mix\("),
        ([Late()], "stage of an augmentation must be one of bytes, floats, batch, got 'late'"),
    ],
)
def test_augmentations_in_another_order_than_they_act_get_a_sentence(augment, sentence):
    with pytest.raises(ValueError, match=sentence):
        Loader(dataset(10), 2, augment=augment)


@pytest.mark.parametrize("start", [-1, 4])
def test_a_start_outside_of_the_epoch_is_refused_at_once(start):
    with pytest.raises(ValueError, match=f"start must be a batch number in 0 … 3, got {start}"):
        Loader(dataset(5), 2).epoch(0, start)
