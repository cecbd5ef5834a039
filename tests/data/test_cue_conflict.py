import sys

import numpy as np
import pytest

from minivit.data.cifar import CLASSES
from minivit.data.cue_conflict import CATEGORIES, IMAGENET, by_name, cue_conflict
from tests.data.test_folder import write_image

# Of the published lists: how many classes of ImageNet make up each category, and the sum of their numbers.
PUBLISHED = {
    "airplane": (1, 404), "bear": (4, 1182), "bicycle": (2, 1115), "bird": (49, 4213), "boat": (5, 3379),
    "bottle": (7, 5502), "car": (3, 1764), "cat": (6, 1701), "chair": (4, 2604), "clock": (3, 1831),
    "dog": (109, 22672), "elephant": (2, 771), "keyboard": (2, 1386), "knife": (1, 499), "oven": (1, 766),
    "truck": (8, 5637),
}  # fmt: skip


# --- categories ----------------------------------------------------------------------------------------------------


def test_the_categories_of_imagenet_are_those_published():
    assert {name: (len(numbers), sum(numbers)) for name, numbers in IMAGENET.items()} == PUBLISHED
    assert CATEGORIES == sorted(PUBLISHED) and len(CATEGORIES) == 16


def test_no_class_of_imagenet_is_in_two_categories():
    numbers = [number for numbers in IMAGENET.values() for number in numbers]
    assert len(set(numbers)) == len(numbers) == 207 and 0 <= min(numbers) <= max(numbers) < 1000


def test_seven_classes_of_cifar_10_have_a_category():
    found = {category: [CLASSES[10][k] for k in numbers] for category, numbers in by_name(CLASSES[10]).items()}
    same = {name: [name] for name in ("airplane", "bird", "cat", "dog", "truck")}
    assert found == same | {"car": ["automobile"], "boat": ["ship"]}


def test_a_category_may_have_several_names_among_the_classes():
    assert by_name(["car", "deer", "automobile"]) == {"car": [0, 2]}
    assert by_name(CATEGORIES) == {name: [number] for number, name in enumerate(CATEGORIES)}
    assert by_name([]) == by_name(["frog", "0", "Cat"]) == {}


# --- files ---------------------------------------------------------------------------------------------------------


def test_shape_and_texture_are_read_from_the_names(tmp_path):
    names = ["bear/bear1-oven1.png", "cat/cat1-boat1.png", "cat/cat10-cat3.PNG", "cat/cat2-elephant12.jpg"]
    pixels = [write_image(tmp_path / name, seed=number) for number, name in enumerate(names)]
    data = cue_conflict(tmp_path, size=8)
    assert data.classes == CATEGORIES
    assert [data.classes[label] for label in data.labels] == ["bear", "cat", "cat", "cat"]
    assert [data.classes[label] for label in data.extra["texture"]] == ["oven", "boat", "cat", "elephant"]
    np.testing.assert_array_equal(data.images[:3], pixels[:3])


def test_images_are_scaled_and_other_files_do_not_matter(tmp_path):
    write_image(tmp_path / "cat" / "cat1-dog1.png", size=(20, 30))
    write_image(tmp_path / "cat" / ".hidden.png")
    (tmp_path / "cat" / "notes.txt").write_text("")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "lion").mkdir()
    assert cue_conflict(tmp_path, size=12).images.shape == (1, 3, 12, 12)


NAMES = ["cat1.png", "cat1-boat.png", "cat-boat1.png", "cat1-lion1.png", "cat1-boat1-dog1.png"]


@pytest.mark.parametrize("name", NAMES)
def test_another_name_gets_a_sentence(tmp_path, name):
    write_image(tmp_path / "cat" / name)
    with pytest.raises(ValueError, match=rf"cat/{name} must be named by its shape and its texture, as cat1-boat1.png"):
        cue_conflict(tmp_path)


def test_a_file_in_the_folder_of_another_shape_gets_a_sentence(tmp_path):
    write_image(tmp_path / "boat" / "cat1-boat1.png")
    with pytest.raises(ValueError, match=r"cat1-boat1.png must lie in the folder of its shape, cat, it lies in boat"):
        cue_conflict(tmp_path)


def test_a_file_that_cannot_be_read_gets_a_sentence(tmp_path):
    write_image(tmp_path / "cat" / "cat1-boat1.png")
    (tmp_path / "cat" / "cat2-boat1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cat2-boat1.png cannot be read: UnidentifiedImageError"):
        cue_conflict(tmp_path)


def test_what_is_no_such_folder_gets_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        cue_conflict(tmp_path / "nowhere")
    write_image(tmp_path / "cat1-boat1.png")
    with pytest.raises(ValueError, match=r"holds no images: they are expected as .*/cat/cat1-boat1.png"):
        cue_conflict(tmp_path)


def test_without_pillow_the_way_out_is_told(tmp_path, monkeypatch):
    write_image(tmp_path / "cat" / "cat1-boat1.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"needs Pillow: pip install 'minivit\[examples\]'"):
        cue_conflict(tmp_path)
