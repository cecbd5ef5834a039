"""MNIST and Fashion-MNIST, and the IDX format that both come in.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998); Xiao, Rasul
and Vollgraf, "Fashion-MNIST" (2017). Each is 60,000 training and 10,000 test images of 28 × 28 pixels in grey.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from minivit.data.dataset import Dataset
from minivit.data.download import provide

CLASSES = {
    "mnist": [str(digit) for digit in range(10)],
    "fashion_mnist": "T-shirt, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot".split(", "),
}
MIRRORS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
MD5 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
}


def mnist(data_dir: str | Path, name: str = "mnist") -> tuple[Dataset, Dataset]:
    """Training and test set of ``"mnist"`` or ``"fashion_mnist"``: images (n, 1, 28, 28).

    The four files, gzipped or plain, are looked for in ``data_dir/<name>``, and in ``data_dir`` itself where that
    folder is called ``<name>`` (the files of both data sets have the same names); otherwise they are downloaded
    into ``data_dir/<name>``. Raises ConnectionError where that fails, ValueError for a file that is not right.
    """
    folder = Path(data_dir) if Path(data_dir).resolve().name == name else Path(data_dir) / name
    try:
        train, test = (_split(folder, name, prefix) for prefix in ("train", "t10k"))
    except ConnectionError as error:
        raise ConnectionError(f"{error}\nFour files belong there: {', '.join(MD5[name])}.") from None
    return train, test.normalised_like(train)


def _split(folder: Path, name: str, prefix: str) -> Dataset:
    paths, arrays = [], []
    for filename, ndim in ((f"{prefix}-images-idx3-ubyte.gz", 3), (f"{prefix}-labels-idx1-ubyte.gz", 1)):
        path = folder / filename
        checksum = f"md5:{MD5[name][filename]}"
        path = provide(path, [path, path.with_suffix("")], [MIRRORS[name] + filename], checksum)
        array = read_idx(path)
        if array.ndim != ndim:
            raise ValueError(f"{path} must hold an array of {ndim} axes, it holds one of shape {array.shape}")
        paths.append(path)
        arrays.append(array)
    images, labels = arrays
    if len(images) != len(labels):
        raise ValueError(f"{paths[0]} holds {len(images)} images, but {paths[1]} holds {len(labels)} labels")
    return Dataset(name, images[:, None], labels, CLASSES[name])


def read_idx(path: str | Path) -> np.ndarray:
    """The array of bytes in an IDX file, plain or gzipped (told apart by content, not by name).

    The format, all numbers big-endian: two zero bytes, one byte for the type of the elements (8: unsigned bytes,
    the only one here), one for the number of axes, four for the length of each axis, then the elements, last axis
    fastest. Raises ValueError, which names the file, where it is anything else or has too few or too many bytes.

    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "labels")
    ...     with open(path, "wb") as file:
    ...         _ = file.write(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes: it must start with 0 0 8, it starts with {list(data[:3])}")
    header = 4 + 4 * data[3]
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, header, 4))
    if len(data) != header + math.prod(shape):
        raise ValueError(
            f"{path} should have {header + math.prod(shape)} bytes for an array of shape {shape}, "
            f"it has {len(data)}; it is cut off or damaged"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
