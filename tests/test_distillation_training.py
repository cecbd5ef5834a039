"""Distillation in training: the same step whatever cuts the batch and wherever it is made; a run and its teacher."""

import copy

import numpy as np
import pytest

from minivit.backend import to_device
from minivit.data import Batch, Dataset, Loader
from minivit.distillation import HardDistillation, StoredLogits, Teacher
from minivit.models import VisionTransformerDistilled
from minivit.optim import SGD
from minivit.random import sampling
from minivit.training import CheckpointError, Layout, TrainConfig, fit, train_step
from tests.cupy_twin import counted, twin
from tests.devices import cupy
from tests.test_distillation import OBJECTIVES, close, data, network, objectives, students, teacher

# --- the same whatever cuts the batch, and wherever it is computed ---------------------------------------------------


def stepped(objective, student, batch, layout, steps=2, device="cpu"):
    """The student's weights after some steps, and what the last one saw."""
    student = copy.deepcopy(student).to(device)
    optimizer, batch = SGD(student.named_parameters(), lr=0.1), batch.to(device)
    with layout:
        for step in range(steps):
            result = train_step(student, objective, batch, optimizer, 0, step, layout)
    return student.state_dict(), result


@objectives
@students
@pytest.mark.parametrize("layout", [(1, 1), (1, 3), (2, 2), (3, None)])
def test_layouts_agree(name, kind, layout):
    objective = OBJECTIVES[name](teacher(drop_rate=0.5), label_smoothing=0.1)
    batch = Batch(*data(7), np.arange(30, 37))
    student = network(kind, drop_path_rate=0.3, drop_rate=0.2)
    whole, cut = (stepped(objective, student, batch, x) for x in (Layout(), Layout(*layout)))
    np.testing.assert_allclose(cut[1], whole[1], rtol=1e-9)
    for key, array in whole[0].items():
        close(cut[0][key], array)


@objectives
@students
@pytest.mark.parametrize("stored", [False, True])
def test_a_step_on_a_gpu(gpu, name, kind, stored):
    """The same numbers, and no wait but the one of every step."""
    batch, own, student = Batch(*data(), np.array([3, 0, 2, 1])), teacher(), network(kind)
    table = np.random.default_rng(5).standard_normal((4, 3))
    results = []
    for device in ("cpu", "cuda"):
        on_device = StoredLogits(to_device(table, device)) if stored else Teacher(copy.deepcopy(own.model).to(device))
        with counted() as waits:
            stepped(OBJECTIVES[name](on_device), student, batch, Layout(), 1, device)
        results.append(stepped(OBJECTIVES[name](on_device), student, batch, Layout(), 1, device))
    assert waits["get"] == 1 + len(student.parameters()) or cupy() is not twin  # a step, and reading all weights
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-9)
    for key, array in results[0][0].items():
        np.testing.assert_allclose(results[1][0][key], array, rtol=1e-7, atol=1e-9)


def test_a_teacher_elsewhere_gets_a_sentence(gpu):
    images, labels = data()
    for source in (teacher(), StoredLogits(np.zeros((4, 3)))):
        with (
            pytest.raises(TypeError, match="the images are on cuda:0, the teacher is on cpu"),
            sampling(0, 0, to_device(np.arange(4), "cuda")),
        ):
            OBJECTIVES["soft"](source)(network().to("cuda"), to_device(images, "cuda"), to_device(labels, "cuda"))


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_its_own_teacher_only(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 4, 4)).astype(np.uint8)
    dataset = Dataset("noise", pixels, np.arange(6) % 3, list("abc"))

    def run(seed, epochs=2, resume=False):
        student, loader = network(VisionTransformerDistilled, dtype=np.float32), Loader(dataset, 3)
        objective = HardDistillation(teacher(seed, dtype=np.float32))
        config = TrainConfig(tmp_path, epochs, progress=False)
        return fit(student, SGD(student.named_parameters()), loader, loader, config, objective, resume)

    assert run(seed=1).steps == 4
    with pytest.raises(CheckpointError, match=r"is of another run: objective was 'HardDistillation.* and is 'Hard"):
        run(seed=2, resume=True)
    assert run(seed=1, resume=True).steps == 4


# --- stored logits -------------------------------------------------------------------------------------------------


@objectives
def test_stored_logits_are_those_of_the_samples(name):
    own, (images, labels) = teacher(), data(7)
    samples = np.random.default_rng(1).permutation(7)
    stored = StoredLogits(own.model(images).data)
    batch = Batch(images[samples], labels[samples], samples)
    ways = [
        stepped(OBJECTIVES[name](source), network(), batch, layout)[0]
        for source in (own, stored)
        for layout in (Layout(), Layout(2, 2))
    ]
    for key, array in ways[0].items():
        for other in ways[1:]:
            close(other[key], array)


def test_stored_logits_need_to_know_the_samples():
    stored, (images, _) = StoredLogits(np.zeros((10, 3))), data()
    with pytest.raises(RuntimeError, match=r"which images .*: use it in a training step, or .* for 4 samples"):
        stored(images)
    with sampling(0, 0, np.arange(3)), pytest.raises(RuntimeError, match="which images"):
        stored(images)
    assert repr(stored).startswith("StoredLogits(10 images, 3 classes, checksum ")
    checksums = {repr(StoredLogits(x)).split()[-1] for x in (np.zeros((10, 3)), np.ones((10, 3)), np.zeros((3, 10)))}
    assert len(checksums) == 3
