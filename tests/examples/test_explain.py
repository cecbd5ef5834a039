"""``explain.py``: what is drawn, what is on the page that it leaves, and what it cannot do."""

import base64
import io
import json
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from minivit.analysis import attention_maps
from minivit.analysis.heads import measure_heads
from minivit.analysis.relevance import relevance
from minivit.analysis.rollout import rollout
from minivit.data import Batch
from minivit.data.shapes import shapes
from minivit.models import create_model
from minivit.training import load_model, save_checkpoint
from tests.examples import ROOT, check_picture, succeeds

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "seed": 1}
CLASSES = ["circle", "square", "star"]


@pytest.fixture
def explorer():
    import explorer

    return explorer


@pytest.fixture
def explain():
    import explain

    return explain


def checkpoint(folder, name="vit_nano_patch8_32", classes=CLASSES, **options):
    """The checkpoint of a network that has learned nothing."""
    arguments = TINY | options
    if name.startswith("vit"):
        arguments["num_classes"] = len(classes)
    channels = arguments.get("in_chans", 1 if name.endswith("28") else 3)
    meta = {
        "model": name,
        "arguments": arguments,
        "classes": classes,
        "mean": [0.5] * channels,
        "std": [0.25] * channels,
    }
    save_checkpoint(folder / "best.npz", create_model(name, **arguments), meta=meta)
    return folder / "best.npz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, two images in the size of its network, one with an evil name, and a file that is no image."""
    folder = tmp_path_factory.mktemp("explain")
    images = shapes(2, seed=5, size=16).images.transpose(0, 2, 3, 1)
    Image.fromarray(images[0]).save(folder / "one.png")
    Image.fromarray(images[1]).save(folder / "\"two' & <b>.png")
    (folder / "text.png").write_text("no image")
    checkpoint(folder)
    return folder


def inputs_of(path, pixels):
    """A network, and the images (n, C, H, W) as it takes them."""
    model, meta = load_model(path)
    mean, std = (np.array(meta[name])[:, None, None] for name in ("mean", "std"))
    return model, ((pixels / 255 - mean) / std).astype(np.float32)


def read_page(path):
    """What a page holds, found as a browser finds it: from the opening tag to the first that closes a script."""
    block = re.search(r'<script id="data" type="application/json">(.*?)</script', path.read_text("utf-8"), re.DOTALL)
    return json.loads(block[1])


def read_maps(layer, tokens):
    """The maps of a layer of the page, (mean, rollout, heads …; N, N), and the largest number of each row."""
    largest = np.frombuffer(base64.b64decode(layer["largest"]), "<f4").reshape(2 + layer["heads"], tokens, 1)
    parts = np.frombuffer(base64.b64decode(layer["weights"]), np.uint8).reshape(2 + layer["heads"], tokens, tokens)
    return parts / 255 * largest, largest


# --- a run from start to end ---------------------------------------------------------------------------------------


def test_a_run_leaves_pictures_a_page_and_a_last_line(folder):
    names = ["one.png", "\"two' & <b>.png"]
    last = succeeds("explain.py", "best.npz", *names, "--class", "star", cwd=folder)
    out = folder / "explain"
    pictures = ["attention.png", "distance.png", "filters.png", "positions.png", "relevance.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*pictures, "explorer.html"])
    for picture in pictures:
        check_picture(out / picture)

    pixels = shapes(2, seed=5, size=16).images
    model, inputs = inputs_of(folder / "best.npz", pixels)
    probabilities = np.exp(model(inputs).numpy())
    probabilities /= probabilities.sum(1, keepdims=True)
    assert [answer["file"] for answer in last["answers"]] == names
    assert [answer["class"] for answer in last["answers"]] == [CLASSES[p.argmax()] for p in probabilities]
    measured = measure_heads(model, [Batch(inputs, np.zeros(2, int), np.arange(2))], progress=False).distance
    np.testing.assert_allclose(last["attention_distance"], [layer.mean() for layer in measured], rtol=1e-5)
    even = (4 * 0 + 8 * 8 + 4 * 8 * np.sqrt(2)) / 16  # between the centres of 2 × 2 patches of 8 px
    assert last["attention_distance_even"] == pytest.approx(even)
    assert (last["example"], last["model"], last["left_out"]) == ("explain", "vit_nano_patch8_32", "")

    page = read_page(out / "explorer.html")
    assert (page["size"], page["grid"], page["prefix"], page["shares"]) == ([16, 16], [2, 2], ["class token"], True)
    maps = attention_maps(model, inputs)
    for i, image in enumerate(page["images"]):
        answer = last["answers"][i]
        assert (image["name"], image["answer"]) == (names[i], f"{answer['class']} ({answer['confidence']:.0%})")
        kind, picture = image["picture"].split(",")
        assert kind == "data:image/png;base64"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
        np.testing.assert_array_equal(shown, pixels[i].transpose(1, 2, 0))
        assert len(image["layers"]) == 2
        for number, layer in enumerate(image["layers"]):
            heads = maps[number][i]
            found, largest = read_maps(layer, 5)
            expected = np.stack([heads.mean(0), rollout([a[i : i + 1] for a in maps[: number + 1]])[0], *heads])
            assert (abs(found - expected) <= largest / 510 + 1e-6).all()


def test_a_masked_autoencoder_has_maps_and_no_answers(explain, folder, tmp_path, capsys):
    path = checkpoint(tmp_path, "mae_nano_patch4_28", decoder_embed_dim=8, decoder_depth=1, img_size=(8, 16))
    result = explain.main([str(path), str(folder / "one.png"), "--out", str(tmp_path / "here")])
    assert result["answers"] == [{"file": "one.png"}] and "one.png: " not in capsys.readouterr().out
    page = read_page(tmp_path / "here" / "explorer.html")
    assert (page["size"], page["grid"], page["images"][0]["answer"]) == ([8, 16], [1, 2], "")
    assert [layer["heads"] for layer in page["images"][0]["layers"]] == [2, 2]  # not those of the decoder
    for picture in ("attention.png", "relevance.png", "distance.png", "filters.png", "positions.png"):
        check_picture(tmp_path / "here" / picture)


def test_layers_may_differ_in_heads_weights_need_not_be_shares_and_positions_no_table(explain, folder, tmp_path):
    path = checkpoint(
        tmp_path, class_token=False, global_pool="avg", attn_layer="rela", num_heads=[1, 3], head_dim=4,
        patch_size=(4, 8), pos_embed="rope_axial",
    )  # fmt: skip
    result = explain.main([str(path), str(folder / "one.png"), "--out", str(tmp_path / "here")])
    assert result["answers"][0]["class"] in CLASSES
    page = read_page(tmp_path / "here" / "explorer.html")
    assert (page["prefix"], page["grid"], page["shares"]) == ([], [4, 2], False)
    assert [layer["heads"] for layer in page["images"][0]["layers"]] == [1, 3]
    assert not (tmp_path / "here" / "positions.png").exists()


@pytest.mark.parametrize(
    ("name", "options", "names"),
    [
        ("deit_nano_distilled_patch8_32", {}, ["class token", "distillation token"]),
        ("simmim_nano_patch4_28", {"reg_tokens": 2}, ["class token", "register 1", "register 2"]),
        ("mae_nano_patch4_28", {}, ["class token"]),
        ("vit_nano_patch8_32", {"class_token": False, "global_pool": "avg"}, []),
    ],
)
def test_every_token_in_front_of_the_patches_has_a_name(explorer, name, options, names):
    model = create_model(name, **TINY | options)
    assert explorer.prefix_names(model) == names and len(names) == model.num_prefix_tokens


def test_relevance_is_that_of_the_answer_and_of_the_class_asked_for(explain, folder):
    model, inputs = inputs_of(folder / "best.npz", shapes(1, seed=5, size=16).images)
    maps, answer = attention_maps(model, inputs), int(model(inputs).numpy().argmax())
    for wanted in range(3):
        speaks = explain.look(model, inputs, maps, True, wanted).speaks
        np.testing.assert_allclose(speaks, [relevance(model, inputs, k)[0] for k in (answer, wanted)], rtol=1e-5)
    assert explain.look(model, inputs, maps, False, None).speaks == []


def test_a_head_that_looks_at_nothing_takes_no_part_in_a_mean(explain):
    np.testing.assert_array_equal(explain.average([[1.0, np.nan], [3.0, np.nan]], axis=0), [2.0, np.nan])
    assert explain.average(np.array([np.nan, 4.0])) == 4 and np.isnan(explain.average(np.array([np.nan])))


@pytest.mark.parametrize(("shape", "count"), [((1, 4, 4), 3), ((2, 4, 8), 9), ((5, 8, 4), 7)])
def test_filters_of_any_shape_are_drawn(explain, tmp_path, shape, count):
    import figures

    from minivit.analysis.filters import Components

    images = np.random.default_rng(0).standard_normal((count, *shape))
    explain.draw_filters(figures, Components(images, np.full(count, 1 / count)), tmp_path / "filters.png")
    check_picture(tmp_path / "filters.png")


def test_every_head_has_a_point_in_the_picture_of_distances(explain, tmp_path, monkeypatch):
    import figures

    seen, save = {}, figures.save

    def look(figure, path):
        (axes,) = figure.axes
        seen["points"] = np.concatenate([points.get_offsets() for points in axes.collections])
        seen["mean"] = axes.lines[0].get_ydata()
        save(figure, path)

    monkeypatch.setattr(figures, "save", look)
    distances = [np.array([3.0, 9.0]), np.array([4.0]), np.array([1.0, np.nan])]
    explain.draw_distances(figures, distances, 6.0, 1, tmp_path / "distance.png")
    check_picture(tmp_path / "distance.png")
    points = np.ma.compress_rows(np.ma.masked_invalid(seen["points"]))
    np.testing.assert_array_equal(points, [[1, 3], [1, 9], [2, 4], [3, 1]])
    np.testing.assert_array_equal(seen["mean"], [6, 4, 1])


# --- what it cannot do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["best.npz", "text.png"], r"text\.png cannot be read as an image: "),
        (["best.npz", "nothing.png"], r"there is no file nothing\.png$"),
        (["none.npz", "one.png"], r"the checkpoint none\.npz cannot be read: No such file or directory$"),
        (["one.png", "one.png"], r"one\.png is not a checkpoint of minivit"),
        (["best.npz", "one.png", "--class", "sta"], "--class must be one of .* 3 classes, got 'sta'; try star$"),
        (["best.npz", "one.png", "--class", "ox"], r"--class must be one of .* got 'ox'; try circle, square, star$"),
        (["best.npz", "one.png", "--device", "tpu"], r"device must be 'cpu', 'cuda' or 'cuda:<number>', got 'tpu'$"),
    ],
)
def test_what_cannot_be_done_gets_a_sentence(explain, folder, monkeypatch, arguments, sentence):
    monkeypatch.chdir(folder)
    with pytest.raises((ValueError, RuntimeError), match=f"^{sentence}"):
        explain.main([*arguments, "--out", "unwanted"])
    assert not (folder / "unwanted").exists()


def test_a_program_ends_with_the_sentence(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["explain.py", str(folder / "best.npz"), "nothing.png"])
    with pytest.raises(SystemExit, match=r"^explain: there is no file nothing\.png$"):
        runpy.run_path(str(ROOT / "examples" / "explain.py"), run_name="__main__")


def test_a_network_without_attention_and_one_without_classes_get_a_sentence(explain, folder, tmp_path):
    arguments = {"img_size": 16}
    meta = {"model": "resnet8", "arguments": arguments, "classes": CLASSES, "mean": [0.5] * 3, "std": [0.25] * 3}
    save_checkpoint(tmp_path / "cnn.npz", create_model("resnet8", **arguments), meta=meta)
    with pytest.raises(ValueError, match=r"cnn\.npz is of resnet8, which has no attention; predict\.py says what it"):
        explain.main([str(tmp_path / "cnn.npz"), str(folder / "one.png")])
    path = checkpoint(tmp_path, "mae_nano_patch4_28")
    with pytest.raises(ValueError, match=r"^--class star: mae_nano_patch4_28 tells no classes, so nothing speaks for"):
        explain.main([str(path), str(folder / "one.png"), "--class", "star"])
    save_checkpoint(tmp_path / "bare.npz", load_model(path)[0], meta={"model": "mae_nano_patch4_28", "arguments": TINY})
    with pytest.raises(RuntimeError, match=r"bare\.npz does not say which images it is of$"):
        explain.main([str(tmp_path / "bare.npz"), str(folder / "one.png")])


def test_without_matplotlib_it_says_what_is_missing(explain, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "figures", None)
    with pytest.raises(
        ImportError, match=r"^it draws, for which it needs matplotlib: pip install 'minivit\[examples\]'"
    ):
        explain.main([str(folder / "best.npz"), str(folder / "one.png")])
