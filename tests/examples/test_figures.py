"""The pictures of the examples: whole PNG files, and the numbers behind them."""

import numpy as np
import pytest
from PIL import Image

from tests.examples import check_picture


@pytest.fixture
def figures():
    import figures

    yield figures
    assert figures.plt.get_fignums() == [], "every figure is closed once it is saved"


def random_bytes(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def colours(path):
    """The picture as (H · W, 3) bytes."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).reshape(-1, 3)


def has_colour(path, name):
    """Is there a pixel of (almost) this colour?"""
    colour = [int(name[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((abs(colours(path).astype(int) - colour).max(-1) < 12).any())


def epochs(count):
    return [
        {"epoch": n, "train_loss": 2 / n, "test_loss": 2.5 / n, "train_accuracy": 1 - 0.5 / n, "test_accuracy": 0.4}
        for n in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [1, 20])
def test_curves(figures, tmp_path, count):
    figures.draw_curves(epochs(count), tmp_path / "curves.png")
    check_picture(tmp_path / "curves.png")
    assert has_colour(tmp_path / "curves.png", figures.TRAIN) and has_colour(tmp_path / "curves.png", figures.TEST)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_epochs_are_whole_numbers(figures, tmp_path, monkeypatch, count):
    ticks, save = [], figures.save

    def look(figure, path):
        ticks.extend(tick for axes in figure.axes for tick in axes.get_xticks())
        save(figure, path)

    monkeypatch.setattr(figures, "save", look)
    figures.draw_curves(epochs(count), tmp_path / "curves.png")
    assert ticks and all(tick == int(tick) for tick in ticks)


@pytest.mark.parametrize(("count", "channels", "right"), [(3, 1, False), (9, 3, True), (2, 5, False)])
def test_predictions_show_mistakes_in_another_colour(figures, tmp_path, count, channels, right):
    p = np.eye(3)[np.arange(count) % 3]
    labels = p.argmax(1) if right else (p.argmax(1) + 1) % 3
    path = tmp_path / "predictions.png"
    grey = random_bytes(count, 1, 8, 8).repeat(channels, axis=1)
    figures.draw_predictions(grey, labels, p, ["a", "b", "c"], path, columns=4)
    check_picture(path)
    assert has_colour(path, figures.WRONG) != right


@pytest.mark.parametrize(("count", "channels", "heads", "grid"), [(1, 1, 1, (2, 2)), (3, 3, 4, (2, 4))])
def test_attention(figures, tmp_path, count, channels, heads, grid):
    maps = np.random.default_rng(0).random((count, heads, *grid))
    images = random_bytes(count, channels, 8, 16)
    figures.draw_attention(images, maps, ["a title"] * count, tmp_path / "attention.png")
    check_picture(tmp_path / "attention.png")
    with Image.open(tmp_path / "attention.png") as picture:
        assert (picture.width > picture.height) == (2 + heads > count)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4)])
def test_positions(figures, tmp_path, grid):
    table = np.random.default_rng(0).standard_normal((grid[0] * grid[1], 6))
    figures.draw_positions(table, grid, tmp_path / "positions.png")
    check_picture(tmp_path / "positions.png")


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_an_image_becomes_a_picture_whatever_its_channels(figures, channels):
    image = random_bytes(channels, 4, 6)
    picture = figures.as_picture(image)
    assert picture.shape == (4, 6, 3) and picture.dtype == np.uint8
    shown = image[:3] if channels >= 3 else image[[0, 0, 0]]
    np.testing.assert_array_equal(picture.transpose(2, 0, 1), shown)


def test_attention_is_brightest_where_the_map_is_largest_and_patches_keep_their_place(figures):
    picture, weights = np.full((4, 6, 3), 100, np.uint8), np.array([[0.1, 0.2, 0.0], [0.0, 0.4, 0.1]])
    shaded = figures.shade(picture, weights)
    assert shaded.shape == (4, 6, 3) and 0 <= shaded.min() and shaded.max() <= 1
    patches = shaded.reshape(2, 2, 3, 2, 3)  # (row, pixel row, column, pixel column, RGB)
    assert (patches == patches[:, :1, :, :1]).all()
    brightness = patches[:, 0, :, 0].sum(-1)
    assert (np.argsort(brightness.ravel(), kind="stable") == np.argsort(weights.ravel(), kind="stable")).all()
    np.testing.assert_allclose(figures.shade(picture, 7 * weights), shaded)
    assert np.isfinite(figures.shade(picture, 0 * weights)).all()


def test_a_picture_is_whole_or_not_there(figures, tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"the old one")

    def fail(*args, **options):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(figures.os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            figures.draw_curves(epochs(2), path)
    assert path.read_bytes() == b"the old one"
    figures.draw_curves(epochs(2), path)
    check_picture(path)


def test_the_examples_import_without_a_display_and_draw_to_files_only(figures):
    assert figures.matplotlib.get_backend().lower() == "agg"
