"""``augmentations.py``: what the gallery shows, a table from start to end, and conclusions from made-up numbers."""

import json
import re
import runpy
import sys

import numpy as np
import pytest

from minivit.data import Loader
from minivit.data.augment import (
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    color,
    compose,
    filters,
    geometry,
    levels,
)
from minivit.data.shapes import shapes
from minivit.training import evaluate
from tests.data.test_idx import write_set
from tests.examples import ROOT, check_picture, run
from tests.examples.test_figures import colours

JOB = {
    "dataset": "shapes", "data_dir": "data", "size": 16, "train_images": 30, "test_images": 20, "visits": 120,
    "epochs": 4, "seed": 1, "variant": "none", "augment": "",
}  # fmt: skip


@pytest.fixture
def example():
    import augmentations

    return augmentations


@pytest.fixture
def figures():
    import figures

    yield figures
    assert figures.plt.get_fignums() == []


@pytest.fixture(scope="module")
def data():
    return shapes(60, seed=0, size=32)


# --- from start to end -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pictures_table_and_claims(tmp_path):
    write_set(tmp_path / "data" / "mnist")
    arguments = ("--dataset", "mnist", "--seeds", 2, "--visits", 120, "--names", "all")
    code, out, err = run("augmentations.py", *arguments, cwd=tmp_path)
    assert (code, err) == (0, "")
    folder, last = tmp_path / "runs" / "augmentations-mnist", json.loads(out.splitlines()[-1])
    pictures = ["ablation.png", "gallery.png", "operations.png"]
    assert sorted(path.name for path in folder.iterdir()) == [pictures[0], "figures", *pictures[1:]]
    for picture in pictures:
        check_picture(folder / picture)

    said = {"example": "augmentations", "dataset": "mnist", "train_images": 30, "visits": 120, "base": "crop=1"}
    assert {name: last[name] for name in said} == said
    jobs = [json.loads(path.read_text()) for path in (folder / "figures").glob("*.json")]
    augment = {"none": "", "base": "crop=1", "all": "crop=1,randaugment,erasing,mixup,cutmix,repeated"}
    assert {each["job"]["variant"]: each["job"]["augment"] for each in jobs} == augment
    assert sorted(each["job"]["seed"] for each in jobs) == [0] * 3 + [1] * 3
    for variant, label in zip(augment, ("none", "crop=1", "+ all")):
        (row,) = [line for line in out.splitlines() if line.startswith(f"{label} ")]
        for measure in ("accuracy", "train_accuracy"):
            mean = np.mean([each["figures"][measure] for each in jobs if each["job"]["variant"] == variant])
            assert last[f"{variant}_{measure}"] == pytest.approx(mean) and f" {100 * mean:.1f} ± " in row
    held = re.findall(r"^  (It held|It did not hold): ", out, re.MULTILINE)
    assert len(held) == sum(name.startswith("held_") for name in last) == 3
    assert held.count("It held") == sum(value for name, value in last.items() if name.startswith("held_"))


def test_a_run_is_trained_with_its_augmentations_and_measured_without(example, monkeypatch):
    seen = []

    def train(model, train_set, test_set, job, **loader):
        seen.append((model, len(train_set), np.bincount(train_set.labels), loader))
        return kept(model, train_set, test_set, job, **loader)

    kept = example.train
    monkeypatch.setattr(example, "train", train)
    found = example.run(JOB | {"augment": "crop=2,erasing,repeated=2"})
    ((model, count, labels, loader),) = seen
    train_set, test_set = example.load_images(JOB)
    assert count == 30 and (labels == np.bincount(train_set.labels)).all()
    assert loader == {"augment": [RandomCrop(2), RandomErasing(0.25)], "repeats": 2}
    for name, images in (("train_accuracy", train_set), ("accuracy", test_set)):
        assert found[name] == evaluate(model, Loader(images, 10, shuffle=False)).accuracy


def test_copies_of_an_image_reach_the_loader(example, monkeypatch):
    loaders = []
    monkeypatch.setattr("trial.fit", lambda model, optimizer, train, *rest, **options: loaders.append(train))
    train_set, test_set = example.load_images(JOB)
    model = example.make_model(JOB, train_set)
    for options in ({}, {"augment": [RandomCrop(1)], "repeats": 3}):
        example.train(model, train_set, test_set, JOB, **options)
    assert [loader.repeats for loader in loaders] == [1, 3]
    assert [loader.augment for loader in loaders] == [(), (RandomCrop(1),)]  # the recipe of shapes has none


# --- the gallery -----------------------------------------------------------------------------------------------------


def test_the_gallery_shows_every_augmentation_that_changes_images(example, data):
    names = {name.partition("=")[0].strip() for row in example.GALLERY for name in re.split(r",|\n", row)}
    assert compose.DEFAULTS.keys() - names == {"mix", "smoothing"}


def test_every_picture_differs_from_the_original_and_is_the_same_every_time(example, data):
    before = data.images.copy()
    rows, again = example.gallery(data), example.gallery(data)
    assert [name for name, _ in rows] == list(example.GALLERY)
    for (name, row), (_, other) in zip(rows, again):
        (title, original), *blocks = row
        assert title == "original" and original.shape == (1, 3, 32, 32) and 1 <= len(blocks) <= 3
        assert data.classes[data.labels[(data.images == original).all((1, 2, 3)).argmax()]] == "bolt"
        for (words, images), (_, repeated) in zip(blocks, other[1:]):
            assert images.shape[1:] == (3, 32, 32) and len(images) in (2, 3)
            np.testing.assert_array_equal(images, repeated)
            changed = abs(images - original / 255).mean((1, 2, 3))
            assert (changed > 1e-4).all(), (name, words, changed)
    np.testing.assert_array_equal(data.images, before)


def test_a_higher_strength_changes_more(example, data):
    rows = dict(example.gallery(data))
    for name in ("crop", "color_jitter", "erasing"):
        (_, original), *blocks = rows[name]
        weak, middle, strong = (abs(images - original / 255).mean() for _, images in blocks)
        assert weak < middle < strong, name


def test_two_images_are_mixed_and_copies_are_of_one(example, data):
    first = {label: data.images[np.flatnonzero(data.labels == label)[0]] / 255 for label in (9, 8, 7)}
    rows = dict(example.gallery(data))
    for _, images in rows["mixup"][1:]:
        for image in images:  # λ x + (1 − λ) x′ with one λ for all pixels
            direction = (first[9] - first[8]).ravel()
            share = (image - first[8]).ravel() @ direction / (direction @ direction)
            assert 0 <= share <= 1
            np.testing.assert_allclose(image, share * first[9] + (1 - share) * first[8], atol=1e-5)
    for _, images in rows["cutmix"][1:]:
        of_either = [np.isclose(images, first[label], atol=1e-5).all(1) for label in (9, 8)]
        assert np.logical_or(*of_either).all() and all(part.any((1, 2)).all() for part in of_either)

    blocks = rows["repeated\n(three of a batch)"][1:]
    for (_, images), labels in zip(blocks, ((9, 8, 7), (9, 9, 8), (9, 9, 9))):
        for image, label in zip(images, labels):  # somewhere in the image with four black pixels on every side
            padded = np.pad(first[label], ((0, 0), (4, 4), (4, 4)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (32, 32), axis=(1, 2))
            assert abs(windows - image[:, None, None]).max((0, 3, 4)).min() < 1e-5
        assert len({image.tobytes() for image in images}) == 3


def test_all_operations_are_shown(example, data):
    helpers = {"affine", "luma", "blend", "histogram", "look_up", "box_weights"}
    public = {
        name
        for module in (geometry, color, levels, filters)
        for name, thing in vars(module).items()
        if getattr(thing, "__module__", None) == module.__name__ and not name.startswith("_")
    }
    image = data.images[:1]
    rows = example.operations(image)
    named = {name for name, _ in rows if name} | {title for name, row in rows if not name for title, _ in row[1:]}
    assert named == public - helpers
    for name, ((_, original), *blocks) in rows:
        np.testing.assert_array_equal(original, image)
        for title, images in blocks:
            assert images.shape == image.shape and images.dtype == np.uint8
            assert (images != image).any(), (name, title)


@pytest.mark.parametrize("across", [1, 2])
def test_blocks_of_images_have_places_of_their_own(figures, tmp_path, monkeypatch, across):
    places, sheets, save = [], [], figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (sheets.extend(figure.axes), save(figure, path)))
    dark, light = np.full((1, 3, 8, 16), 40, np.uint8), np.full((3, 1, 8, 16), 2.0, np.float32)
    rows = [(f"row {n}", [("original", dark), ("three", light)]) for n in range(3)]
    figures.draw_image_blocks(rows, tmp_path / "blocks.png", across)
    (axes,) = sheets
    places = [shown.get_extent() for shown in axes.images]
    assert len(places) == 12 and {round((right - left) / (low - top), 3) for left, right, low, top in places} == {2}
    for n, (left, right, low, top) in enumerate(places):
        assert axes.get_xlim()[0] < left < right < axes.get_xlim()[1] and low <= axes.get_ylim()[0]
        for x0, x1, y1, y0 in places[:n]:
            assert right <= x0 or x1 <= left or low <= y0 or y1 <= top
    assert [text.get_text() for text in axes.texts] == [w for n in range(3) for w in (f"row {n}", "original", "three")]
    found = {tuple(colour) for colour in colours(tmp_path / "blocks.png")}
    assert (40, 40, 40) in found and (255, 255, 255) in found


# --- conclusions -----------------------------------------------------------------------------------------------------


def made_up(**accuracies):
    """Three seeds around each accuracy; 100 % on the training images, but with all."""
    spread = np.array([-0.01, 0.0, 0.01])
    return {
        name: {"accuracy": value + spread, "train_accuracy": np.full(3, 0.8 if name == "all" else 1.0)}
        for name, value in accuracies.items()
    }


def test_claims_follow_the_numbers(example):
    table = made_up(none=0.5, base=0.6, mixup=0.65, erasing=0.61, cutmix=0.55, all=0.7)
    claims = {claim.key: claim for claim in example.judge(table, "crop=1")}
    held = {"base": True, "mixup": True, "erasing": False, "cutmix": False, "all": True, "all_best": True, "gap": True}
    assert {key: claim.held for key, claim in claims.items()} == held
    assert claims["all_best"].numbers == "70.0 ± 1.0 % against 65.0 ± 1.0 %" and "mixup" in claims["all_best"].says
    assert claims["gap"].numbers == "10.0 ± 1.0 points against 50.0 ± 1.0 without any"
    assert claims["base"].says == "crop=1 helps."

    other = made_up(none=0.7, base=0.6, mixup=0.65, all=0.45)
    held = {"base": False, "mixup": True, "all": False, "all_best": False, "gap": False}
    assert {claim.key: claim.held for claim in example.judge(other, "crop=1")} == held
    assert [claim.key for claim in example.judge(made_up(none=0.5, base=0.6), "crop=1")] == ["base"]
    assert [c.key for c in example.judge(made_up(none=0.5, base=0.6, all=0.7), "crop=1")] == ["base", "all", "gap"]


def test_the_gain_is_that_over_the_same_seed(example):
    table = made_up(none=0.5, base=0.6, mixup=0.65)
    table["mixup"]["accuracy"] = table["base"]["accuracy"] + [0.05, 0.04, 0.06]
    lines = example.as_text(table, "crop=1").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["none", "crop=1", "+"]
    assert lines[1].endswith("-10.0 ± 0.0") and lines[2].rstrip().endswith("100.0 ± 0.0")
    assert "65.0 ± 1.7" in lines[3] and lines[3].endswith("5.0 ± 1.0")


def test_the_table_is_drawn_with_a_line_at_the_baseline(example, figures, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(figures, "draw_spreads", lambda *args: calls.append(args))
    example.draw_ablation(made_up(none=0.5, base=0.6, erasing=0.7), "crop=2,flip", tmp_path / "ablation.png")
    ((rows, path, _, lines),) = calls
    assert list(rows) == ["none", "crop=2,flip", "+ erasing"] and path == tmp_path / "ablation.png"
    np.testing.assert_allclose(rows["+ erasing"], [69, 70, 71])
    assert lines == {"crop=2,flip": pytest.approx(60)}


# --- what suits the data, and what cannot be -------------------------------------------------------------------------


def test_only_what_has_no_left_and_right_is_flipped(example):
    for dataset, mirrored in (("mnist", False), ("cifar10", True), ("shapes", True)):
        crop, *flip = example.augmentations(example.base_of(dataset))["augment"]
        assert isinstance(crop, RandomCrop) and crop.padding > 0 and flip == mirrored * [RandomHorizontalFlip()]
    assert example.base_of("folder:of/birds") == "crop=2,flip"
    assert example.parse(["--base", "flip"]).base == "flip"


def test_the_gallery_alone(example, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("figures.draw_image_blocks", lambda rows, path, across=1: drawn.append((path.name, across)))
    said = example.main(["--gallery-only", *f"--train-images 20 --visits 1 --run-dir {tmp_path / 'new'}".split()])
    assert said == {"example": "augmentations", "dataset": "shapes", "run_dir": str(tmp_path / "new")}
    assert drawn == [("gallery.png", 1), ("operations.png", 2)] and list(tmp_path.iterdir()) == [tmp_path / "new"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--names mixup,mixdown", "--names must be some of resized_crop,.*,all, got mixdown$"),
        ("--base flop", "there is no augmentation 'flop': choose from crop, "),
        ("--base crop=1,mixup", "mixup is named twice in 'crop=1,mixup,mixup'$"),
        ("--base mix=pair --names erasing", "mix=pair says what mixup and cutmix draw for, but neither is named$"),
        ("--base=", "--base must name an augmentation, such as crop=2, got none$"),
        ("--seeds 1", "--seeds must be at least 2, as one alone has no spread; got 1$"),
        ("--dataset mnist --visits 119", "--visits must be at least 4 times the 30 images, got 119$"),
        ("--dataset mnist --train-images 2", "--train-images must be at least 3, for the gallery; there are 2$"),
        ("--train-images 30 --size 20", r"patch_size \(8, 8\) must divide img_size \(20, 20\)$"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_drawn(example, arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "data" / "mnist")
    with pytest.raises(ValueError, match=sentence):
        example.main(arguments.split())
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


def test_it_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["augmentations.py", "--seeds", "1"])
    with pytest.raises(
        SystemExit, match=r"^augmentations: --seeds must be at least 2, as one alone has no spread; got 1$"
    ):
        runpy.run_path(str(ROOT / "examples" / "augmentations.py"), run_name="__main__")


def test_without_matplotlib_there_are_no_pictures(example, data, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "figures", None)
    example.draw_gallery(data, tmp_path)
    example.draw_ablation(made_up(none=0.5, base=0.6), "crop=1", tmp_path / "ablation.png")
    assert capsys.readouterr().out == "no pictures are drawn: they need matplotlib, pip install 'minivit[examples]'\n"
    assert list(tmp_path.iterdir()) == []
