"""A batch that is normalised as a whole: the cut makes no difference, and nobody is left waiting."""

import math
import signal
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit.autograd import op
from minivit.data import Loader
from minivit.nn import Module
from minivit.objective import Classification
from minivit.optim import SGD
from minivit.shared import batch_total, is_first_piece
from minivit.training import (
    Interrupted,
    Layout,
    NonFiniteLoss,
    Ranks,
    TrainConfig,
    choose_layout,
    evaluate,
    fit,
    load_checkpoint,
    predict,
    train_step,
)
from tests.strategies import generators
from tests.training.short_run import dataset, distance
from tests.training.test_ranks import run, under_mpi
from tests.training.whole_batch_run import Normalised, train


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_number_of_workers_does_not_change_the_training(workers, recompute, seed):
    """Uneven pieces, and last batches of fewer images than workers; running estimates too."""
    ours, theirs = train(Layout(workers), seed, recompute=recompute), train(Layout(), seed)
    assert distance(ours, theirs) < 1e-4
    assert ours["encoder.bn1.num_batches_tracked"] == 1 + 6 and ours["norm.num_batches_tracked"] == 6


def test_without_totals_it_would(monkeypatch):
    monkeypatch.setattr("minivit.training.step.needs_whole_batch", lambda *models: False)
    assert distance(train(Layout(2), steps=2), train(Layout(), steps=2)) > 1e-2


@under_mpi
@pytest.mark.parametrize(("ranks", "workers"), [(2, 1), (2, 2), (3, 1)])
def test_the_number_of_ranks_does_not_change_the_training(tmp_path, ranks, workers):
    assert run(ranks, "-m", "tests.training.whole_batch_run", tmp_path / "end.npz", workers) == (0, "", "")
    assert distance(dict(np.load(tmp_path / "end.npz")), train(Layout())) < 1e-4


def test_a_layout_gives_the_same_bits_each_time():
    first, second = (train(Layout(3), steps=4) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(0, 6), generators)
def test_totals_are_sums_over_the_pieces(workers, size, rng):
    """Each worker has as many of them as it asks for, and one piece is the first. Outside nothing is summed."""
    numbers = rng.standard_normal((3, size, 2))

    def ask(worker, piece):
        own = [batch_total()(part[piece].sum(0)) for part in numbers]
        return own, is_first_piece()

    with Layout(workers) as layout:
        answers = layout.map(ask, size, together=True)
        assert layout.map(lambda worker, piece: batch_total()(piece), size) == layout.pieces(size)
    for own, first in answers:
        np.testing.assert_allclose(own, numbers.sum(1), rtol=1e-12)
        assert first == (own is answers[0][0])


class Fails(Module):
    """Raises in the first piece of a batch, or in the others; on the way forward, or on the way back."""

    def __init__(self, first, forward):
        self.first, self.fails_forward = first, forward

    def forward(self, x):
        if self.fails_forward:
            self.fail()
        return passing(x, self.fail)

    def fail(self):
        if is_first_piece() == self.first:
            raise KeyError("one of them")


@op
def passing(x, on_the_way_back):
    def pullback(dy):
        on_the_way_back()
        return dy

    return x, pullback


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize(("workers", "first"), [(1, True), (2, True), (2, False), (3, False)])
def test_an_exception_in_one_worker_ends_all_and_undoes_the_estimates(workers, first, forward):
    model = Normalised(middle=Fails(first, forward))
    before = model.state_dict()
    optimizer = SGD(model.named_parameters(), lr=0.1)
    batch = Loader(dataset(), 10, shuffle=False).batch(0, 0)
    with Layout(workers) as layout, pytest.raises(KeyError, match="one of them"):
        train_step(model, Classification(), batch, optimizer, 0, 0, layout)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker")]


@pytest.mark.parametrize("bad", [0, 9])
def test_a_bad_image_is_found_in_whichever_piece_it_is(bad):
    """Its numbers are in the totals, and so in all pieces; the running estimates are put back."""
    model = Normalised()
    before = model.state_dict()
    optimizer = SGD(model.named_parameters(), lr=0.1)
    batch = Loader(dataset(), 10, shuffle=False).batch(0, 0)
    batch.images[bad, 0, 3, 3] = math.inf
    with Layout(2) as layout, pytest.raises(NonFiniteLoss, match="the first to be not finite is the input images"):
        train_step(model, Classification(), batch, optimizer, 0, 0, layout)
    batch.images[bad, 0, 3, 3] = 3e38
    with Layout(2) as layout, pytest.raises(NonFiniteLoss, match=r"is the output of encoder\."):
        train_step(model, Classification(), batch, optimizer, 0, 0, layout)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_evaluation_takes_any_cut():
    model, data = Normalised(), dataset()
    model.eval()
    images = data.normalise(data.images)
    whole = predict(model, images, Layout())
    for layout in (Layout(micro_batch=1), Layout(2, 3), Layout(3)):
        with layout:
            np.testing.assert_allclose(predict(model, images, layout), whole, rtol=1e-5, atol=1e-6)
            accuracy = evaluate(model, Loader(data, 10, shuffle=False), layout).accuracy
        assert accuracy == (whole.argmax(1) == data.labels).mean()


def test_a_run_that_is_stopped_and_resumed_is_the_run_that_was_not(tmp_path):
    """The running estimates are saved; with an average of the weights, ``best.npz`` has them as they were."""
    data = dataset()

    def go(folder, batches=math.inf, resume=False):
        model = Normalised()
        optimizer = SGD(model.named_parameters(), lr=0.1, momentum=0.9)
        config = TrainConfig(folder, epochs=2, lr=0.1, ema=0.5, progress=False)
        loaders = StoppedLoader(data, 10, left=batches), Loader(data, 10, shuffle=False)
        fit(model, optimizer, *loaders, config, resume=resume, layout=Layout(2))

    with pytest.raises(Interrupted):
        go(tmp_path / "cut", batches=4)
    go(tmp_path / "cut", resume=True)
    go(tmp_path / "whole")
    for name in ("last.npz", "best.npz"):
        ours, theirs = (load_checkpoint(tmp_path / folder / name) for folder in ("cut", "whole"))
        for key, array in theirs.model.items():
            np.testing.assert_array_equal(ours.model[key], array)
    assert theirs.model["norm.num_batches_tracked"] in (3, 6)


class StoppedLoader(Loader):
    """Ctrl-C comes after so many batches."""

    def __init__(self, *args, left):
        super().__init__(*args, prefetch=0)
        self.left = left

    def epoch(self, epoch, start=0):
        for batch in super().epoch(epoch, start):
            yield batch
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)


def test_a_cut_that_cannot_be_gets_a_sentence():
    model, data = Normalised(), dataset()
    optimizer = SGD(model.named_parameters(), lr=0.1)
    batch = Loader(data, 10).batch(0, 0)
    with Layout(2, 2) as layout, pytest.raises(ValueError, match=r"micro_batch=2\) cuts it into 6 pieces"):
        train_step(model, Classification(), batch, optimizer, 0, 0, layout)
    with Layout(2, 5) as layout:
        train_step(model, Classification(), batch, optimizer, 0, 0, layout)
        layout.ranks = TwoRanks()
        empty = type(batch)(*(array[:0] for array in batch[:3]), 1)
        with pytest.raises(ValueError, match=r"needs all 2 ranks at every layer, but this batch has no image for one"):
            train_step(model, Classification(), empty, optimizer, 0, 0, layout)


class TwoRanks(Ranks):
    size = 2


def test_a_worker_takes_its_share_in_one_piece(monkeypatch):
    monkeypatch.setattr("minivit.training.layout.available_cores", lambda: 2)
    monkeypatch.setattr("minivit.training.layout.WORKER_BYTES", 1)
    monkeypatch.setattr("minivit.training.layout.PIECE_OPERATIONS", 1)
    monkeypatch.setattr("minivit.training.layout.PIECE_USES", 1)
    model, image = Normalised(), np.zeros((1, 1, 8, 8), np.float32)
    for options, expected in [({}, (2, None)), ({"workers": 3}, (3, None)), ({"micro_batch": 50}, (2, 50))]:
        layout = choose_layout(model, image, 100, **options)
        assert (layout.workers, layout.micro_batch) == expected
    with pytest.raises(ValueError, match="leave micro_batch at None"):
        choose_layout(model, image, 100, micro_batch=49)
    assert choose_layout(model.eval(), image, 100).micro_batch == 1
