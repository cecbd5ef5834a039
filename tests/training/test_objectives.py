"""Runs that train for something else than classes: reconstruction, and an objective that has weights of its own."""

import numpy as np
import pytest

from minivit.data import Loader
from minivit.objective import Classification, Reconstruction
from minivit.optim import AdamW
from minivit.training import (
    CheckpointError,
    Evaluation,
    Interrupted,
    Layout,
    NonFiniteLoss,
    TrainConfig,
    evaluate,
    fit,
    load_checkpoint,
    read_log,
    restore,
    train_step,
)
from minivit.training.progress import Progress
from tests.cupy_twin import counted
from tests.training.objectives import Masked, likeness
from tests.training.test_loop import TEST, TRAIN, Net, contents, on_call, press_ctrl_c

LAYOUTS = [Layout(micro_batch=1), Layout(micro_batch=3), Layout(workers=2, micro_batch=2)]


def run(folder, model, objective, resume=False, layout=None, epochs=3, **options):
    """A run of a fresh model, and of what the objective has of its own."""
    named = list(model.named_parameters())
    if objective.module:
        named += [(f"objective.{name}", p) for name, p in objective.module.named_parameters()]
    loaders = Loader(TRAIN, 4, seed=1), Loader(TEST.normalised_like(TRAIN), 4, shuffle=False)
    config = TrainConfig(folder, epochs, **{"lr": 0.02, "ema": 0.5, "progress": False, **options})
    return fit(model, AdamW(named), *loaders, config, objective, resume, layout=layout or Layout(micro_batch=2))


def reconstruct(folder, mask_ratio=0.5, **options):
    return run(folder, Masked(), Reconstruction(mask_ratio), **options)


def imitate(folder, **options):
    return run(folder, Net(), likeness(), **options)


# --- reconstruction --------------------------------------------------------------------------------------------------


def test_reconstruction_learns_and_has_no_accuracy(tmp_path, capfd):
    result = reconstruct(tmp_path, epochs=20, progress=True)
    log = read_log(tmp_path / "log.jsonl")
    losses = [line["test_loss"] for line in log]
    assert losses[-1] < 0.6 * losses[0]
    assert result.test_accuracy is None and result.best_accuracy is None
    assert result.test_loss == losses[-1] and result.best_loss == min(losses)
    assert not any("accuracy" in name for line in log for name in line)
    out, _ = capfd.readouterr()
    assert "train loss" in out and "test loss" in out and "accuracy" not in out


def test_the_best_weights_are_those_of_the_lowest_loss(tmp_path):
    """With a rate so high that the last is not the best."""
    result = reconstruct(tmp_path, epochs=8, lr=0.3, ema=None)
    losses = [line["test_loss"] for line in read_log(tmp_path / "log.jsonl")]
    assert min(losses) < losses[-1] and losses.index(min(losses)) > 0
    best, model = load_checkpoint(tmp_path / "best.npz"), Masked()
    restore(best, model)
    assert best.meta["progress"]["epoch"] == losses.index(min(losses))
    test = evaluate(model, Loader(TEST.normalised_like(TRAIN), 4, shuffle=False), objective=Reconstruction(0.5))
    assert test == (pytest.approx(result.best_loss, rel=1e-6), None)


def test_an_evaluation_masks_an_image_alike_every_time():
    model, objective, data = Masked(), Reconstruction(0.5), TEST.normalised_like(TRAIN)
    first = evaluate(model, Loader(data, 4, shuffle=False), objective=objective)
    with Layout(workers=2, micro_batch=1) as layout:
        again = evaluate(model, Loader(data, 3, seed=7), layout, objective)
    assert again.loss == pytest.approx(first.loss, rel=1e-6)
    assert evaluate(model, Loader(data, 4, shuffle=False), objective=Reconstruction(0.25)).loss != first.loss


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("train", [reconstruct, imitate])
def test_layouts_agree(tmp_path, train, layout):
    """What is trained beside the model gets the gradients of all threads too."""
    whole, cut = (train(tmp_path / name, layout=x) for name, x in [("whole", Layout()), ("cut", layout)])
    assert cut.test_loss == pytest.approx(whole.test_loss, rel=1e-4) and cut.test_accuracy == whole.test_accuracy
    ours, theirs = (load_checkpoint(tmp_path / name / "last.npz") for name in ("cut", "whole"))
    for section in ("model", "objective"):
        for name, array in getattr(theirs, section).items():
            np.testing.assert_allclose(getattr(ours, section)[name], array, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("step", [0, 2, 5, 7])
@pytest.mark.parametrize("train", [reconstruct, imitate])
def test_interrupted_and_resumed_bit_for_bit(tmp_path, monkeypatch, capfd, train, step):
    train(tmp_path / "whole")
    on_call(monkeypatch, "train_step", step, press_ctrl_c)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut")
    monkeypatch.undo()
    train(tmp_path / "cut", resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    ours, theirs = (load_checkpoint(tmp_path / name / "last.npz").objective for name in ("cut", "whole"))
    assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}


# --- weights of an objective's own -----------------------------------------------------------------------------------


def test_what_the_objective_has_of_its_own_is_trained_and_saved_with_the_run(tmp_path):
    imitate(tmp_path)
    last, before = load_checkpoint(tmp_path / "last.npz"), likeness().layer.state_dict()
    assert last.objective.keys() == before.keys()
    assert all(np.abs(array - before[name]).max() > 1e-3 for name, array in last.objective.items())
    assert "exp_avg/objective.weight" in last.optimizer
    assert not load_checkpoint(tmp_path / "best.npz").objective  # predictions do without
    with pytest.raises(CheckpointError, match="does not fit this objective: state does not fit Linear"):
        restore(last, Net(), objective=Masked().fc1)


def test_test_images_are_measured_by_the_cross_entropy_all_the_same(tmp_path):
    result, model = imitate(tmp_path, ema=None), Net()
    restore(load_checkpoint(tmp_path / "last.npz"), model)
    test = evaluate(model, Loader(TEST.normalised_like(TRAIN), 4, shuffle=False))
    assert test == pytest.approx(result[:2], rel=1e-6)


def test_a_value_of_its_own_that_is_not_finite_is_named(tmp_path):
    model, objective, batch = Net(), likeness(), Loader(TRAIN, 4).batch(0, 0)
    optimizer = AdamW([*model.parameters(), *objective.layer.parameters()])
    objective.layer.bias.data[1] = np.inf
    with pytest.raises(NonFiniteLoss, match=r"the first to be not finite is the parameter objective\.bias$"):
        train_step(model, objective, batch, optimizer, 0, 0)


# --- one run, one objective ------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_its_own_objective_only(tmp_path):
    reconstruct(tmp_path, mask_ratio=0.5)
    message = r"is of another run: objective was .Reconstruction\(mask_ratio=0.5, .*\). and is .{}"
    with pytest.raises(CheckpointError, match=message.format(r"Reconstruction\(mask_ratio=0.75, ")):
        reconstruct(tmp_path, mask_ratio=0.75, resume=True)
    with pytest.raises(CheckpointError, match=message.format(r"Classification\(")):
        run(tmp_path, Masked(), Classification(), resume=True)


def test_a_step_without_answers_counts_none():
    model, batch = Masked(), Loader(TRAIN, 4).batch(0, 0)
    result = train_step(model, Reconstruction(0.5), batch, AdamW(model.named_parameters()), 0, 0)
    assert result.correct is None and type(result.loss) is float


def test_on_a_gpu_too_a_step_without_answers_waits_once(cupy_twin):
    results = []
    for device in ("cpu", "cuda"):
        model, batch = Masked().to(device), Loader(TRAIN, 4).to(device).batch(0, 0)
        optimizer = AdamW(model.named_parameters())
        with counted() as waits:
            step = train_step(model, Reconstruction(0.5), batch, optimizer, 0, 0, max_norm=0.1)
        test = evaluate(model, Loader(TEST, 4), objective=Reconstruction(0.5))
        assert waits == ({} if device == "cpu" else {"get": 1})
        assert step.correct is None and test.accuracy is None
        results.append((step.loss, step.grad_norm, test.loss))
    assert results[1] == pytest.approx(results[0], rel=1e-5)


@pytest.mark.parametrize(
    "tests, best",
    [
        ([(0.5, 0.6), (0.9, 0.7), (0.1, 0.7), (0.1, 0.65)], [True, True, False, False]),
        ([(0.5, None), (0.6, None), (0.5, None), (0.4, None)], [True, False, False, True]),
    ],
)
def test_the_best_is_the_first_of_the_highest_accuracy_or_else_of_the_lowest_loss(tests, best):
    progress = Progress()
    assert [progress.evaluated(Evaluation(*test)) for test in tests] == best
    last_best = tests[max(i for i, is_best in enumerate(best) if is_best)]
    assert (progress.best_loss, progress.best_accuracy) == last_best
    assert (progress.test_loss, progress.test_accuracy) == tests[-1]
