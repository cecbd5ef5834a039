import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minivit.data import idx


def idx_bytes(array):
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


def write_set(folder, train=30, test=10, pack=gzip.compress, ending=".gz"):
    """A small data set with the file names of MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, n in (("train", train), ("t10k", test)):
        arrays[prefix] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)
        for kind, array in zip(("images-idx3", "labels-idx1"), arrays[prefix]):
            (folder / f"{prefix}-{kind}-ubyte{ending}").write_bytes(pack(idx_bytes(array)))
    return arrays


@given(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5), st.integers(0, 2**32), st.booleans())
def test_what_was_written_is_read(tmp_path_factory, shape, seed, packed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.getbasetemp() / "array"
    path.write_bytes(gzip.compress(idx_bytes(array), mtime=0) if packed else idx_bytes(array))
    read = idx.read_idx(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("form", [{}, {"pack": bytes, "ending": ""}, {"pack": bytes}])
@pytest.mark.parametrize("directly", [False, True])
def test_files_are_found_packed_or_plain_in_the_folder_or_below(tmp_path, name, form, directly):
    arrays = write_set(tmp_path / name, **form)
    train, test = idx.mnist(tmp_path / name if directly else tmp_path, name)
    for data, (images, labels) in ((train, arrays["train"]), (test, arrays["t10k"])):
        np.testing.assert_array_equal(data.images, images[:, None])
        np.testing.assert_array_equal(data.labels, labels)
        assert data.name == name and len(data.classes) == 10
    assert (train.mean, train.std) == (test.mean, test.std)


def test_a_folder_by_another_name_is_not_taken_for_the_data_set(tmp_path, monkeypatch):
    """MNIST and Fashion-MNIST have the same file names, so one must never be read as the other."""
    write_set(tmp_path / "mnist")
    monkeypatch.setattr("minivit.data.download.urlopen", refuse)
    with pytest.raises(ConnectionError, match="fashion_mnist"):
        idx.mnist(tmp_path / "mnist", "fashion_mnist")


def refuse(*args, **options):
    raise OSError("no network here")


IMAGE = idx_bytes(np.zeros((2, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no IDX file"),
        (b"<html>not found</html>", "must start with 0 0 8"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 0]), r"starts with \[0, 0, 13\]"),
        (IMAGE[:-1], r"should have 1584 bytes for an array of shape \(2, 28, 28\), it has 1583"),
        (IMAGE + b"\0", "it has 1585"),
        (IMAGE[:9], "cut off"),
        (gzip.compress(IMAGE, mtime=0)[:-9], "damaged gzip file"),
        (gzip.compress(IMAGE, mtime=0)[:20] + b"\xff" * 20, "damaged gzip file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, data, sentence):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=sentence) as caught:
        idx.read_idx(path)
    assert str(path) in str(caught.value)


@given(st.binary(max_size=40), st.integers(0, 40))
def test_random_bytes_never_fail_in_another_way(tmp_path_factory, data, cut):
    path = tmp_path_factory.getbasetemp() / "bytes"
    for content in (data, IMAGE[:cut] + data, gzip.compress(IMAGE, mtime=0)[:cut] + data):
        path.write_bytes(content)
        try:
            idx.read_idx(path)
        except ValueError:
            pass


def test_images_and_labels_must_be_equally_many(tmp_path):
    write_set(tmp_path / "mnist")
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(idx_bytes(np.zeros(29, np.uint8)))
    with pytest.raises(ValueError, match=r"holds 30 images, but .*train-labels-idx1-ubyte.gz holds 29 labels"):
        idx.mnist(tmp_path)


def test_labels_and_images_must_not_be_exchanged(tmp_path):
    write_set(tmp_path / "mnist")
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(idx_bytes(np.zeros(30, np.uint8)))
    with pytest.raises(ValueError, match=r"must hold an array of 3 axes, it holds one of shape \(30,\)"):
        idx.mnist(tmp_path)


def test_labels_out_of_range_are_refused(tmp_path):
    write_set(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(idx_bytes(np.full(10, 11, np.uint8)))
    with pytest.raises(ValueError, match="got 11 … 11"):
        idx.mnist(tmp_path)
