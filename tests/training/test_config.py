"""The settings of a run: which make none, which must stay on resuming, and that they reach the step."""

import dataclasses
import json

import numpy as np
import pytest

from minivit.data import Batch, Dataset, Loader
from minivit.diversity import HeadPenalties
from minivit.models import VisionTransformer
from minivit.objective import Classification
from minivit.optim import SGD, AdamW
from minivit.training import Layout, TrainConfig, fit, load_checkpoint, train_step


def network():
    return VisionTransformer(
        8, 4, in_chans=1, num_classes=3, embed_dim=12, depth=2, num_heads=3, weight_init="book", drop_path_rate=0.3
    )


def run(folder, objective=None, **options):
    """Two epochs of a network with heads; its checkpoint."""
    rng, model = np.random.default_rng(0), network()
    data = Dataset("noise", rng.integers(256, size=(7, 1, 8, 8), dtype=np.uint8), np.arange(7) % 3, ["a", "b", "c"])
    config = TrainConfig(folder, epochs=2, lr=0.01, progress=False, **options)
    fit(model, AdamW(model.named_parameters()), Loader(data, 4), Loader(data, 4, shuffle=False), config, objective)
    return load_checkpoint(folder / "last.npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2, "warmup_epochs": 3}, r"warmup_epochs must lie in 0 … 2 \(epochs\), got 3"),
        ({"epochs": 1, "precision": "fp8"}, "precision must be one of fp32, tf32, bf16, got 'fp8'"),
    ],
)
def test_the_settings_must_make_a_run(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig("runs/x", **options)


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig("runs/x", epochs=1).epochs = 2


def test_settings_are_plain_values_without_what_may_change_on_resuming():
    settings = TrainConfig("runs/x", epochs=1, save_seconds=3).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert "save_seconds" not in settings and "run_dir" not in settings and settings["precision"] == "fp32"


def test_penalties_change_the_training_and_are_told_in_the_checkpoint(tmp_path):
    plain = run(tmp_path / "plain")
    objective = Classification(penalties=HeadPenalties({"disagreement_output": 5.0}))
    penalised = run(tmp_path / "penalised", objective)
    assert penalised.meta["settings"]["objective"] == repr(objective)
    assert plain.meta["settings"]["objective"] == "Classification(label_smoothing=0.0, penalties=None)"
    name = "blocks.0.attn.qkv.weight"
    assert np.abs(plain.model[name] - penalised.model[name]).max() > 1e-4


@pytest.mark.parametrize("cut", [(1, 2), (2, 3), (2, 1)])
def test_with_penalties_too_the_layout_does_not_change_a_step(cut):
    rng, weights = np.random.default_rng(1), []
    batch = Batch(rng.standard_normal((7, 1, 8, 8)).astype(np.float32), np.arange(7) % 3, np.arange(7))
    objective = Classification(penalties=HeadPenalties({"disagreement_position": 1.0, "margin": 2.0}, margin=-0.5))
    for layout in (Layout(), Layout(*cut)):
        model = network()
        optimizer = SGD(model.named_parameters(), lr=0.1)
        with layout:
            result = train_step(model, objective, batch, optimizer, seed=0, step=0, layout=layout)
        weights.append((result.loss, optimizer.flat.data.copy()))
    (loss, whole), (same_loss, pieces) = weights
    assert loss == pytest.approx(same_loss, rel=1e-5)
    np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-6)


def test_another_precision_is_for_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="precision 'bf16' is for a GPU, and the model is on the CPU"):
        run(tmp_path, precision="bf16")
