"""``prune_heads.py``: tiny networks are trained and lose their heads, and what is concluded from made-up figures."""

import json
import re
import runpy
import sys

import numpy as np
import pytest

from minivit.nn.heads import attention_layers
from minivit.training import load_model
from tests.data.test_idx import write_set
from tests.examples import ROOT, check_picture, fails, run
from tests.examples.test_figures import has_colour

TINY = ("--dataset", "mnist", "--epochs", 1, "--seeds", 2, "--patch-size", 14, "--draws", 2, "--rounds", 2)


@pytest.fixture
def prune_heads():
    import prune_heads

    return prune_heads


@pytest.fixture
def model(prune_heads):
    options = prune_heads.SHAPE | {"img_size": 16, "patch_size": 8, "in_chans": 1}
    return prune_heads.create_model(prune_heads.MODEL, **options).eval()


IMAGES = np.random.default_rng(0).standard_normal((5, 1, 16, 16)).astype(np.float32)


# --- from start to end ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_of_it(tmp_path, prune_heads):
    write_set(tmp_path / "data" / "mnist")
    code, out, err = run("prune_heads.py", *TINY, cwd=tmp_path)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "prune_heads-mnist"
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "pruning.png", "seed_0", "seed_1"]
    check_picture(folder / "pruning.png")

    last = json.loads(out.splitlines()[-1])
    said = {"example": "prune_heads", "dataset": "mnist", "train_images": 30, "epochs": 1, "seeds": 2, "heads": 32}
    assert {name: last[name] for name in said} == said
    assert {last[f"{method}_accuracy_0"] for method in prune_heads.METHODS} == {last["random_accuracy_0"]}
    assert last["speedup_0"] == 1 and last["speedup_28"] > 0 and last["images_per_second"] > 0
    assert 0 <= last["largest_difference"] < 1e-4
    for count in (0, 4, 8, 12, 16, 20, 24, 28):
        (row,) = [line for line in out.splitlines() if line.strip().startswith(f"{count} of 32")]
        mean, sd = (100 * last[f"importance_accuracy_{count}{suffix}"] for suffix in ("", "_sd"))
        assert f" {mean:.1f} ± {sd:.1f} " in row
    assert len(re.findall(r"^  It (held|did not hold): ", out, re.MULTILINE)) == 4

    whole, _ = load_model(folder / "seed_0" / "last.npz")
    pruned, meta = load_model(folder / "seed_0" / "pruned.npz")
    assert [sum(layer.num_heads for layer in attention_layers(m)) for m in (whole, pruned)] == [32, 16]
    assert pruned.num_parameters() < whole.num_parameters() and meta["dataset"] == "mnist"

    paths = list((folder / "figures").iterdir())
    assert len(paths) == 3
    times = [path.stat().st_mtime_ns for path in paths]
    code, again, err = run("prune_heads.py", *TINY, cwd=tmp_path)
    assert (code, err, [path.stat().st_mtime_ns for path in paths]) == (0, "", times)
    assert json.loads(again.splitlines()[-1]) | {"seconds": 0} == last | {"seconds": 0}


# --- its parts -----------------------------------------------------------------------------------------------------


def test_the_counts_leave_each_layer_a_head(prune_heads):
    assert prune_heads.COUNTS == [0, 4, 8, 12, 16, 20, 24, 28]
    assert prune_heads.COUNTS[prune_heads.HALF] == 16


def test_a_pruned_network_that_says_something_else_is_noticed(prune_heads, model):
    heads = {0: [1, 7], 2: [0]}
    pruned = prune_heads.prune_heads(model, heads)
    assert prune_heads.against_gates(model, pruned, heads, IMAGES) < 1e-5
    with pytest.raises(RuntimeError, match=r"without heads \{0: \[1, 6\], 2: \[0\]\} the logits differ by "):
        prune_heads.against_gates(model, pruned, {0: [1, 6], 2: [0]}, IMAGES)
    pruned.head.bias.data[0] = np.nan
    with pytest.raises(RuntimeError, match="the logits differ by nan"):
        prune_heads.against_gates(model, pruned, heads, IMAGES)


def test_a_network_loaded_with_other_logits_is_noticed(prune_heads, model, tmp_path, monkeypatch):
    options = prune_heads.SHAPE | {"img_size": 16, "patch_size": 8, "in_chans": 1}
    meta = {"model": prune_heads.MODEL, "arguments": options}
    prune_heads.save_checkpoint(tmp_path / "last.npz", model, meta=meta)
    prune_heads.save_and_load(model, {1: [3]}, tmp_path, IMAGES)
    assert [layer.num_heads for layer in attention_layers(load_model(tmp_path / "pruned.npz")[0])] == [8, 7, 8, 8]
    monkeypatch.setattr(prune_heads, "load_model", lambda path: (model, {}))
    with pytest.raises(RuntimeError, match="was loaded with other logits than it was saved with"):
        prune_heads.save_and_load(model, {1: [3]}, tmp_path, IMAGES)


def test_heads_by_chance_differ_by_draw_and_by_seed_and_come_again(prune_heads, model):
    data, _ = prune_heads.load_images(
        {"dataset": "shapes", "data_dir": "", "size": 16, "train_images": 4, "test_images": 4}
    )
    data = prune_heads.Dataset("grey", data.images[:, :1], data.labels, data.classes)
    orders = [prune_heads.removal_orders(model, data, {"seed": seed, "draws": 2}) for seed in (0, 0, 1)]
    assert list(orders[0]) == ["importance", "leave_one_out", "random 0", "random 1"]
    assert all(np.shape(scores) == (4, 8) for scores in orders[0].values())
    for name in orders[0]:
        np.testing.assert_array_equal(orders[0][name], orders[1][name])
    chance = [np.array(orders[i][name]) for i in (0, 2) for name in ("random 0", "random 1")]
    assert len({numbers.tobytes() for numbers in chance}) == 4


def test_networks_to_be_timed_have_the_heads_that_are_asked_for(prune_heads, model):
    kept = [8, 1, 3, 5]
    assert [layer.num_heads for layer in attention_layers(prune_heads.with_heads(model, kept))] == kept


# --- conclusions ---------------------------------------------------------------------------------------------------


def test_what_can_be_removed_ends_at_the_first_loss_of_a_point(prune_heads):
    accuracy = np.array([
        [0.9, 0.9, 0.895, 0.89, 0.88, 0.9, 0.9, 0.9],  # 12 of 32, whatever comes later
        [0.9, 0.85, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9],
        [0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6],
    ]) + 1e-9 * np.array([0, 1, 1, 1, 1, 1, 1, 1])  # fmt: skip
    np.testing.assert_allclose(prune_heads.removable(accuracy), [12 / 32, 0, 28 / 32])


@pytest.mark.parametrize("held", [True, False])
def test_claims_follow_the_numbers(prune_heads, held):
    good, bad = np.linspace(0.9, 0.89, 8), np.linspace(0.9, 0.1, 8)
    noise = 0.001 * np.arange(3)[:, None]
    chosen, chance = (good, bad) if held else (bad, good)
    accuracy = {"importance": chosen + noise, "leave_one_out": chosen + noise, "random": chance + noise}
    speedup = np.linspace(1, 2 if held else 0.9, 8) + np.array([-0.01, 0, 0.01])[:, None]
    claims = prune_heads.judge(accuracy, speedup)
    assert [claim.held for claim in claims] == [held] * 4
    assert claims[0].numbers == ("88 ± 0 % could go, by importance" if held else "0 ± 0 % could go, by importance")
    assert claims[-1].numbers.startswith("1.57 times as fast (1.57 … 1.58)" if held else "0.94 times as fast")


def test_every_method_has_its_line(prune_heads, tmp_path):
    import figures

    accuracy = {m: np.linspace(0.9, 0.3 + 0.2 * i, 8) + np.zeros((3, 1)) for i, m in enumerate(prune_heads.METHODS)}
    prune_heads.draw_pruning(figures, accuracy, np.linspace(1, 2, 8) + np.zeros((3, 1)), tmp_path / "pruning.png")
    check_picture(tmp_path / "pruning.png")
    for colour in prune_heads.COLOURS.values():
        assert has_colour(tmp_path / "pruning.png", colour)


# --- what it cannot do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--draws 0", "--draws must be at least 1, got 0$"),
        ("--rounds 0", "--rounds must be at least 1, got 0$"),
        ("--seeds 1", "--seeds must be at least 2, as one alone has no spread; got 1$"),
    ],
)
def test_what_cannot_be_done_gets_one_line(arguments, sentence, tmp_path):
    line = fails("prune_heads.py", *arguments.split(), cwd=tmp_path)
    assert re.match(f"prune_heads: {sentence}", line), line


def test_ctrl_c_gets_one_line(monkeypatch, tmp_path):
    def interrupted(*args):
        raise KeyboardInterrupt

    write_set(tmp_path / "data" / "mnist")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sweep.sweep", interrupted)
    monkeypatch.setattr("sys.argv", ["prune_heads.py", *map(str, TINY)])
    with pytest.raises(SystemExit, match=r"^prune_heads: stopped; the same command goes on with the runs that are mis"):
        runpy.run_path(str(ROOT / "examples" / "prune_heads.py"), run_name="__main__")


def test_without_matplotlib_no_picture_is_drawn(prune_heads, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "figures", None)
    prune_heads.draw({}, None, tmp_path)
    assert capsys.readouterr().out.startswith("no picture was drawn: it needs matplotlib, pip install ")
