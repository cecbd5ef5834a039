"""The loop: a run that is stopped anywhere and resumed is the run that was never stopped."""

import signal

import numpy as np
import pytest

from minivit import ops
from minivit.data import Dataset, Loader
from minivit.nn import Dropout, Linear, Module
from minivit.objective import Classification
from minivit.optim import EMA, AdamW, warmup_cosine, weight_decay_groups
from minivit.random import generator
from minivit.training import (
    CheckpointError,
    Interrupted,
    Layout,
    NonFiniteLoss,
    TrainConfig,
    evaluate,
    fit,
    load_checkpoint,
    loop,
    read_log,
    restore,
    train_step,
)

OBJECTIVE = Classification(label_smoothing=0.1)
CLOCK = {"seconds", "images_per_second"}  # what may differ between two runs


class Net(Module):
    def __init__(self):
        self.fc1 = Linear(4, 8)
        self.drop = Dropout(0.3)
        self.fc2 = Linear(8, 3)
        rng = generator(0, "net")
        for p in self.parameters():
            p.data[...] = rng.normal(size=p.shape)

    def forward(self, x):
        return self.fc2(self.drop(ops.gelu(self.fc1(ops.reshape(x, (len(x), 4))))))


def brighten(images, samples, seed, epoch):
    return images + generator(seed, "brighten", epoch).integers(0, 30, dtype=np.uint8)


def dataset(name, size):
    """Three classes, told apart by which of the first three pixels is bright."""
    rng = generator(0, name)
    labels = rng.integers(0, 3, size)
    images = rng.integers(0, 100, (size, 1, 2, 2))
    images[np.arange(size), 0, labels // 2, labels % 2] += 120
    return Dataset("pixels", images.astype(np.uint8), labels, ["a", "b", "c"])


TRAIN, TEST = dataset("train", 10), dataset("test", 7)  # 3 batches of 4, 4 and 2 an epoch


def run(folder, resume=False, overwrite=False, meta=None, layout=None, objective=OBJECTIVE, **options):
    """A fresh model, optimizer and loaders, as a new process would make them; then fit()."""
    options = {
        "epochs": 3, "lr": 0.05, "warmup_epochs": 1, "clip": 1.0, "ema": 0.9,
        "log_steps": 1, "progress": False, **options,
    }  # fmt: skip
    model = Net().eval()  # as after an evaluation: fit must train in training mode
    optimizer = AdamW(weight_decay_groups(model, 0.05))
    train = Loader(TRAIN, 4, seed=1, augment=[brighten])
    test = Loader(TEST.normalised_like(TRAIN), 4, shuffle=False)
    config = TrainConfig(folder, **options)
    layout = layout or Layout(workers=2, micro_batch=2)
    return fit(model, optimizer, train, test, config, objective, resume, overwrite, meta, layout)


def contents(folder):
    """Everything that a run leaves, without what a clock measured."""
    last, best = load_checkpoint(folder / "last.npz"), load_checkpoint(folder / "best.npz")
    progress = {name: value for name, value in last.meta["progress"].items() if name not in CLOCK}
    lines = read_log(folder / "log.jsonl")
    log = [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]
    arrays = [last.model, last.optimizer, last.ema, best.model]
    return progress, log, [{name: array.tobytes() for name, array in section.items()} for section in arrays]


def on_call(monkeypatch, name, number, action):
    """Let ``loop.<name>`` do ``action`` after its call ``number`` (0, 1, …) from now on."""
    function, calls = getattr(loop, name), iter(range(1_000_000))

    def acting(*args, **options):
        result = function(*args, **options)
        if next(calls) == number:
            action()
        return result

    monkeypatch.setattr(loop, name, acting)


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    return contents(folder)


def test_an_undisturbed_run(undisturbed):
    progress, log, _ = undisturbed
    assert progress["epoch"] == 3 and progress["step"] == 9 and progress["log_lines"] == len(log) == 12
    assert [line["event"] for line in log] == (["step"] * 3 + ["epoch"]) * 3
    assert [line["step"] for line in log] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]
    assert [line["epoch"] for line in log] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert all(np.isfinite(value) for line in log for value in line.values() if not isinstance(value, str))
    rates = [line["lr"] for line in log if line["event"] == "step"]
    assert rates[0] == 0 and max(rates) == rates[3] == pytest.approx(0.05) and 0 < rates[-1] < rates[-2]


def test_the_loop_is_a_loop(undisturbed):
    """The same run, written out: steps, an average, and means over the images of each epoch."""
    model = Net()
    optimizer = AdamW(weight_decay_groups(model, 0.05))
    ema = EMA(optimizer, 0.9, warmup=True)
    train = Loader(TRAIN, 4, seed=1, augment=[brighten])
    step, epochs = 0, []
    with Layout(workers=2, micro_batch=2) as layout:
        for epoch in range(3):
            results = []
            for batch in train.epoch(epoch):
                optimizer.lr = warmup_cosine(step, 9, 3, 0.05)
                result = train_step(model, OBJECTIVE, batch, optimizer, 0, step, layout, max_norm=1.0)
                results.append((result, len(batch.labels)))
                ema.update()
                step += 1
            epochs.append((sum(r.loss * n for r, n in results) / 10, sum(r.correct for r, _ in results) / 10))

    _, log, arrays = undisturbed
    logged = [(line["train_loss"], line["train_accuracy"]) for line in log if line["event"] == "epoch"]
    np.testing.assert_allclose(logged, epochs, rtol=1e-12)
    for section, part in zip(arrays, (model, optimizer, ema)):
        assert section == {name: array.tobytes() for name, array in part.state_dict().items()}


def test_it_repeats(tmp_path, undisturbed):
    run(tmp_path)
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize("step", range(9))
def test_interrupted_after_any_step_and_resumed(tmp_path, monkeypatch, capfd, undisturbed, step):
    on_call(monkeypatch, "train_step", step, press_ctrl_c)
    message = rf"interrupted by SIGINT after {step + 1} of 9 steps, and saved: --resume goes on from .*last.npz"
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=message):
        run(tmp_path, resume_hint="--resume")
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_checkpoint(tmp_path / "last.npz").meta["progress"]["step"] == step + 1
    monkeypatch.undo()
    run(tmp_path, resume=True)
    assert contents(tmp_path) == undisturbed


def test_interrupted_again_and_again(tmp_path, monkeypatch, capfd, undisturbed):
    for session in range(9):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            on_call(patch, "train_step", 0, press_ctrl_c)
            run(tmp_path, resume=session > 0)
    run(tmp_path, resume=True)
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize("batch, lines", [(0, 7), (1, 8)])
def test_interrupted_in_an_evaluation(tmp_path, monkeypatch, capfd, undisturbed, batch, lines):
    """Between two batches it is left, and done anew on resuming; after the last one it counts."""
    calls = iter(range(3))

    def pressing(model, batches, layout, objective):
        def press(number, item):
            if call == 1 and number == batch:
                press_ctrl_c()
            return item

        call = next(calls)
        return evaluate(model, (press(number, item) for number, item in enumerate(batches)), layout, objective)

    monkeypatch.setattr(loop, "evaluate", pressing)
    with pytest.raises(Interrupted, match="after 6 of 9 steps"):
        run(tmp_path)
    monkeypatch.undo()
    assert len(read_log(tmp_path / "log.jsonl")) == lines
    run(tmp_path, resume=True)
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize("options, saved", [({"save_epochs": 2}, None), ({}, 3), ({"save_seconds": 0}, 5)])
def test_killed_and_resumed(tmp_path, monkeypatch, undisturbed, options, saved):
    """An exception out of nowhere is like a power cut: what was saved before counts, what was logged after is cut."""

    def die():
        raise KeyError("power cut")

    on_call(monkeypatch, "train_step", 5, die)
    with pytest.raises(KeyError):
        run(tmp_path, **options)
    monkeypatch.undo()
    if saved is None:
        assert not (tmp_path / "last.npz").exists()
        run(tmp_path)
    else:
        assert load_checkpoint(tmp_path / "last.npz").meta["progress"]["step"] == saved
        assert len(read_log(tmp_path / "log.jsonl")) == 6  # five steps, one epoch
        run(tmp_path, resume=True)
    assert contents(tmp_path) == undisturbed


def test_a_second_ctrl_c_stops_at_once_and_keeps_what_was_saved(tmp_path, monkeypatch, capfd):
    def press_twice():
        press_ctrl_c()
        press_ctrl_c()

    on_call(monkeypatch, "train_step", 4, press_twice)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert load_checkpoint(tmp_path / "last.npz").meta["progress"]["step"] == 3


def test_the_weights_that_were_evaluated_are_the_best_ones(tmp_path):
    result = run(tmp_path, epochs=8)
    epochs = [line for line in read_log(tmp_path / "log.jsonl") if line["event"] == "epoch"]
    assert result.best_accuracy == max(line["test_accuracy"] for line in epochs)
    assert result.test_accuracy == epochs[-1]["test_accuracy"] and result.steps == 24
    assert result.seconds > 0 and result.images_per_second > 0
    best = load_checkpoint(tmp_path / "best.npz")
    model = Net()
    restore(best, model)
    test = evaluate(model, Loader(TEST.normalised_like(TRAIN), 4, shuffle=False))
    assert test.accuracy == result.best_accuracy == best.meta["progress"]["best_accuracy"]
    assert not best.optimizer and not best.ema


def test_it_learns(tmp_path):
    result = run(tmp_path, epochs=20, ema=None, clip=None)
    assert result.test_accuracy > 0.8 and result.test_loss < 0.5
    assert not load_checkpoint(tmp_path / "last.npz").ema


def test_a_finished_run_resumes_to_its_result(tmp_path):
    first = run(tmp_path, epochs=1)
    before = (tmp_path / "last.npz").read_bytes()
    again = run(tmp_path, epochs=1, resume=True)
    assert again[:6] == first[:6] and again.images_per_second == 0
    assert (tmp_path / "last.npz").read_bytes() == before


def test_a_run_is_not_overwritten_by_mistake(tmp_path):
    run(tmp_path, epochs=1)
    before = (tmp_path / "last.npz").read_bytes()
    with pytest.raises(CheckpointError, match="holds a run already: resume=True goes on with it"):
        run(tmp_path)
    assert (tmp_path / "last.npz").read_bytes() == before
    run(tmp_path, overwrite=True)
    assert len(read_log(tmp_path / "log.jsonl")) == 12


def test_resuming_nothing_gets_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"last.npz cannot be read: No such file"):
        run(tmp_path, resume=True)


def test_resuming_with_other_settings_gets_a_sentence(tmp_path):
    run(tmp_path, epochs=2, meta={"model": "net", "arguments": {"size": (2, 2)}})
    with pytest.raises(CheckpointError, match=r"is of another run: epochs was 2 and is 3; model was 'net' and is None"):
        run(tmp_path, resume=True)
    same = {"epochs": 2, "meta": {"model": "net", "arguments": {"size": [2, 2]}}}
    run(tmp_path, resume=True, save_epochs=5, log_steps=None, **same)


def test_the_description_suffices_to_predict(tmp_path):
    run(tmp_path, epochs=1, meta={"model": "net", "note": "hello"})
    meta = load_checkpoint(tmp_path / "best.npz").meta
    assert meta["dataset"] == "pixels" and meta["classes"] == ["a", "b", "c"] and meta["note"] == "hello"
    assert meta["mean"] == list(TRAIN.mean) and meta["std"] == list(TRAIN.std)


def test_a_nonfinite_loss_stops_and_saves_the_weights_before_it(tmp_path, monkeypatch, undisturbed):
    function = loop.train_step

    def poisoned(model, objective, batch, optimizer, seed, step, *rest, **options):
        batch = batch._replace(images=batch.images * np.float32("nan")) if step == 4 else batch
        return function(model, objective, batch, optimizer, seed, step, *rest, **options)

    monkeypatch.setattr(loop, "train_step", poisoned)
    message = r"the loss is nan in step 4: .* the input images. .*nonfinite.npz"
    with pytest.raises(NonFiniteLoss, match=message) as caught:
        run(tmp_path)
    assert caught.value.first == "the input images"
    failed = load_checkpoint(tmp_path / "nonfinite.npz")
    assert failed.meta["progress"]["step"] == 4 and all(np.isfinite(a).all() for a in failed.model.values())
    assert load_checkpoint(tmp_path / "last.npz").meta["progress"]["step"] == 3
    monkeypatch.undo()
    run(tmp_path, resume=True)
    assert contents(tmp_path) == undisturbed


def test_a_full_disk_gets_a_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot hold a run: (File exists|Not a directory)"):
        run(tmp_path / "file" / "run")


def test_in_a_file_there_is_a_line_for_each_epoch_and_no_bar(tmp_path, capfd):
    run(tmp_path, progress=True)
    out, err = capfd.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert "test loss" in out and "images/s" in out and "\r" not in out + err and err == ""


def test_without_progress_nothing_is_printed(tmp_path, capfd):
    run(tmp_path)
    assert capfd.readouterr() == ("", "")
