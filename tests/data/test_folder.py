import sys

import numpy as np
import pytest

from minivit.data.folder import folder, read_image

Image = pytest.importorskip("PIL.Image")


def write_image(path, size=(8, 8), seed=0, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(path, **options)
    return pixels.transpose(2, 0, 1)


def write_tree(root, classes=("cat", "dog"), count=3, **options):
    return {
        (name, number): write_image(root / name / f"{number:03}.png", seed=[index, number], **options)
        for index, name in enumerate(classes)
        for number in range(count)
    }


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_folders_are_read_in_order(tmp_path, test_name):
    train_images = write_tree(tmp_path / "train", count=3)
    test_images = write_tree(tmp_path / test_name, count=2)
    train, test = folder(tmp_path, size=8)
    assert train.classes == test.classes == ["cat", "dog"]
    np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(train.images, list(train_images.values()))
    np.testing.assert_array_equal(test.images, list(test_images.values()))
    assert test.mean == train.mean


def as_set(data):
    return {(image.tobytes(), data.classes[label]) for image, label in zip(data.images, data.labels)}


@pytest.mark.parametrize("below", ["", "train"])
def test_a_single_tree_is_split_by_name_and_new_files_move_no_others(tmp_path, below):
    images = write_tree(tmp_path / below, count=60)
    train, test = folder(tmp_path, size=8)
    assert as_set(train) | as_set(test) == {(image.tobytes(), name) for (name, _), image in images.items()}
    assert not as_set(train) & as_set(test)
    assert 0.05 < len(test) / 120 < 0.25

    write_tree(tmp_path / below, classes=("ant", "cat"), count=100, size=(8, 8))
    write_tree(tmp_path / below, count=60)  # these as they were
    more_train, more_test = folder(tmp_path, size=8)
    assert as_set(train) <= as_set(more_train) and as_set(test) <= as_set(more_test)
    assert more_train.classes == ["ant", "cat", "dog"]


def test_images_in_folders_below_a_class_belong_to_it_and_other_files_do_not_matter(tmp_path):
    write_tree(tmp_path / "train")
    write_image(tmp_path / "train" / "dog" / "puppies" / "1.PNG")
    write_tree(tmp_path / "test")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / "._001.png").write_bytes(b"what macOS leaves behind")
    (tmp_path / "train" / "__pycache__").mkdir()
    (tmp_path / "train" / "list.csv").write_text("")
    train, _ = folder(tmp_path, size=8)
    assert train.classes == ["cat", "dog"]
    np.testing.assert_array_equal(np.bincount(train.labels), [3, 4])


def test_a_corrupt_file_is_named_and_left_out_unless_strict(tmp_path):
    write_tree(tmp_path / "train")
    write_tree(tmp_path / "test")
    broken = tmp_path / "train" / "cat" / "001.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"cat/001\.png cannot be read and is left out") as warned:
        train, _ = folder(tmp_path, size=8)
    assert len(warned) == 1
    np.testing.assert_array_equal(np.bincount(train.labels), [2, 3])
    with pytest.raises(ValueError, match=r"cat/001\.png cannot be read"):
        folder(tmp_path, size=8, strict=True)


def test_an_image_of_the_right_size_is_left_alone(tmp_path):
    pixels = write_image(tmp_path / "a.png", size=(16, 16))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 16), pixels)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (26, 20), (20, 20)])
def test_the_shorter_side_is_scaled_and_the_centre_cut_out(tmp_path, size):
    """A white square in the centre of a black picture, as wide as half of the shorter side, stays just that."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 2 - 5 : height // 2 + 5, width // 2 - 5 : width // 2 + 5] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.zeros((3, 60, 60), int)
    expected[:, 15:45, 15:45] = 255
    assert np.abs(read_image(tmp_path / "a.png", 60) - expected).mean() < 8


def test_grey_transparent_and_palette_images_become_rgb(tmp_path):
    grey = write_image(tmp_path / "grey.png", mode="L")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", 8), np.repeat(grey, 3, axis=0))
    colours = write_image(tmp_path / "rgba.png", mode="RGBA")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png", 8), colours[:3])
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=b"\x00\xff")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png", 8)[:, 0, 0], [10, 20, 30])


def test_a_photo_marked_as_turned_is_turned_upright(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # left is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise: left becomes top
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png", 4)
    assert image[:, 0].min() > 200 and image[:, -1].max() < 50


def test_more_than_8_bits_are_refused_instead_of_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        read_image(tmp_path / "a.png", 8)


def test_what_cannot_be_a_data_set_gets_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no images: they are expected as .*/<class>/<name>\.png"):
        folder(tmp_path)
    write_tree(tmp_path / "train")
    write_tree(tmp_path / "test", classes=("cat", "emu"))
    with pytest.raises(ValueError, match="test has classes without training images: emu"):
        folder(tmp_path)


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_a_set_without_a_readable_image_gets_a_sentence(tmp_path):
    write_tree(tmp_path / "train")
    (tmp_path / "test" / "cat").mkdir(parents=True)
    (tmp_path / "test" / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="test has no readable image"):
        folder(tmp_path)


def test_without_pillow_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"needs Pillow: pip install 'minivit\[examples\]'"):
        folder(tmp_path)
