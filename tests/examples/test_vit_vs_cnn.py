"""``vit_vs_cnn.py``: pairs of networks from start to end, what is measured of them, and what is concluded and drawn."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minivit.analysis.cka import features_cka
from minivit.analysis.features import read_batch
from minivit.data import Dataset
from minivit.models import create_model
from minivit.training import load_model, predict, save_checkpoint
from tests.data.test_idx import write_set
from tests.examples import check_picture, fails, run
from tests.examples.test_figures import has_colour

JOB = {
    "dataset": "shapes", "data_dir": "data", "size": 16, "train_images": 200, "test_images": 20, "epochs": 1,
    "conflict": None,
}  # fmt: skip
NAMES = {"vit": "vit_nano_patch8_32", "cnn": "resnet8"}


@pytest.fixture
def versus():
    import vit_vs_cnn

    return vit_vs_cnn


@pytest.fixture
def page():
    import vit_vs_cnn_page

    return vit_vs_cnn_page


def checkpoint(path, name, data, **changes):
    """An untrained network for these images, as a training run leaves it; ``changes`` of what it says of them."""
    channels, *size = data.images.shape[1:]
    arguments = {"img_size": size, "in_chans": channels, "num_classes": len(data.classes), "seed": 3}
    known = {"classes": data.classes, "mean": data.mean, "std": data.std} | changes
    save_checkpoint(path, create_model(name, **arguments), meta={"model": name, "arguments": arguments, **known})
    return str(path)


@pytest.fixture
def pair(versus, tmp_path):
    """A job for ``measure``: two untrained networks for small shapes."""
    train_set, _ = versus.load_sets(JOB)
    return JOB | {kind: checkpoint(tmp_path / f"{kind}.npz", name, train_set) for kind, name in NAMES.items()}


# --- from start to end ---------------------------------------------------------------------------------------------


def test_all_of_it_and_once_more_from_its_files(tmp_path, versus, monkeypatch, capsys):
    write_set(tmp_path / "data" / "mnist", train=260)
    arguments = ("--dataset", "mnist", "--epochs", 1, "--seeds", 2, "--test-images", 10)
    code, out, err = run("vit_vs_cnn.py", *arguments, cwd=tmp_path)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "vit_vs_cnn-mnist"
    kept = [f"{name}-260-1-{seed}" for name in ("resnet8", "vit_nano_patch7_28") for seed in range(2)]
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "page.png", *kept]
    check_picture(folder / "page.png")

    last = json.loads(out.splitlines()[-1])
    said = {"example": "vit_vs_cnn", "dataset": "mnist", "cnn": "resnet8", "train_images": 260, "epochs": 1, "seeds": 2}
    assert {name: last[name] for name in said} == said
    assert not any("bias" in name or "conflict" in name for name in last)
    assert np.shape(last["cka_both"]) == (len(last["layers_vit"]), len(last["layers_cnn"])) == (5, 4)
    held = re.findall(r"^  (It held|It did not hold): ", out, re.MULTILINE)
    assert len(held) == sum(name.startswith("held_") for name in last)
    assert held.count("It held") == sum(value for name, value in last.items() if name.startswith("held_"))

    records = [json.loads(path.read_text()) for path in (folder / "figures").iterdir()]
    for kind, name in {"vit": "vit_nano_patch7_28", "cnn": "resnet8"}.items():
        trained = [one["figures"]["accuracy"] for one in records if one["job"].get("model") == name]
        measured = [one["figures"][f"accuracy_{kind}"] for one in records if kind in one["job"]]
        assert sorted(trained) == pytest.approx(sorted(measured)) and len(measured) == 2
        assert last[f"accuracy_{kind}"] == pytest.approx(np.mean(trained))
    for one in records:  # pairs are of the same seed
        if "vit" in one["job"]:
            assert one["job"]["vit"][-10:] == one["job"]["cnn"][-10:]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(versus, "train_one", None)  # nothing is left to do
    monkeypatch.setattr(versus, "measure", None)
    monkeypatch.setattr(versus, "draw", lambda *args: None)
    again = versus.main([*map(str, arguments)])
    assert json.loads(json.dumps(again)) | {"seconds": 0} == last | {"seconds": 0}


def test_two_checkpoints_are_measured_without_training(versus, pair, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(versus, "sweep", None)
    monkeypatch.setattr(versus, "draw", lambda table, setting, path: drawn.append(path))
    size = ("--size", "16", "--train-images", "200", "--test-images", "20")
    files = ("--vit", pair["vit"], "--cnn", pair["cnn"], "--run-dir", str(tmp_path / "both"))
    last = versus.main([*size, *files])
    assert drawn == [tmp_path / "both" / "page.png"] and drawn[0].parent.is_dir()
    assert (last["seeds"], last["epochs"], last["vit"]) == (1, None, pair["vit"])
    assert "This was one pair of networks: ± 0 is not their spread" in capsys.readouterr().out
    assert last["accuracy_vit_sd"] == 0 and np.max(last["cka_cnn_sd"]) == 0
    assert last["start_cka_vit"] == last["cka_vit"]  # as nothing was learned
    assert 0 <= last["coverage_vit"] <= 1 and len(last["bias_by_class_cnn"]) == 10
    json.dumps(last, allow_nan=False)


# --- what is measured ----------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_two_networks(versus, pair):
    found = versus.measure(pair)
    assert json.loads(json.dumps(found)) == found
    _, test_set = versus.load_sets(pair)
    images, features = test_set.normalise(test_set.images), {}
    for kind in NAMES:
        model, _ = load_model(pair[kind])
        layers = versus.states(model)
        features[kind] = [x.reshape(20, -1) for x in read_batch(model, images, layers).values()]
        assert found[f"accuracy_{kind}"] == np.mean(predict(model, images).argmax(1) == test_set.labels)
        assert np.shape(found[f"few_shot_{kind}_mean"]) == (len(layers), 4)
    for a, b, name in (("vit", "vit", "vit"), ("cnn", "cnn", "cnn"), ("vit", "cnn", "both")):
        expected = [[features_cka(x, y) for y in features[b]] for x in features[a]]
        np.testing.assert_allclose(found[f"cka_{name}"], expected, rtol=1e-4, atol=1e-4)
    assert found["few_shot_vit_class"][0] == [0.1] * 4  # before the first block it is the same for all images
    assert np.shape(found["distance"]) == (4, 4) and found["distance"] == found["start_distance"]


def test_no_layer_is_counted_twice(versus):
    assert versus.states(create_model("resnet8")) == ["embedding", "layer1.0", "layer2.0", "layer3.0"]
    assert versus.states(create_model("vit_nano_patch7_28"))[-1] == "blocks.3"


def test_the_start_is_that_of_the_same_training(versus, tmp_path):
    train_set, _ = versus.load_sets(JOB)
    path = checkpoint(tmp_path / "vit.npz", NAMES["vit"], train_set)
    began, loaded = versus.untrained(path), load_model(path)[0]
    np.testing.assert_array_equal(began.head.weight.numpy(), loaded.head.weight.numpy())


def test_shapes_agree_with_textures_in_training_and_only_then_conflict(versus):
    train_set, test_set = versus.load_sets(JOB)
    conflict, members = versus.load_conflict(JOB, train_set)
    for data in (train_set, test_set):
        np.testing.assert_array_equal(data.labels, data.extra["texture"])
    assert (conflict.labels != conflict.extra["texture"]).all()
    np.testing.assert_array_equal(conflict.labels, test_set.labels)
    assert (conflict.images != test_set.images).any((1, 2, 3)).all()
    assert members == {name: [i] for i, name in enumerate(train_set.classes)}
    assert test_set.mean == train_set.mean and conflict.classes == train_set.classes


def test_answers_are_counted_by_the_cue_that_they_name(versus, monkeypatch):
    shape, texture = np.arange(6) % 3, (np.arange(6) + 1) % 3
    data = Dataset("odd", np.zeros((6, 1, 8, 8), np.uint8), shape, list("abc"), extra={"texture": texture})
    answers = {"vit": np.array([0, 1, 2, 0, 2, 1]), "cnn": np.array([0, *texture[1:]])}
    monkeypatch.setattr(versus, "predict", lambda model, images: np.eye(3)[answers[model]])
    found = versus.cues({"vit": "vit", "cnn": "cnn"}, data, {"a": [0], "b": [1], "c": [2]})
    assert (found["bias_vit"], found["coverage_vit"]) == (4 / 5, 5 / 6)
    assert (found["bias_by_class_vit"], found["coverage_by_class_vit"]) == ([1, 0.5, 1], [1, 1, 0.5])
    assert (found["bias_cnn"], found["coverage_cnn"]) == (1 / 6, 1)
    expected = 4 / 6 * 1 / 6 + 2 / 6 * 5 / 6  # by chance, where they agree on three of six
    assert found["kappa_conflict"] == pytest.approx((3 / 6 - expected) / (1 - expected))


def test_cue_conflict_images_are_those_that_the_classes_have_names_for(versus, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
    names = ("cat1-dog1", "cat2-boat1", "dog1-cat3", "boat1-cat1", "bear1-cat1", "cat4-cat5")
    for name, image in zip(names, pixels):
        path = tmp_path / re.match("[a-z]+", name)[0] / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    train_set = Dataset("few", np.zeros((3, 3, 16, 16), np.uint8), np.arange(3), ["ship", "cat", "frog"])
    job = JOB | {"dataset": "folder:few", "conflict": str(tmp_path)}
    data, members = versus.load_conflict(job, train_set)
    assert (len(data), data.classes, data.images.shape[1:]) == (2, ["boat", "cat"], (3, 16, 16))
    assert sorted(zip(data.labels, data.extra["texture"])) == [(0, 1), (1, 0)]
    assert (members["boat"], members["cat"]) == ([0], [1])
    assert versus.load_conflict(job | {"conflict": None}, train_set)[0] is None
    with pytest.raises(ValueError, match=r"no image of .* has shape and texture among none"):
        versus.load_conflict(job, Dataset("x", train_set.images, np.arange(3), ["0", "1", "2"]))


@pytest.mark.parametrize(("name", "side"), [("vit_nano_patch7_28", 28), ("vit_nano_patch4x8_32", 32)])
def test_a_head_that_looks_everywhere_alike(versus, name, side):
    model = create_model(name)
    down, across = model.patch_embed.patch_size
    places = [(y, x) for y in range(0, side, down) for x in range(0, side, across)]
    expected = np.mean([np.hypot(a[0] - b[0], a[1] - b[1]) for a in places for b in places])
    assert versus.evenly(model) == pytest.approx(expected, rel=1e-5)


def test_layers_of_fewer_heads_are_filled_up(versus, monkeypatch):
    layers = [np.array([1.0, 2.0]), np.array([3.0])]
    monkeypatch.setattr(versus, "measure_heads", lambda *args, **options: type("", (), {"distance": layers}))
    np.testing.assert_array_equal(versus.distances(None, None), [[1, 2], [3, np.nan]])


# --- conclusions ---------------------------------------------------------------------------------------------------

SHALLOW = ["embedding", "layer1.0", "layer2.0", "layer3.0"]
DEEP = ["embedding", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]
EVEN = 16.0
LUCK = np.array([-0.01, 0.0, 0.01])  # of three seeds


def setting(page, cnn=SHALLOW):
    layers = {"vit": ["embedding", *(f"blocks.{i}" for i in range(4))], "cnn": cnn}
    return page.Setting(layers, {"vit": 400, "cnn": 80}, ["star", "ring", "bolt"], (1, 20), 0.1, 32, EVEN)


def made_up(page, cnn=SHALLOW, cues=True, **changes):
    """Figures by which nothing is different from anything, but for ``changes`` {figure: mean over the seeds}."""
    means = {"kappa": 0.3, "distance": np.full((4, 4), 0.7 * EVEN), "start_distance": np.full((4, 4), EVEN)}
    means |= {"distance": np.array([[0.6, 0.8, 0.8, 0.5]] * 4) * EVEN}
    for kind, layers in setting(page, cnn).layers.items():
        means |= {f"accuracy_{kind}": 0.9, f"cka_{kind}": np.full((len(layers),) * 2, 0.5)}
        means |= {f"start_cka_{kind}": means[f"cka_{kind}"], f"few_shot_{kind}_mean": np.full((len(layers), 2), 0.6)}
        if cues:
            means |= {f"bias_{kind}": 0.5, f"coverage_{kind}": 0.8}
            means |= {f"{figure}_by_class_{kind}": np.full(3, 0.5) for figure in ("bias", "coverage")}
    means |= {"cka_both": np.full((5, len(cnn)), 0.5), "few_shot_vit_class": np.full((5, 2), 0.6)}
    means |= {"kappa_conflict": 0.2} if cues else {}
    return {name: np.array([np.array(mean) + luck for luck in LUCK]) for name, mean in (means | changes).items()}


def judged(page, cnn=SHALLOW, **changes):
    return {claim.key: claim for claim in page.judge(made_up(page, cnn, **changes), setting(page, cnn))}


def held(page, cnn=SHALLOW, **changes):
    return {key for key, claim in judged(page, cnn, **changes).items() if claim.held}


def test_claims_of_shape_and_texture_follow_the_numbers(page):
    assert held(page) == set() and len(judged(page)) == 8
    assert held(page, bias_vit=0.6) == {"vit_shape", "vit_more_shape"}
    assert held(page, bias_vit=0.3) == set()
    assert held(page, bias_cnn=0.3) == {"cnn_texture", "vit_more_shape"}
    assert held(page, bias_vit=0.2, bias_cnn=0.3) == {"cnn_texture"}
    numbers = judged(page, bias_vit=0.6, coverage_vit=0.75)["vit_shape"].numbers
    assert numbers == "shape bias 0.60 ± 0.01, coverage 75.0 ± 1.0 %"
    assert not {"vit_shape", "cnn_texture", "vit_more_shape"} & judged(page, cues=False).keys()


def test_claims_of_layers_follow_the_numbers(page):
    alike = np.eye(5) + 0.7 * (1 - np.eye(5))
    assert held(page, cka_vit=alike) == {"vit_uniform"} and held(page, cka_vit=0.4 * alike) == set()
    assert "CKA 0.70 ± 0.01 against 0.50 ± 0.01" in judged(page, cka_vit=alike)["vit_uniform"].numbers
    # the diagonal does not count
    assert held(page, cka_vit=np.full((5, 5), 0.5) + 9 * np.eye(5)) == set()

    both = np.full((5, 4), 0.2)
    both[:2, 1] = 0.6  # the ViT's first half is like the CNN's second layer
    assert held(page, cka_both=both) == {"early_alike"} and held(page, cka_both=both[::-1, ::-1]) == set()
    both = np.full((5, 4), 0.2)
    both[:2, 3] = 0.6  # and here like its last, which is not early
    assert held(page, cka_both=both) == set()
    both[:2, 1] = both[-2:, 0] = 0.6  # the ViT's last half is like the CNN's first layer, which is not late
    assert held(page, cka_both=both) == {"early_alike"}


def test_stages_are_told_where_a_stage_has_two_blocks(page):
    assert "cnn_stages" not in judged(page) and "cnn_stages" in judged(page, DEEP)
    cka = np.full((5, 5), 0.5)
    cka[1, 2] = cka[3, 4] = 0.55  # a little, for what is between is not among them
    assert held(page, DEEP, cka_cnn=cka) == {"cnn_stages"}
    cka[1, 2] = cka[3, 4] = 0.8
    assert held(page, DEEP, cka_cnn=cka) == {"cnn_stages"}
    cka[2, 3] = 0.9  # across the border
    assert held(page, DEEP, cka_cnn=cka) == set()
    cka[2, 3], cka[0, 1] = 0.5, 0.9  # what comes before the stages is none of them
    assert held(page, DEEP, cka_cnn=cka) == {"cnn_stages"}


def test_claims_of_attention_follow_the_numbers(page):
    def first(*shares):
        return np.array([shares] + 3 * [[0.6, 0.8, 0.8, 0.5]]) * EVEN

    assert held(page, distance=first(0.4, 0.5, 0.6, 0.95)) == {"vit_far"}
    assert held(page, distance=first(0.7, 0.7, 0.7, 0.7)) == {"vit_not_near"}
    assert held(page, distance=first(0.95, 0.95, 0.95, 0.95)) == {"vit_far", "vit_not_near"}
    assert held(page, distance=first(0.95, 0.95, np.nan, np.nan)) == {"vit_far", "vit_not_near"}
    assert held(page, distance=first(0.5, 0.7, 0.7, 0.7)[::-1]) == set()  # what is deeper does not count
    numbers = judged(page, distance=first(0.4, 0.5, 0.6, 0.95))["vit_far"].numbers
    assert "15.2 ± 0.0 px far, 95 ± 0 % (before training 100 ± 0 %) of the 16.0 px" in numbers


def test_claims_of_probes_follow_the_numbers(page):
    early, late = ([[0.0, x] for x in steps] for steps in ([0.1, 0.5, 0.6, 0.6, 0.6], [0.1, 0.1, 0.1, 0.6]))
    assert held(page, few_shot_vit_mean=early, few_shot_cnn_mean=late) == {"vit_classes_early"}
    late, early = ([[0.0, x] for x in steps] for steps in ([0.1, 0.1, 0.1, 0.6, 0.6], [0.1, 0.6, 0.6, 0.6]))
    assert held(page, few_shot_vit_mean=late, few_shot_cnn_mean=early) == set()
    steps = [[0.0, x] for x in (0.1, 0.2, 0.35, 0.5, 0.6)]
    claim = judged(page, few_shot_vit_mean=steps, few_shot_cnn_mean=steps[::4] + steps[4:] * 2)["vit_classes_early"]
    assert "50 ± 1 % against 100 ± 0 %" in claim.numbers  # 0.25 of 0.5 above chance; the CNN's is the mean of two 0.6
    flat = {f"few_shot_{kind}_mean": np.full((n, 2), 0.1) for kind, n in (("vit", 5), ("cnn", 4))}
    assert not re.search("inf|nan", judged(page, **flat)["vit_classes_early"].numbers)


def test_tables_have_the_mean_and_the_deviation_of_every_figure(page):
    table = made_up(page, bias_vit=0.6, bias_by_class_cnn=[0.1, 0.2, 0.3])
    lines = [re.split(r"  +", line) for line in page.as_text(table, setting(page)).splitlines()]
    for row in (
        ["parameters", "400", "80"],
        ["test accuracy, %", "90.0 ± 1.0", "90.0 ± 1.0"],
        ["shape bias", "0.60 ± 0.01", "0.50 ± 0.01"],
        ["bolt", "50 ± 1 (50)", "30 ± 1 (50)"],
        ["few-shot accuracy, %", "k = 1", "k = 20"],
        ["ViT, class token: blocks.3", "60.0 ± 1.0", "60.0 ± 1.0"],
        ["CNN, mean of places: layer3.0", "60.0 ± 1.0", "60.0 ± 1.0"],
        ["blocks.0", "8.0 ± 0.0", "10.8 ± 0.0", "12.8 ± 0.0"],
    ):
        assert row in lines, row
    table.pop("few_shot_vit_class")  # of a ViT without one
    assert "class token" not in page.as_text(table, setting(page))
    text = page.as_text(made_up(page, cues=False), setting(page))
    assert "shape" not in text and "κ: 0.30 ± 0.01 on test images\n" in text


# --- the page ------------------------------------------------------------------------------------------------------


def panels(page, monkeypatch, path, table, setting):
    """The axes of the page, by their titles, once it is drawn; without a path it is not written."""
    import figures

    seen, save = [], figures.save
    write = save if path else lambda figure, path: figures.plt.close(figure)
    monkeypatch.setattr(figures, "save", lambda figure, path: seen.extend(figure.axes) or write(figure, path))
    page.draw(table, setting, path)
    return {title: axes for axes in seen if (title := axes.get_title(loc="left"))}


def test_the_page(page, tmp_path, monkeypatch):
    table, path = made_up(page), tmp_path / "page.png"
    table["bias_by_class_vit"] = np.array([[0.2, np.nan, 0.9]] * 3)  # no answers for one
    titles = [title.partition(":")[0] for title in panels(page, monkeypatch, path, table, setting(page))]
    assert titles == 3 * ["CKA"] + ["few-shot accuracy, %", "attention distance, px (image 32)", "shape bias"]
    check_picture(path)
    assert all(has_colour(path, colour) for colour in page.COLOURS.values())


def test_panels_show_what_was_measured(page, monkeypatch):
    table = made_up(page, DEEP, cues=False)
    found = panels(page, monkeypatch, None, table, setting(page, DEEP))
    assert len(found) == 5 and "shape bias" not in found
    both = found["CKA: ViT (up) and CNN (across)"]
    assert [label.get_text() for label in both.get_xticklabels()] == DEEP
    assert [label.get_text() for label in both.get_yticklabels()] == setting(page).layers["vit"]
    np.testing.assert_allclose(both.images[0].get_array(), table["cka_both"].mean(0))
    probes = found["few-shot accuracy, %: k = 20 (dashed 1)"]
    assert [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in probes.lines] == [(1, pytest.approx(60))] * 6
    heads = found["attention distance, px (image 32)"]
    assert len(heads.collections[0].get_offsets()) == 3 * 4 * 4  # seeds, layers, heads


def test_without_matplotlib_no_page_is_drawn(page, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "figures", None)
    page.draw({}, None, None)
    assert "no page was drawn: it needs matplotlib, pip install " in capsys.readouterr().out


# --- what it cannot do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--seeds 1", "--seeds must be at least 2, as one alone has no spread; got 1$"),
        ("--test-images 3", "--test-images must be at least 4, got 3$"),
        ("--cnn resnet9", "--vit and --cnn must be names .*, got vit_nano_patch8_32 and resnet9$"),
        ("--vit resnet8", "--vit and --cnn must be names .*, got resnet8 and resnet8$"),
        ("--vit best.npz", "--vit and --cnn must be .* or both a checkpoint.*, got best.npz and resnet8$"),
        ("--conflict images", "--conflict is for data sets other than shapes, which has such images; got images$"),
        ("--train-images 0", "--train-images must be at least 1, got 0$"),
        ("--train-images 190", "--train-images must leave 20 images of every class .*; of circle there are 19$"),
        ("--epochs 0", "epochs must be at least 1, got 0$"),
        ("--train-images 200 --size 20", r"patch_size \(8, 8\) must divide img_size \(20, 20\)$"),
        ("--train-images 200 --vit no.npz --cnn none.npz", "the checkpoint no.npz cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_trained(versus, arguments, sentence, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match=f"^{sentence}"):
        versus.main(["--size", "16", *arguments.split(), "--run-dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_it_is_said_in_one_line(tmp_path):
    assert fails("vit_vs_cnn.py", "--seeds", 1, cwd=tmp_path).startswith("vit_vs_cnn: --seeds must be")


def test_checkpoints_must_be_a_pair_for_these_images(versus, pair, tmp_path):
    train_set, _ = versus.load_sets(JOB)

    def refused(message, **changes):
        with pytest.raises(ValueError, match=message):
            versus.load_networks(pair | changes, train_set)

    refused("--vit must be a checkpoint of a VisionTransformer, .*cnn.npz is of resnet8", vit=pair["cnn"])
    other = checkpoint(tmp_path / "other.npz", "resnet8", train_set, mean=[0.5] * 3)
    refused("--vit and --cnn must be trained on the same images", cnn=other)
    other = checkpoint(tmp_path / "other.npz", "resnet8", train_set, classes=list("abcdefghij"))
    refused("--cnn must be a checkpoint for the images and classes of .*shapes.*, .* the classes a, b, c", cnn=other)
    larger = Dataset("shapes", np.zeros((1, 3, 24, 24), np.uint8), np.zeros(1, int), train_set.classes)
    other = checkpoint(tmp_path / "other.npz", "vit_nano_patch8_32", larger)
    refused("--vit must be a checkpoint for .* 3×24×24 pixels", vit=other)
    assert Path(pair["vit"]).exists() and len(versus.load_networks(pair, train_set)[0]) == 2
