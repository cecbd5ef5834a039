import hashlib

import numpy as np
import pytest

from minivit import data
from minivit.data import cifar, idx, load
from tests.data.test_cifar import write_set as write_cifar
from tests.data.test_folder import write_tree
from tests.data.test_idx import write_set as write_idx


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    monkeypatch.setattr(data, "SHAPES_TRAIN", 30)
    monkeypatch.setattr(data, "SHAPES_TEST", 20)


@pytest.mark.parametrize(("size", "side"), [(None, 32), (28, 28)])
def test_shapes_in_any_size_by_seed(size, side):
    train, test = load("shapes", size=size)
    assert train.images.shape == (30, 3, side, side) and test.images.shape == (20, 3, side, side)
    assert test.mean == train.mean
    assert (load("shapes", size=size, seed=1)[0].images != train.images).any()
    assert not (test.images == train.images[:20]).all((1, 2, 3)).any()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_and_fashion_mnist(tmp_path, name):
    write_idx(tmp_path / name)
    train, test = load(name, tmp_path)
    assert (train.name, train.images.shape, test.images.shape) == (name, (30, 1, 28, 28), (10, 1, 28, 28))


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tmp_path, classes):
    write_cifar(tmp_path, classes, "binary", archive=True)
    train, test = load(f"cifar{classes}", tmp_path, size=32)
    assert train.name == test.name == f"cifar{classes}"
    assert len(train.classes) == classes


def test_a_folder_of_images(tmp_path):
    write_tree(tmp_path / "train")
    write_tree(tmp_path / "test")
    assert load(f"folder:{tmp_path}")[0].images.shape == (6, 3, 32, 32)
    assert load(f"folder:{tmp_path}", size=12)[1].images.shape == (6, 3, 12, 12)


@pytest.mark.parametrize("name", ["imagenet", "folder", "folder:", "cifar11", ""])
def test_an_unknown_name_gets_the_list(name):
    with pytest.raises(ValueError, match="shapes, mnist, fashion_mnist, cifar10, cifar100 or folder:PATH, got"):
        load(name)


def test_a_size_that_a_set_does_not_have_gets_a_sentence():
    with pytest.raises(ValueError, match="images of mnist have size 28, got size=32"):
        load("mnist", size=32)


def test_a_set_that_is_not_there_is_downloaded_once(server, tmp_path, monkeypatch):
    """From an address that sends damaged files at first: nothing of them stays, and the second run succeeds."""
    write_idx(tmp_path / "origin")
    files = {path.name: path.read_bytes() for path in (tmp_path / "origin").iterdir()}
    server.files = {name: data[:-1] for name, data in files.items()}
    monkeypatch.setitem(idx.MIRRORS, "mnist", f"{server.url}/good/")
    monkeypatch.setitem(idx.MD5, "mnist", {name: hashlib.md5(data).hexdigest() for name, data in files.items()})
    with pytest.raises(ConnectionError, match="checksum"):
        load("mnist", tmp_path)
    assert not list((tmp_path / "mnist").iterdir())

    server.files = files
    train, _ = load("mnist", tmp_path)
    assert train.images.shape == (30, 1, 28, 28)
    asked = len(server.asked)
    np.testing.assert_array_equal(load("mnist", tmp_path)[0].images, train.images)
    assert len(server.asked) == asked


@pytest.mark.parametrize(
    ("name", "file"), [("mnist", "train-images-idx3-ubyte.gz"), ("cifar10", "cifar-10-binary.tar.gz")]
)
def test_offline_the_sentence_says_which_file_to_put_where(closed_port, tmp_path, monkeypatch, name, file):
    monkeypatch.setitem(idx.MIRRORS, "mnist", f"{closed_port}/")
    monkeypatch.setattr(cifar, "ADDRESS", f"{closed_port}/")
    with pytest.raises(ConnectionError) as caught:
        load(name, tmp_path)
    for part in (f"{closed_port}/{file}", str(tmp_path / name)):
        assert part in str(caught.value)
