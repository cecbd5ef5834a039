"""Your own images: one folder a class, any format that Pillow reads, any size."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minivit.data.dataset import Dataset
from minivit.random import key

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
TEST_NAMES = ("test", "val", "valid", "validation")
TEST_SHARE = 0.15


def folder(path: str | Path, size: int = 32, strict: bool = False) -> tuple[Dataset, Dataset]:
    """Training and test set of a tree of images, as RGB of ``size`` × ``size`` pixels (see ``read_image``).

    Two layouts, where class folders may have folders of their own:

    - ``path/train/<class>/…`` beside ``path/test/<class>/…`` (or ``val``)
    - ``path/<class>/…``: each image goes to the test set with a chance of 15 %, decided by a hash of its own
      name alone, so that adding or deleting images moves no other image from one set to the other

    A file that cannot be read is named in a warning and left out; with ``strict`` it raises ValueError. Raises
    FileNotFoundError where ``path`` is no folder, ValueError where it holds no images or classes that the
    training set lacks, and ImportError without Pillow.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{path} is no folder")
    _pillow()  # better missing now than after the search
    train_root = root / "train" if (root / "train").is_dir() else root
    test_root = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
    if train_root == root or test_root is None:
        files = _by_class(train_root)
        train_files, test_files = _split(files, train_root)
    else:
        files = train_files = _by_class(train_root)
        test_files = _by_class(test_root)
    if unknown := sorted(set(test_files) - set(files)):
        raise ValueError(f"{test_root} has classes without training images: {', '.join(unknown)}")
    train = _load(f"{root.name} train", train_files, list(files), size, strict)
    test = _load(f"{root.name} test", test_files, list(files), size, strict)
    return train, test.normalised_like(train)


def read_image(path: str | Path, size: int) -> np.ndarray:
    """One image file as uint8 (3, size, size): the shorter side scaled to ``size``, then the centre cut out.

    A photo that its camera marked as turned is turned upright. Bicubic, with antialiasing; an image that has the
    right size is left alone. Raises what Pillow raises for a file that it cannot read, and ValueError for
    images of more than 8 bits a channel, which Pillow would clip.
    """
    image_module, image_ops = _pillow()
    with image_module.open(path) as file:
        if file.mode[0] in "IF":
            raise ValueError(f"it has more than 8 bits a channel (mode {file.mode}); save it with 8")
        image_ops.exif_transpose(file, in_place=True)
        image = file.convert("RGBA") if file.mode == "P" else file  # RGB would warn about a transparent palette
        image = image.convert("RGB")
        if image.size != (size, size):
            image = image_ops.fit(image, (size, size), image_module.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1)


def _pillow() -> tuple:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ImportError("reading image files needs Pillow: pip install 'minivit[examples]'") from None
    return Image, ImageOps


def _by_class(root: Path) -> dict[str, list[Path]]:
    """The image files below each folder of ``root``, sorted; folders without images are no classes."""
    found = {}
    for folder in sorted(root.iterdir()):
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if files:
            found[folder.name] = files
    if not found:
        raise ValueError(f"{root} holds no images: they are expected as {root}/<class>/<name>.png (or .jpg, …)")
    return found


def _split(files: dict[str, list[Path]], root: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    def is_test(path: Path) -> bool:
        return key(0, "split", path.relative_to(root).as_posix())[0] < TEST_SHARE * 2**32

    train = {name: [path for path in paths if not is_test(path)] for name, paths in files.items()}
    test = {name: [path for path in paths if is_test(path)] for name, paths in files.items()}
    return train, test


def _load(name: str, files: dict[str, list[Path]], classes: list[str], size: int, strict: bool) -> Dataset:
    paths = [path for kind in classes for path in files.get(kind, [])]
    labels = np.repeat(np.arange(len(classes)), [len(files.get(kind, [])) for kind in classes])
    images = np.empty((len(paths), 3, size, size), np.uint8)

    def read(number: int) -> str:
        """Fill in one image; what is wrong with its file, or an empty string."""
        try:
            images[number] = read_image(paths[number], size)
        except Exception as error:  # Pillow's decoders fail in many ways
            return f"{paths[number]} cannot be read and is left out: {type(error).__name__}: {error}"
        return ""

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        results = pool.map(read, range(len(paths)))
        problems = list(tqdm(results, total=len(paths), desc=f"reading {name}", leave=False, disable=None))
    for problem in filter(None, problems):
        if strict:
            raise ValueError(problem)
        warnings.warn(problem, stacklevel=3)
    good = np.array([not problem for problem in problems], dtype=bool)
    if not good.any():
        raise ValueError(f"{name} has no readable image")
    return Dataset(name, images[good], labels[good], classes)
