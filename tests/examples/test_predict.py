"""``predict.py``: your own image files through a trained network, and what it says of those that it cannot read."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from minivit import Tensor, ops
from minivit.data.shapes import shapes
from minivit.models import create_model
from minivit.training import load_model, save_checkpoint
from tests.examples import check_picture, fails, run, succeeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shapes as image files: in the size of the network, twice as large and wider, and one that is damaged."""
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(shapes(1, seed=5, size=16).images[0].transpose(1, 2, 0)).save(folder / "exact.png")
    large = Image.fromarray(shapes(3, seed=5, size=64).images[2].transpose(1, 2, 0))
    wide = Image.new("RGB", (96, 64))
    wide.paste(large, (16, 0))
    wide.save(folder / "wide.jpg", quality=95)
    whole = (folder / "exact.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """The checkpoint of a network for grey images of 28 pixels, as MNIST's; it has learned nothing."""
    path = tmp_path_factory.mktemp("grey") / "best.npz"
    meta = {
        "model": "vit_nano_patch7_28", "arguments": {"seed": 1}, "classes": list("0123456789"), "mean": [0.1],
        "std": [0.3],
    }  # fmt: skip
    save_checkpoint(path, create_model("vit_nano_patch7_28", seed=1), meta=meta)
    return path


def expected(checkpoint, pixels):
    """What the network says of bytes (n, C, H, W): probabilities (n, K)."""
    model, meta = load_model(checkpoint)
    mean, std = (np.array(meta[name])[:, None, None] for name in ("mean", "std"))
    return ops.softmax(model(Tensor(((pixels / 255 - mean) / std).astype(np.float32)))).numpy()


def test_files_are_answered_in_order_and_the_picture_is_beside_the_checkpoint(trained, folder):
    checkpoint = trained[0] / "best.npz"
    code, out, err = run("predict.py", checkpoint, "exact.png", "wide.jpg", cwd=folder)
    assert (code, err) == (0, "")
    first, second, where, _ = out.splitlines()
    p = expected(checkpoint, shapes(1, seed=5, size=16).images)[0]
    classes = load_model(checkpoint)[1]["classes"]
    best = np.argsort(-p)[:3]
    assert first == "exact.png: " + ", ".join(f"{classes[k]} {p[k]:.1%}" for k in best)
    assert re.fullmatch(r"wide\.jpg: (\w+ \d+\.\d%(, |$)){3}", second)
    picture = trained[0] / "predictions_on_files.png"
    assert where == f"where it looked: {picture}"
    check_picture(picture)
    picture.unlink()


def test_the_last_line_has_the_answers(trained, folder, tmp_path):
    checkpoint = trained[0] / "last.npz"
    figures = succeeds("predict.py", checkpoint, folder / "exact.png", "--out", tmp_path / "here.png", cwd=tmp_path)
    p = expected(checkpoint, shapes(1, seed=5, size=16).images)[0]
    answer = {
        "file": "exact.png",
        "class": load_model(checkpoint)[1]["classes"][p.argmax()],
        "confidence": pytest.approx(p.max(), abs=1e-4),
    }
    assert figures == {"example": "predict", "checkpoint": str(checkpoint), "answers": [answer]}
    check_picture(tmp_path / "here.png")
    assert [path.name for path in tmp_path.iterdir()] == ["here.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["best", "broken.png"], r"broken\.png cannot be read as an image: .*truncated"),
        (["best", "exact.png", "broken.png"], r"broken\.png cannot be read as an image: "),
        (["best", "nothing.png"], r"there is no file nothing\.png"),
        (["best", "."], r"\. cannot be read as an image: "),
        (["exact.png", "exact.png"], r"exact\.png is not a checkpoint of minivit: it is no \.npz file"),
        (["none.npz", "exact.png"], r"the checkpoint none\.npz cannot be read: No such file or directory"),
        (["best", "exact.png", "--device", "tpu"], r"device must be 'cpu', 'cuda' or 'cuda:<number>', got 'tpu'"),
    ],
)
def test_what_cannot_be_done_gets_one_line(arguments, sentence, trained, folder):
    before = sorted(folder.iterdir())
    line = fails("predict.py", *(trained[0] / "best.npz" if x == "best" else x for x in arguments), cwd=folder)
    assert re.match(f"predict: {sentence}", line), line
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("invert", [False, True])
def test_a_network_for_grey_images_sees_brightness(grey, tmp_path, invert):
    from image_files import read_pixels

    colours = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    pixels = read_pixels(tmp_path / "colours.png", (28, 28), 1, invert)
    assert pixels.shape == (1, 28, 28) and pixels.dtype == np.uint8
    brightness = colours @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(255 - pixels[0].astype(float) if invert else pixels[0], brightness, atol=0.5001)


@pytest.mark.parametrize("options", [[], ["--invert"], ["--top", "1"], ["--top", "0"], ["--top", "99"]])
def test_options(grey, tmp_path, options, capsys):
    from predict import main

    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    result = main([str(grey), str(tmp_path / "digit.png"), "--out", str(tmp_path / "out.png"), *options])
    p = expected(grey, (255 - pixels if "--invert" in options else pixels)[None, None])[0]
    assert result["answers"][0]["class"] == str(p.argmax())
    top = int(options[1]) if "--top" in options else 3
    line = capsys.readouterr().out.splitlines()[0]
    assert re.findall(r"(\d) [\d.]+%", line) == [str(k) for k in np.argsort(-p)[:top]]
    check_picture(tmp_path / "out.png")


def test_without_matplotlib_there_are_answers_and_no_picture(grey, tmp_path, monkeypatch, capsys):
    from predict import main

    Image.new("L", (28, 28)).save(tmp_path / "blank.png")
    monkeypatch.setitem(sys.modules, "figures", None)
    assert len(main([str(grey), str(tmp_path / "blank.png"), "--out", str(tmp_path / "out.png")])["answers"]) == 1
    assert "no picture was drawn: it needs matplotlib" in capsys.readouterr().out
    assert not (tmp_path / "out.png").exists()


def test_an_image_is_cut_to_the_shape_of_the_network(tmp_path):
    from image_files import read_pixels

    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colours.png")
    cut = read_pixels(tmp_path / "colours.png", (28, 14), 3, False)
    np.testing.assert_array_equal(cut, pixels.transpose(2, 0, 1)[:, :, 7:21])


def test_networks_for_other_channels_get_a_sentence(tmp_path):
    from image_files import read_pixels

    with pytest.raises(ValueError, match=r"^image files have 1 or 3 channels; the network takes 2$"):
        read_pixels(tmp_path / "any.png", (28, 28), 2, False)


def test_a_cnn_answers_without_a_picture_of_attention(tmp_path, capsys):
    from predict import main

    meta = {"model": "resnet8", "arguments": {"img_size": 8, "seed": 1}, "classes": list("0123456789")}
    meta |= {"mean": [0.5] * 3, "std": [0.3] * 3}
    save_checkpoint(tmp_path / "best.npz", create_model("resnet8", img_size=8, seed=1), meta=meta)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    result = main([str(tmp_path / "best.npz"), str(tmp_path / "red.png")])
    red = np.zeros((1, 3, 8, 8), np.uint8)
    red[:, 0] = 255
    assert result["answers"][0]["class"] == str(expected(tmp_path / "best.npz", red)[0].argmax())
    assert "no picture was drawn: resnet8 has no attention" in capsys.readouterr().out


def test_a_masked_autoencoder_tells_no_classes(tmp_path):
    from predict import main

    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    meta = {"model": "mae_nano_patch4_28", "arguments": arguments, "classes": ["a"], "mean": [0.1], "std": [0.3]}
    save_checkpoint(tmp_path / "best.npz", create_model("mae_nano_patch4_28", **arguments), meta=meta)
    Image.new("L", (8, 8)).save(tmp_path / "blank.png")
    with pytest.raises(ValueError, match=r"^mae_nano_patch4_28 tells no classes: finetune\.py makes a network of it"):
        main([str(tmp_path / "best.npz"), str(tmp_path / "blank.png")])
