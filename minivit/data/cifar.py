"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32 × 32 pixels in RGB.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). Both are published in two forms. The
binary form is plain records: the label (CIFAR-100: first the superclass, then the label), then 1024 red, 1024
green, 1024 blue bytes. The "python" form is a pickle of a dictionary.

A pickle is a program, and loading one runs it: it may name any function of any module and call it. This project
therefore downloads the binary form, and reads a python form that is there already with an unpickler that has no
functions to offer. The file may name exactly the three things that a NumPy array needs, and what it gets for each
is an inert stand-in that notes its arguments. The array is then built here from the noted bytes, after
its element type and shape are found to be what they should. Any other name is refused, with the file named.
"""

import io
import pickle  # for its Unpickler class alone: see above
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minivit.data.dataset import Dataset
from minivit.data.download import provide

ADDRESS = "https://www.cs.toronto.edu/~kriz/"
MD5 = {
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
}
FILES = {  # folder in the archive → names of the training files, name of the test file
    "cifar-10-batches-bin": ([f"data_batch_{k}.bin" for k in range(1, 6)], "test_batch.bin"),
    "cifar-10-batches-py": ([f"data_batch_{k}" for k in range(1, 6)], "test_batch"),
    "cifar-100-binary": (["train.bin"], "test.bin"),
    "cifar-100-python": (["train"], "test"),
}
CLASSES = {
    10: "airplane automobile bird cat deer dog frog horse ship truck".split(),
    100: """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
        man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split(),
}
PIXELS = 3 * 32 * 32


def cifar(data_dir: str | Path, classes: int = 10) -> tuple[Dataset, Dataset]:
    """Training and test set of CIFAR-10 or CIFAR-100 (``classes`` 10 or 100): images (n, 3, 32, 32).

    Binary or python form, as the published archive or its unpacked folder, are looked for in ``data_dir`` and in
    ``data_dir/cifar10`` (``cifar100``); otherwise the binary archive is downloaded into the latter. Archives are
    read in place, never unpacked. Raises ConnectionError where the download fails, ValueError for a file that is
    not right.
    """
    if classes not in CLASSES:
        raise ValueError(f"classes must be 10 or 100, got {classes}")
    name = f"cifar{classes}"
    own = Path(data_dir) / name
    folders = [folder for folder in FILES if folder.startswith(f"cifar-{classes}-")]
    archives = [f"cifar-{classes}-{form}.tar.gz" for form in ("binary", "python")]
    places = [place / file for place in (own, Path(data_dir)) for file in folders + archives]
    path = provide(own / archives[0], places, [ADDRESS + archives[0]], f"md5:{MD5[archives[0]]}")

    python = path.name.endswith(("-py", "-python", "-python.tar.gz"))
    train_names, test_name = FILES[folders[1] if python else folders[0]]
    read = read_python if python else read_binary
    parts = {name: read(data, classes, f"{name} in {path}") for name, data in _files(path, [*train_names, test_name])}
    images, labels = (np.concatenate(arrays) for arrays in zip(*(parts[name] for name in train_names)))
    train = Dataset(name, images, labels, CLASSES[classes])
    return train, Dataset(name, *parts[test_name], CLASSES[classes]).normalised_like(train)


def read_binary(data: bytes, classes: int, source: str = "the data") -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) and labels (n,) of a file in binary form; ``source`` names it in errors (ValueError).

    >>> images, labels = read_binary(bytes([7]) + bytes(3072), classes=10)
    >>> images.shape, labels
    ((1, 3, 32, 32), array([7], dtype=uint8))
    """
    record = PIXELS + (1 if classes == 10 else 2)
    if not data or len(data) % record:
        raise ValueError(f"{source} must hold whole records of {record} bytes, it has {len(data)} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    images, labels = records[:, -PIXELS:], records[:, -PIXELS - 1]
    return images.reshape(-1, 3, 32, 32), _checked(labels, classes, source)


def read_python(data: bytes, classes: int, source: str = "the data") -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) and labels (n,) of a file in python form; nothing that it names is ever called.

    Raises ValueError, which names ``source``, for anything but such a file.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        array = content[b"data"]
        _, shape, dtype, fortran_order, pixels = array.state
        labels = content[b"labels" if classes == 10 else b"fine_labels"]
        if dtype.arguments[0] not in (b"u1", "u1") or fortran_order or shape != (len(labels), PIXELS):
            raise ValueError(f"its array must be bytes of shape ({len(labels)}, {PIXELS}), it has shape {shape}")
        images = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32)
        labels = np.array(labels)
    except Exception as error:  # a broken pickle can fail in any way
        raise ValueError(f"{source} is no CIFAR-{classes} file in python form: {error}") from None
    return images, _checked(labels, classes, source)


class _Noted:
    """Stands in for what a pickle names; keeps what it is called with and the state it is given."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numbers, strings, lists, dictionaries, and NumPy arrays as ``_Noted``. Refuses everything else."""

    allowed = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),  # its name since NumPy 2
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in self.allowed:
            raise ValueError(f"it asks for {module}.{name}, which no such file needs; do not trust it")
        return type(name, (_Noted,), {})  # a new class each time, so that a file cannot alter it for the next


def _checked(labels: np.ndarray, classes: int, source: str) -> np.ndarray:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels of {source} must be integers in 0 … {classes - 1}, one for each image")
    return labels


def _files(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """The named files of a folder or of a tar archive, whose inner folders do not matter."""
    missing = set(names)
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                missing.remove(name)
                yield name, (path / name).read_bytes()
    else:
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    name = member.name.rpartition("/")[2]
                    if member.isfile() and name in missing:
                        missing.remove(name)
                        yield name, archive.extractfile(member).read()
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged archive: {error}") from None
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
