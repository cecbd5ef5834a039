"""Training on a GPU, seen through the strict twin of CuPy: what is computed, where, and how often the host waits."""

from contextlib import ExitStack

import numpy as np
import pytest

from minivit import Tensor, ops
from minivit.analysis import class_attention
from minivit.backend import device_of, to_device
from minivit.data import Dataset, Loader
from minivit.data.augment import RandomCrop, RandomHorizontalFlip
from minivit.models import VisionTransformer
from minivit.nn import check_device, on_device_of
from minivit.objective import Classification
from minivit.optim import EMA, AdamW, clip_grad_norm, weight_decay_groups
from minivit.random import generator
from minivit.training import (
    Interrupted,
    Layout,
    NonFiniteLoss,
    TrainConfig,
    choose_layout,
    evaluate,
    fit,
    load_checkpoint,
    loop,
    predict,
    read_log,
    restore,
    save_checkpoint,
    train_step,
)
from minivit.training.step import forward_and_backward
from tests.cupy_twin import counted, current, forbid_synchronisation
from tests.training.objectives import LossOf
from tests.training.test_loop import contents, on_call, press_ctrl_c

DEVICES = ["cpu", "cuda", "cuda:1"]
pytestmark = pytest.mark.usefixtures("cupy_twin")


def dataset(name="train", size=11):
    rng = generator(0, name)
    images = rng.integers(0, 256, (size, 3, 8, 8)).astype(np.uint8)
    return Dataset("noise", images, rng.integers(0, 3, size), ["a", "b", "c"], (0.5,) * 3, (0.3,) * 3)


def network(device="cpu"):
    options = {"drop_path_rate": 0.2, "proj_drop_rate": 0.1, "pos_drop_rate": 0.1, "attn_drop_rate": 0.1}
    model = VisionTransformer(8, 4, 3, 3, embed_dim=16, depth=2, num_heads=2, weight_init="book", **options)
    return model.to(device)


def optimizer_for(model):
    """With an eps that keeps AdamW from blowing up the rounding errors of gradients that are zero but for these."""
    with on_device_of(model):
        return AdamW(weight_decay_groups(model, 0.05), lr=0.01, eps=1e-4)


def on(device):
    """The device as the current one, as it is inside ``fit``."""
    return on_device_of(network(device))


def loaders(data_on="cpu", prefetch=2):
    train, test = dataset().to(data_on), dataset("test", 7).to(data_on)
    augment = [RandomCrop(1), RandomHorizontalFlip()]
    return Loader(train, 4, seed=1, augment=augment, prefetch=prefetch), Loader(test, 4, shuffle=False)


def run(folder, device="cpu", resume=False, layout=None, data_on="cpu", prefetch=2, **options):
    """A run as a new process would make it; in one piece a batch, as on a GPU."""
    model = network(device)
    options = {"lr": 0.01, "ema": 0.9, "log_steps": 1, "progress": False, **options}
    config = TrainConfig(folder, epochs=2, **options)
    given = model, optimizer_for(model), *loaders(data_on, prefetch), config, Classification(label_smoothing=0.1)
    return fit(*given, resume, layout=layout or Layout())


def batch_on(device="cpu"):
    return loaders()[0].to(device).batch(0, 0)


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpu")
    run(folder)
    return folder


def assert_same_run(folder, expected, rel=0.0):
    """Bit for bit, but for norms of gradients: NumPy adds up the squares of blocks, and the twin those of the whole."""
    (progress, log, _), (other_progress, other_log, _) = contents(folder), contents(expected)
    assert progress.pop("correct") is other_progress.pop("correct") is None  # of the epoch that comes next
    assert progress == pytest.approx(other_progress, rel=rel) and len(log) == len(other_log)
    for line, other in zip(log, other_log):
        norms = line.pop("grad_norm", 0.0), other.pop("grad_norm", 0.0)
        assert norms[0] == pytest.approx(norms[1], rel=1e-6 + rel)
        assert line.pop("event") == other.pop("event") and line == pytest.approx(other, rel=rel)
    for name in ("last.npz", "best.npz"):
        found, wanted = load_checkpoint(folder / name), load_checkpoint(expected / name)
        for section in ("model", "optimizer", "ema"):
            arrays, others = getattr(found, section), getattr(wanted, section)
            assert arrays.keys() == others.keys()
            for key in others:
                np.testing.assert_allclose(arrays[key], others[key], rtol=rel, atol=rel / 100)


# --- the same run everywhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device, data_on", [("cuda", "cpu"), ("cuda:1", "cpu"), ("cuda:1", "cuda:1"), ("cpu", "cuda")])
def test_a_run_on_a_gpu_is_the_run_on_the_cpu(tmp_path, on_the_cpu, device, data_on):
    result = run(tmp_path, device, data_on=data_on)
    assert_same_run(tmp_path, on_the_cpu)
    assert result.test_accuracy == read_log(on_the_cpu / "log.jsonl")[-1]["test_accuracy"]
    assert current.device == 0  # as it was before


def test_micro_batches_and_clipping_on_a_gpu(tmp_path):
    run(tmp_path / "cpu", clip=0.5)
    run(tmp_path / "cuda", "cuda", clip=0.5, layout=Layout(micro_batch=3))
    assert_same_run(tmp_path / "cuda", tmp_path / "cpu", rel=1e-4)


@pytest.mark.parametrize("before, after", [("cpu", "cuda"), ("cuda:1", "cpu"), ("cuda", "cuda:1")])
def test_a_run_is_resumed_on_another_device(tmp_path, monkeypatch, capfd, on_the_cpu, before, after):
    on_call(monkeypatch, "train_step", 3, press_ctrl_c)
    with pytest.raises(Interrupted, match="after 4 of 6 steps"):
        run(tmp_path, before)
    monkeypatch.undo()
    run(tmp_path, after, resume=True)
    assert_same_run(tmp_path, on_the_cpu)


@pytest.mark.parametrize("saved, loaded", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda:1")])
def test_a_checkpoint_is_loaded_where_the_model_lies(tmp_path, saved, loaded):
    model, other = network(saved), network(loaded)
    optimizer, other_optimizer = optimizer_for(model), optimizer_for(other)
    with on(saved):
        ema = EMA(optimizer, 0.5)
        train_step(model, Classification(), batch_on(saved), optimizer, 0, 0)
        ema.update()
        save_checkpoint(tmp_path / "x.npz", model, optimizer, ema)
    with on(loaded):
        other_ema = EMA(other_optimizer, 0.5)
        restore(load_checkpoint(tmp_path / "x.npz"), other, other_optimizer, other_ema)
    for part, twin in [(model, other), (optimizer, other_optimizer), (ema, other_ema)]:
        with on(saved):
            state = part.state_dict()
        with on(loaded):
            again = twin.state_dict()
        assert all((state[name] == again[name]).all() for name in state | again)
    assert other.device == device_of(other_optimizer.state["exp_avg"]) == device_of(other_ema.average)
    assert other.device == {"cpu": "cpu", "cuda": "cuda:0", "cuda:1": "cuda:1"}[loaded]


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_predictions_evaluation_and_attention(device):
    model, twin, (_, test) = network(), network(device), loaders()
    images = test.batch(0, 0).images
    logits = predict(twin, to_device(images, device), Layout(micro_batch=3))
    assert device_of(logits) == twin.device
    np.testing.assert_array_equal(to_device(logits, "cpu"), predict(model, images, Layout(micro_batch=3)))
    assert evaluate(twin, test) == evaluate(model, test)
    batches = list(test.to(device).epoch(0))
    assert evaluate(twin, batches, Layout(micro_batch=2)) == pytest.approx(evaluate(model, test))
    np.testing.assert_array_equal(class_attention(twin, to_device(images, device)), class_attention(model, images))


# --- the host waits once a step --------------------------------------------------------------------------------------


def test_a_step_waits_once():
    model = network("cuda")
    optimizer, batch = optimizer_for(model), batch_on("cuda")
    with counted() as waits:
        result = train_step(model, Classification(), batch, optimizer, 0, 0, max_norm=0.1)
    assert waits == {"get": 1}
    assert [type(value) for value in result] == [float, int, float]


def test_gradient_clipping_and_update_need_no_wait():
    model, twin = network(), network("cuda")
    for net in (model, twin):
        batch, optimizer, layout = batch_on(net.device), optimizer_for(net), Layout(micro_batch=2)
        train_step(net, Classification(), batch, optimizer, 0, 0, layout, max_norm=0.1)
        with forbid_synchronisation():
            forward_and_backward(net, Classification(), batch, optimizer, 0, 1, layout)
            clip_grad_norm(optimizer, 0.1)
            optimizer.step()
    state, expected = twin.state_dict(), model.state_dict()
    for name in expected:
        np.testing.assert_allclose(state[name], expected[name], rtol=1e-5, atol=1e-7)


def test_in_the_loop_too_and_a_batch_is_copied_once(tmp_path, monkeypatch):
    """From the end of the first step to the end of the second: average, bar and log, the next batch, the next step.

    Without a thread here, in which batches are copied at moments of its own.
    """
    found, stack = [], ExitStack()
    on_call(monkeypatch, "train_step", 0, lambda: found.append(stack.enter_context(counted())))
    on_call(monkeypatch, "train_step", 1, stack.close)
    run(tmp_path, "cuda", clip=0.1, prefetch=0)
    assert found == [{"get": 1, "asarray": 5}]  # images, labels, sample indices; the data set's mean and std


def test_a_batch_that_was_made_in_a_thread_is_complete():
    with counted() as waits:
        batches = list(loaders()[0].to("cuda").epoch(0))
    assert waits == {"asarray": 5 * len(batches), "synchronize": len(batches)}


def test_an_evaluation_waits_once_a_batch():
    (_, test), model = loaders(), network("cuda")
    batches = list(test.to("cuda").epoch(0))
    with counted() as waits:
        evaluate(model, batches)
    assert waits == {"get": len(batches)}


# --- the same draws everywhere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("data_on", DEVICES)
@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_the_same_wherever_data_and_model_lie(data_on, device, prefetch):
    augment = [RandomCrop(2), RandomHorizontalFlip()]
    here = Loader(dataset(), 4, seed=3, augment=augment).shard(0, 2)
    there = Loader(dataset().to(data_on), 4, seed=3, augment=augment, prefetch=prefetch).shard(0, 2)
    assert there.device == {"cuda": "cuda:0"}.get(data_on, data_on)
    batches = list(there.to(device).epoch(5))
    assert len(batches) == len(here)
    for batch, expected in zip(batches, here.epoch(5)):
        assert all(device_of(array) == {"cuda": "cuda:0"}.get(device, device) for array in batch[:3])
        assert batch.total == expected.total
        for array, wanted in zip(batch.to("cpu")[:3], expected[:3]):
            np.testing.assert_array_equal(array, wanted)
            assert array.dtype == wanted.dtype


def test_masks_are_the_same_everywhere():
    """Same weights, same images: the loss of a step with dropout tells whether the masks are equal."""
    losses = set()
    for device in DEVICES:
        model = network(device).train()
        losses.add(train_step(model, Classification(), batch_on(device), optimizer_for(model), 7, 3).loss)
    assert len(losses) == 1


# --- layout ----------------------------------------------------------------------------------------------------------


def test_on_a_gpu_a_batch_is_one_piece():
    image = np.zeros((1, 3, 8, 8), np.float32)
    for images in (image, to_device(image, "cuda")):
        layout = choose_layout(network("cuda"), images, 4096)
        assert (layout.workers, layout.micro_batch, layout.pieces(4096)) == (1, None, [slice(0, 4096)])
    assert choose_layout(network("cuda"), image, 4096, workers=1, micro_batch=64).micro_batch == 64
    with pytest.raises(ValueError, match="workers must be 1 for a model on cuda:0, got 2: threads are for"):
        choose_layout(network("cuda"), image, 4096, workers=2)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("here, there", [("cpu", "cuda:0"), ("cuda:0", "cpu"), ("cuda:0", "cuda:1")])
def test_what_lies_elsewhere_gets_a_sentence(here, there):
    model, batch = network(here), batch_on(there)
    sentence = (
        rf"the images are on {there}, the model is on {here}: move them with to_device\(images, '{here}'\), a Batch or "
        rf"a Loader with .to\('{here}'\), or the model with model.to\('{there}'\)$"
    )
    before = model.state_dict()
    for use in [
        lambda: train_step(model, Classification(), batch, optimizer_for(model), 0, 0),
        lambda: predict(model, batch.images),
        lambda: evaluate(model, [batch]),
        lambda: class_attention(model, batch.images),
        lambda: check_device(model, images=batch.images),
    ]:
        with pytest.raises(TypeError, match=sentence):
            use()
    with pytest.raises(TypeError, match=rf"the labels are on {there}, the model is on {here}"):
        train_step(model, Classification(), batch_on(here)._replace(labels=batch.labels), optimizer_for(model), 0, 0)
    assert all((array == before[name]).all() for name, array in model.state_dict().items())


@pytest.mark.parametrize("here, there", [("cpu", "cuda:0"), ("cuda:0", "cpu")])
def test_a_model_and_its_input_on_two_devices(here, there):
    with pytest.raises(TypeError, match=rf"linear are on different devices \({there}, {here}.*: move them with .to"):
        network(here)(batch_on(there).images)
    with pytest.raises(TypeError, match="mul are on different devices"):
        Tensor(to_device(np.ones(2), here)) * Tensor(to_device(np.ones(2), there))


def test_a_model_that_was_moved_after_its_optimizer_was_made():
    model = network()
    optimizer = optimizer_for(model)
    with pytest.raises(RuntimeError, match=r"was replaced after it was laid out flat.*: call model.to\(\)"):
        train_step(model.to("cuda"), Classification(), batch_on("cuda"), optimizer, 0, 0)


def test_a_model_is_moved_with_its_gradients():
    model = network()
    ops.cross_entropy(model(batch_on().images), batch_on().labels).backward()
    expected = {name: p.grad.copy() for name, p in model.named_parameters()}
    assert model.device == "cpu" and model.to("cuda:1").device == "cuda:1"
    for name, p in model.named_parameters():
        assert device_of(p.grad) == "cuda:1"
        np.testing.assert_array_equal(to_device(p.grad, "cpu"), expected[name])


@pytest.mark.parametrize("device", DEVICES)
def test_a_loss_that_is_not_finite_changes_nothing_on_any_device(tmp_path, monkeypatch, device):
    function = loop.train_step

    def poisoned(model, objective, batch, optimizer, seed, step, *rest, **options):
        batch = batch._replace(images=batch.images * float("nan")) if step == 4 else batch
        return function(model, objective, batch, optimizer, seed, step, *rest, **options)

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"the loss is nan in step 4: .* the input images\. ") as caught:
        run(tmp_path, device, save_seconds=0)
    assert caught.value.first == "the input images"
    last, failed = load_checkpoint(tmp_path / "last.npz"), load_checkpoint(tmp_path / "nonfinite.npz")
    for section in ("model", "optimizer", "ema"):
        arrays = getattr(last, section)
        assert all((array == arrays[name]).all() for name, array in getattr(failed, section).items())


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_that_is_not_finite_is_named_on_any_device(device, clip):
    """The loss of a network whose head multiplies by 0 is fine; that of √0 has an infinite derivative."""
    model = network(device)
    optimizer = optimizer_for(model)
    before = model.state_dict()
    objective = LossOf(lambda logits, labels: ops.cross_entropy(logits, labels) + (0.0 * logits).sqrt().sum())
    with pytest.raises(NonFiniteLoss, match=r"norm is (nan|inf) in step 0, .* is the gradient of head.bias$"):
        train_step(model, objective, batch_on(device), optimizer, 0, 0, max_norm=clip)
    assert optimizer.steps == 0
    assert all((array == before[name]).all() for name, array in model.state_dict().items())


def test_what_is_saved_on_a_gpu_says_nothing_of_it(tmp_path):
    run(tmp_path, "cuda:1")
    checkpoint, model = load_checkpoint(tmp_path / "last.npz"), network()
    assert "cuda" not in repr(checkpoint.meta)
    assert all(
        isinstance(array, np.ndarray) for array in (checkpoint.model | checkpoint.optimizer | checkpoint.ema).values()
    )
    restore(checkpoint, model)
    assert model.device == "cpu" and evaluate(model, loaders()[1]).accuracy >= 0
