"""Images with the shape of one class and the texture of another: a cat with the skin of an elephant.

Geirhos et al., "ImageNet-trained CNNs are biased towards texture" (ICLR 2019, arXiv:1811.12231), made 1,280 of them by
style transfer, in 16 categories with everyday names. They are public, in ``rgeirhos/texture-vs-shape``, one folder for
each shape. A file is named by its shape, then its texture, each with the number of the picture that it came from:

    cat/cat1-boat1.png

A network seldom has just these 16 classes. Which of its classes make up each category is a dictionary of class numbers:
``IMAGENET`` for the 1,000 of ImageNet, and ``by_name(classes)`` for others, such as those of CIFAR-10.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minivit.data.dataset import Dataset
from minivit.data.folder import SUFFIXES, read_image

# Numbers into ImageNet's 1,000 classes in their usual order. The choice of Geirhos et al.: rgeirhos/texture-vs-shape,
# code/helper/human_categories.py; the same in bethgelab/model-vs-human.
IMAGENET: dict[str, list[int]] = {
    "airplane": [404],
    "bear": [294, 295, 296, 297],
    "bicycle": [444, 671],
    "bird": [8, *range(10, 17), 18, 19, 20, 22, 23, 24, *range(80, 84), *range(87, 97), 98, 99, 100, *range(127, 134),
             *range(135, 146)],
    "boat": [472, 554, 625, 814, 914],
    "bottle": [440, 720, 737, 898, 899, 901, 907],
    "car": [436, 511, 817],
    "cat": [281, 282, 283, 284, 285, 286],
    "chair": [423, 559, 765, 857],
    "clock": [409, 530, 892],
    "dog": [*range(152, 192), *range(193, 204), *range(205, 227), *range(228, 242), *range(243, 251), *range(252, 258),
            259, 261, 262, 263, *range(265, 269)],
    "elephant": [385, 386],
    "keyboard": [508, 878],
    "knife": [499],
    "oven": [766],
    "truck": [555, 569, 656, 675, 717, 734, 864, 867],
}  # fmt: skip
CATEGORIES = list(IMAGENET)
OTHER_NAMES = {"automobile": "car", "ship": "boat"}  # in CIFAR-10
NAME = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")


def by_name(classes: Sequence[str]) -> dict[str, list[int]]:
    """{category: the numbers of the classes that are called so}, or by another name for it: "automobile", "ship".

    Categories without a class are left out, and so are classes without a category, CIFAR-10's deer, frog and horse.

    >>> by_name(["ship", "frog", "cat"])
    {'boat': [0], 'cat': [2]}
    """
    names = [OTHER_NAMES.get(name, name) for name in classes]
    members = {category: [number for number, name in enumerate(names) if name == category] for category in CATEGORIES}
    return {category: numbers for category, numbers in members.items() if numbers}


def cue_conflict(path: str | Path, size: int = 224) -> Dataset:
    """All images ``path/<shape>/<shape><number>-<texture><number>.png`` (or .jpg, …), as RGB of ``size`` pixels.

    Labels are shapes and ``extra["texture"]`` textures, both numbers into the 16 ``CATEGORIES``. The images come in the
    order of their paths; some may have the texture that belongs to their shape. Give them the mean and deviation with
    which the network was trained: ``cue_conflict(path).normalised_like(train)``.

    Raises FileNotFoundError where ``path`` is no folder; ValueError where it holds no images, and for a file that is
    named in another way, lies in another folder than that of its shape, or cannot be read; ImportError without Pillow.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{path} is no folder")
    files = sorted(p for p in root.glob("*/*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise ValueError(f"{path} holds no images: they are expected as {path}/cat/cat1-boat1.png, shape and texture")
    shape, texture = np.array([_cues(file) for file in files]).T

    def read(file: Path) -> np.ndarray:
        try:
            return read_image(file, size)
        except ImportError:
            raise
        except Exception as error:  # Pillow's decoders fail in many ways
            raise ValueError(f"{file} cannot be read: {type(error).__name__}: {error}") from error

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        images = list(tqdm(pool.map(read, files), total=len(files), desc="reading images", leave=False, disable=None))
    return Dataset(root.resolve().name, np.stack(images), shape, CATEGORIES, extra={"texture": texture})


def _cues(file: Path) -> tuple[int, int]:
    """The numbers of shape and texture, by the name of a file."""
    named = NAME.fullmatch(file.stem)
    if not named or not set(named.groups()) <= set(CATEGORIES):
        raise ValueError(
            f"{file} must be named by its shape and its texture, as cat1-boat1.png is; "
            f"both are one of {', '.join(CATEGORIES)}"
        )
    shape, texture = named.groups()
    if file.parent.name != shape:
        raise ValueError(f"{file} must lie in the folder of its shape, {shape}, it lies in {file.parent.name}")
    return CATEGORIES.index(shape), CATEGORIES.index(texture)
