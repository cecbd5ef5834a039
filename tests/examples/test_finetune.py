"""``finetune.py``: what a run starts from, what it prints and leaves, and what it says when it cannot."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from minivit.training import load_checkpoint, load_model, read_log
from tests.data.test_folder import write_tree
from tests.data.test_idx import write_set
from tests.examples import check_picture, fails, run, succeeds
from tests.examples.test_transfer import KINDS, SMALL, write

MAE = "mae_nano_patch4_28"
PICTURES = ["attention.png", "curves.png", "positions.png", "predictions.png"]


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """A masked autoencoder for MNIST's size, fine-tuned with 20 labels of 60: where, and what was printed."""
    cwd = tmp_path_factory.mktemp("finetuned")
    write_set(cwd / "data" / "mnist", train=60, test=20)
    write(cwd / "mae.npz", MAE, KINDS[MAE] | {"img_size": [28, 28]})
    code, out, err = run(
        "finetune.py", "mae.npz", "--dataset", "mnist", "--labels", 20, "--epochs", 2, "--passes", 3,
        "--batch-size", 10, "--augment", "mixup", cwd=cwd,
    )  # fmt: skip
    assert (code, err) == (0, "")
    return cwd, out


def test_the_last_line_has_the_figures_of_the_run(finetuned):
    figures = json.loads(finetuned[1].splitlines()[-1])
    expected = {
        "example": "finetune", "dataset": "mnist", "model": "vit_nano_patch4_28", "seed": 0, "device": "cpu",
        "pretraining": "masked patches", "labels": 20, "epochs": 2, "passes": 3, "steps": 12, "layer_decay": 0.75,
        "global_pool": "avg", "ranks": 1, "run_dir": str(Path("runs", "mnist-vit_nano_patch4_28-finetuned-20-0")),
    }  # fmt: skip
    measured = {
        "test_accuracy", "best_accuracy", "test_loss", "seconds", "images_per_second", "workers", "micro_batch"
    }  # fmt: skip
    assert figures.keys() == expected.keys() | measured
    assert {name: figures[name] for name in expected} == expected


def test_people_see_what_is_trained(finetuned):
    data, before, model, layout, folder, *epochs, pictures, _ = finetuned[1].splitlines()
    assert data == "Dataset('mnist', 20 images of 1×28×28, 10 classes), 3 times an epoch"
    assert before == "pretraining: masked patches"
    assert re.fullmatch(r"vit_nano_patch4_28: [\d,]+ parameters, on cpu", model)
    assert layout.startswith("Layout(") and len(epochs) == 2
    assert pictures == f"pictures in {folder}: curves, predictions, attention, positions"


def test_it_leaves_a_network_that_can_be_loaded_a_log_and_pictures(finetuned):
    cwd, out = finetuned
    folder = cwd / json.loads(out.splitlines()[-1])["run_dir"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*PICTURES, "best.npz", "last.npz", "log.jsonl"])
    assert len(read_log(folder / "log.jsonl")) == 2
    for name in PICTURES:
        check_picture(folder / name)
    model, meta = load_model(folder / "best.npz")
    assert (model.global_pool, model.head.weight.shape, meta["mean"]) == ("avg", (10, 16), [0.2])
    settings = load_checkpoint(folder / "last.npz").meta["settings"]
    assert [group["lr_scale"] for group in settings["groups"]] == pytest.approx(
        [0.75**3] * 2 + [0.75**2] * 2 + [0.75] * 2 + [1.0] * 2
    )
    assert len(settings["augment"]) == 2, "a crop, as is right for MNIST, and mixup"


def test_it_began_with_the_weights_of_the_checkpoint(finetuned):
    cwd, out = finetuned
    before = load_checkpoint(cwd / "mae.npz").model
    after = load_checkpoint(cwd / json.loads(out.splitlines()[-1])["run_dir"] / "last.npz").model
    np.testing.assert_array_equal(after["pos_embed"], before["pos_embed"])
    for name in ("patch_embed.proj.weight", "blocks.1.mlp.fc1.weight"):
        moved = np.abs(after[name] - before[name]).max()
        assert 0 < moved < 0.05 < np.abs(before[name]).max()


@pytest.mark.slow
def test_a_classifier_at_another_size_on_your_own_images_and_on_with_it(tmp_path):
    """A learned table of positions is resampled; the run is taken up again at its end."""
    write_tree(tmp_path / "animals", count=20)
    write(tmp_path / "vit.npz", "vit_nano_patch4_28", SMALL | {"in_chans": 3}, mean=[0.1] * 3, std=[0.5] * 3)
    arguments = (
        "finetune.py", "vit.npz", "--dataset", "folder:animals", "--img-size", 24, "--epochs", 1, "--passes", 1,
        "--global-pool", "token", "--head-std", 0.02, "--layer-decay", 0.5, "--drop-path", 0.2, "--recompute", "--flip",
        "--label-smoothing", 0, "--clip", 1, "--ema", 0.9, "--seed", 3,
    )  # fmt: skip
    figures = succeeds(*arguments, cwd=tmp_path)
    assert figures["run_dir"] == str(Path("runs", "animals-vit_nano_patch4_28-finetuned-all-3"))
    assert (figures["pretraining"], figures["global_pool"], figures["layer_decay"]) == ("labels", "token", 0.5)
    model, _ = load_model(tmp_path / figures["run_dir"] / "best.npz")
    assert model.patch_embed.img_size == (24, 24) and model.pos_embed.shape == (1, 37, 16)
    again = succeeds(*arguments, "--resume", cwd=tmp_path)
    assert again["test_accuracy"] == figures["test_accuracy"]
    line = fails(*arguments, cwd=tmp_path)
    assert "holds a run already: the same command with --resume goes on" in line


# --- its parts -----------------------------------------------------------------------------------------------------


def test_what_is_not_given_is_chosen_by_the_data_set_and_by_the_start():
    from finetune import parse
    from train_vit import RECIPES

    args = parse(["last.npz", "--dataset", "mnist"])
    recipe = RECIPES["mnist"]
    assert (args.lr, args.crop, args.flip) == (recipe.lr, recipe.crop, recipe.flip)
    assert (args.layer_decay, args.head_std) == (0.75, 2e-5)
    scratch = parse(["last.npz", "--dataset", "cifar10", "--from-scratch", "--no-flip", "--lr", "1", "--labels", "1%"])
    assert (scratch.layer_decay, scratch.head_std) == (1.0, None)
    assert (scratch.lr, scratch.crop, scratch.flip) == (1.0, RECIPES["cifar10"].crop, False)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("--dataset mnist --labels 1%", "mnist-vit-finetuned-1percent-0"),
        ("--dataset folder:some/where --from-scratch --seed 2", "where-vit-scratch-all-2"),
    ],
)
def test_the_folder_says_what_it_was(arguments, name):
    from finetune import default_run_dir, parse

    assert default_run_dir(parse(["last.npz", *arguments.split()]), "vit") == Path("runs", name)


def test_a_small_head_answers_all_images_alike(tmp_path):
    from finetune import begin_head

    model = write(tmp_path / "vit.npz", "vit_nano_patch4_28")
    begin_head(model, 2e-5, seed=0)
    weight = model.head.weight.numpy()
    assert weight.std() == pytest.approx(2e-5, rel=0.3) and not model.head.bias.numpy().any()
    begin_head(model, 2e-5, seed=0)
    np.testing.assert_array_equal(model.head.weight.numpy(), weight)


def test_from_scratch_is_the_same_network_with_other_weights(tmp_path, monkeypatch):
    """The weights that go into the training are caught there."""
    import finetune

    from minivit.training import Ranks

    write_set(tmp_path / "data" / "mnist", train=60, test=20)
    write(tmp_path / "mae.npz", MAE, KINDS[MAE] | {"img_size": [28, 28]})
    monkeypatch.chdir(tmp_path)
    begun = []

    def caught(model, *args, **kwargs):
        begun.append(model)
        raise ValueError("caught")

    monkeypatch.setattr(finetune, "fit", caught)
    for more in ([], ["--from-scratch"]):
        with pytest.raises(ValueError, match="caught"):
            finetune.finetune(finetune.parse(["mae.npz", "--dataset", "mnist", *more]), Ranks())
    pretrained, scratch = (model.state_dict() for model in begun)
    encoder = load_checkpoint("mae.npz").model
    assert pretrained.keys() == scratch.keys()
    for name in ("pos_embed", "blocks.0.attn.qkv.weight"):
        np.testing.assert_array_equal(pretrained[name], encoder[name])
    np.testing.assert_array_equal(scratch["pos_embed"], encoder["pos_embed"])
    assert (scratch["blocks.0.attn.qkv.weight"] != encoder["blocks.0.attn.qkv.weight"]).all()
    assert np.abs(pretrained["head.weight"]).max() < 1e-3 < np.abs(scratch["head.weight"]).max()


# --- what it cannot do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("nothing.npz --dataset mnist", "the checkpoint nothing.npz cannot be read: No such file or directory"),
        ("vit.npz --dataset mnist --labels 5", "--labels must be 10 to 60, at least one of each class, .* got 5"),
        ("vit.npz --dataset mnist --passes 0", "--passes must be at least 1, got 0"),
        ("vit.npz --dataset mnist --layer-decay 2", r"layer_decay must lie in \(0, 1\], got 2.0"),
        ("vit.npz --dataset mnist --augment mixap", "there is no augmentation 'mixap'"),
        ("vit.npz --dataset shapes --train-images 20", "images of shapes have 3 channels, those that vit.npz was"),
    ],
)
def test_what_cannot_be_done_gets_one_line(arguments, sentence, tmp_path):
    write_set(tmp_path / "data" / "mnist", train=60, test=20)
    write(tmp_path / "vit.npz", "vit_nano_patch4_28", SMALL | {"img_size": 28})
    line = fails("finetune.py", *arguments.split(), cwd=tmp_path)
    assert re.match(f"finetune: {sentence}", line), line
