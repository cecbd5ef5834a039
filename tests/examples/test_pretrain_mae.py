"""``pretrain_mae.py``: what a run prints and leaves, that it goes on where it stopped, and what its pictures say."""

import json
import re

import numpy as np
import pytest

from minivit.data.shapes import shapes
from minivit.models import create_model
from minivit.training import load_checkpoint, read_log
from tests.data.test_idx import write_set
from tests.examples import check_picture, fails, run, succeeds

PICTURES = ["curves.png", "ratios.png", "reconstructions.png"]
SMALL = ("--dataset", "mnist", "--batch-size", 10)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A finished run on 30 grey images: its folder, and what it printed."""
    cwd = tmp_path_factory.mktemp("pretrained")
    write_set(cwd / "data" / "mnist")
    code, out, err = run("pretrain_mae.py", *SMALL, "--epochs", 2, cwd=cwd)
    assert (code, err) == (0, "")
    return cwd / json.loads(out.splitlines()[-1])["run_dir"], out


def test_it_leaves_a_log_checkpoints_of_both_parts_and_pictures(pretrained):
    folder, out = pretrained
    assert sorted(path.name for path in folder.iterdir()) == sorted([*PICTURES, "best.npz", "last.npz", "log.jsonl"])
    for name in PICTURES:
        check_picture(folder / name)
    figures, epochs = json.loads(out.splitlines()[-1]), read_log(folder / "log.jsonl")
    assert figures["example"] == "pretrain_mae" and figures["test_loss"] == epochs[-1]["test_loss"] > 0
    assert not any("accuracy" in name for name in [*figures, *epochs[-1]])
    for name in ("best.npz", "last.npz"):
        checkpoint = load_checkpoint(folder / name)
        assert checkpoint.meta["holds"] == "encoder and decoder"
        model = create_model(checkpoint.meta["model"], **checkpoint.meta["arguments"])
        model.load_state_dict(checkpoint.model)
    assert re.search(r"epoch 2/2  train loss [\d.]+  test loss [\d.]+  \d+ images/s", out)


def test_the_rate_goes_with_the_batch(pretrained):
    from pretrain_mae import RECIPES

    settings = load_checkpoint(pretrained[0] / "last.npz").meta["settings"]
    assert settings["lr"] == pytest.approx(RECIPES["mnist"].blr * 10 / 256)
    assert all(group["betas"] == [0.9, 0.95] for group in settings["groups"])
    assert settings["objective"] == "Reconstruction(mask_ratio=0.75, mask_kind='random')"


def test_another_mask_ratio_is_another_run_and_norm_pix_and_simmim_train_too(pretrained):
    folder, _ = pretrained
    cwd = folder.parents[1]
    line = fails("pretrain_mae.py", *SMALL, "--epochs", 2, "--mask-ratio", 0.5, "--resume", cwd=cwd)
    assert re.search(r"objective was .Reconstruction\(mask_ratio=0.75.* and is .Reconstruction\(mask_ratio=0.5", line)
    options = ("--epochs", 1, "--norm-pix", "--crop", 1, "--mask-kind", "block", "--run-dir", "normed")
    figures = succeeds("pretrain_mae.py", *SMALL, *options, cwd=cwd)
    assert figures["norm_pix"] and (cwd / "normed" / "reconstructions.png").exists()
    figures = succeeds("pretrain_mae.py", *SMALL, "--epochs", 1, "--model", "simmim_nano_patch4_28", cwd=cwd)
    assert figures["model"] == "simmim_nano_patch4_28" and figures["test_loss"] > 0


def test_pictures_show_what_was_hidden_and_say_what_was_put_in_again():
    from pretrain_mae import painted

    data = shapes(4, seed=0, size=16)
    plain = create_model("mae_nano_patch4_32", img_size=16)
    columns = painted(plain, data, [0, 1], 0.75)
    assert list(columns) == ["original", "seen", "painted", "painted\nwhere hidden"]
    original = columns["original"] / 255
    patches = (np.abs(columns["seen"] - original).max(axis=1) < 1e-5).reshape(2, 4, 4, 4, 4).all(axis=(2, 4))
    assert (patches.sum(axis=(1, 2)) == 4).all()  # a quarter of 16, of each image
    shown = patches.repeat(4, 1).repeat(4, 2)[:, None]
    assert np.allclose(columns["painted\nwhere hidden"], np.where(shown, original, columns["painted"]), atol=1e-5)

    normed = create_model("mae_nano_patch4_32", img_size=16, norm_pix_loss=True)
    titles = list(painted(normed, data, [0, 1], 0.75))
    assert any("raw" in title for title in titles) and any("true\nmean" in title for title in titles)


def test_a_ratio_that_hides_nothing_gets_a_sentence(pretrained):
    line = fails("pretrain_mae.py", *SMALL, "--mask-ratio", 0, "--run-dir", "nothing", cwd=pretrained[0].parents[1])
    assert line == "pretrain_mae: mask_ratio must lie between 0 and 1, got 0.0"
