import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.data import cifar


def random_part(seed, n, classes):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), rng.integers(0, classes, n)


def binary_form(images, labels, classes):
    lines = [labels.astype(np.uint8)[:, None], images.reshape(len(images), -1)]
    if classes == 100:  # the superclass comes first
        lines.insert(0, labels.astype(np.uint8)[:, None] // 5)
    return np.concatenate(lines, axis=1).tobytes()


def python_form(images, labels, classes):
    """What Python 2 wrote for ``{"data": array, "labels": [...]}``, opcode by opcode (pickle protocol 2)."""

    def string(text):
        return b"U" + bytes([len(text)]) + text

    def number(value):
        return b"J" + int(value).to_bytes(4, "little", signed=True)

    pixels = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + string(b"b") + b"\x87R"
        b"(" + number(1) + number(len(images)) + number(3072) + b"\x86"
        b"cnumpy\ndtype\n" + string(b"u1") + number(0) + number(1) + b"\x87R"
        b"(" + number(3) + string(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
        b"\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    )
    name = b"labels" if classes == 10 else b"fine_labels"
    listed = string(name) + b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + string(b"batch_label") + string(b"1 of 5") + listed + string(b"data") + array + b"u."


FORMS = {
    (10, "binary"): ("cifar-10-batches-bin", [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]),
    (10, "python"): ("cifar-10-batches-py", [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]),
    (100, "binary"): ("cifar-100-binary", ["train.bin", "test.bin"]),
    (100, "python"): ("cifar-100-python", ["train", "test"]),
}


def write_set(place, classes, form, archive, leave_out=()):
    """A small data set in one of the published forms; returns its parts, the test part last."""
    folder, names = FORMS[classes, form]
    encode = binary_form if form == "binary" else python_form
    parts = [random_part(seed, 3, classes) for seed in range(len(names))]
    files = {name: encode(*part, classes) for name, part in zip(names, parts) if name not in leave_out}
    files["readme.html"] = b"not data"
    place.mkdir(parents=True, exist_ok=True)
    if archive:
        with tarfile.open(place / f"cifar-{classes}-{form}.tar.gz", "w:gz") as tar:
            for name, data in files.items():
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    else:
        (place / folder).mkdir()
        for name, data in files.items():
            (place / folder / name).write_bytes(data)
    return parts


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize(("classes", "form"), FORMS)
def test_both_forms_are_read_from_archive_or_folder(tmp_path, classes, form, archive, below):
    place = tmp_path / f"cifar{classes}" if below else tmp_path
    *train_parts, test_part = write_set(place, classes, form, archive)
    train, test = cifar.cifar(tmp_path, classes)
    np.testing.assert_array_equal(train.images, np.concatenate([images for images, _ in train_parts]))
    np.testing.assert_array_equal(train.labels, np.concatenate([labels for _, labels in train_parts]))
    np.testing.assert_array_equal(test.images, test_part[0])
    np.testing.assert_array_equal(test.labels, test_part[1])
    assert len(train.classes) == classes and train.mean == test.mean


def test_class_names_are_complete_and_in_the_published_alphabetical_order():
    for classes, names in cifar.CLASSES.items():
        assert len(set(names)) == classes and names == sorted(names)


def test_the_python_form_of_these_tests_is_a_pickle_of_a_numpy_array():
    images, labels = random_part(0, 2, 10)
    content = pickle.loads(python_form(images, labels, 10), encoding="bytes")
    np.testing.assert_array_equal(content[b"data"], images.reshape(2, -1))
    assert content[b"labels"] == labels.tolist()


class Harmful:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("inside", [lambda harmful: harmful, lambda harmful: {"labels": [0], "data": harmful}])
@pytest.mark.parametrize("function", [os.mkdir, eval, pickle.loads, np.load])
def test_a_malicious_file_is_refused_and_nothing_in_it_runs(tmp_path, protocol, inside, function):
    target = tmp_path / "made by the file"
    argument = str(target) if function is os.mkdir else f"__import__('os').mkdir({str(target)!r})"
    data = pickle.dumps(inside(Harmful(function, argument)), protocol)
    with pytest.raises(ValueError, match=f"data_batch_1 .* asks for .*{function.__name__}, .* do not trust it"):
        cifar.read_python(data, 10, "data_batch_1")
    assert not target.exists()


@pytest.mark.parametrize(
    "trick",
    [
        b"cnumpy.core.multiarray\n_reconstruct\ncos\nmkdir\n\x85R.",  # a forbidden argument of an allowed name
        b"\x8c\x05numpy\x8c\x0ctestutils.os\x93.",  # a path below an allowed module
        b"cnumpy\nload\n.",
        b"cnumpy\nndarray\n}U\x0c__setstate__U\x01xsb.",  # the state of a stand-in class
        b"P1\n.",  # a persistent id
        b"\x82\x01.",  # an extension code
        b"cnumpy\nndarray\n(K\x05K\x05tR.",  # an array that is not in a dictionary
    ],
)
def test_tricks_with_opcodes_are_refused(trick):
    with pytest.raises(ValueError, match="is no CIFAR-10 file in python form"):
        cifar.read_python(b"\x80\x02" + trick, 10)


@given(st.data())
def test_damaged_python_files_never_fail_in_another_way(data):
    content = bytearray(python_form(*random_part(0, 1, 10), 10))
    header = len(content) - 3072  # most of the opcodes lie before the pixels
    for place in data.draw(st.lists(st.integers(0, header - 1), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    try:
        images, labels = cifar.read_python(bytes(content[: data.draw(st.integers(0, len(content)))]), 10)
    except ValueError:
        return
    assert images.shape == (len(labels), 3, 32, 32)


@pytest.mark.parametrize(("old", "new"), [(b"u1", b"f4"), (b"u1", b"O8"), (b"\x89T", b"\x88T")])
def test_arrays_of_another_type_or_order_are_refused(old, new):
    content = python_form(*random_part(0, 2, 10), 10)
    assert old in content
    with pytest.raises(ValueError, match="its array must be bytes"):
        cifar.read_python(content.replace(old, new), 10)


@pytest.mark.parametrize("form", [binary_form, python_form])
def test_labels_out_of_range_are_refused(form):
    read = cifar.read_binary if form is binary_form else cifar.read_python
    images, _ = random_part(0, 2, 10)
    with pytest.raises(ValueError, match="labels of train must be integers in 0 … 9"):
        read(form(images, np.array([3, 10]), 10), 10, "train")


@pytest.mark.parametrize("size", [0, 3072, 3074, 2 * 3073 - 1])
def test_a_binary_file_must_hold_whole_records(size):
    with pytest.raises(ValueError, match=f"test_batch.bin must hold whole records of 3073 bytes, it has {size}"):
        cifar.read_binary(bytes(size), 10, "test_batch.bin")


@pytest.mark.parametrize("archive", [True, False])
def test_a_missing_file_is_named(tmp_path, archive):
    write_set(tmp_path, 10, "binary", archive, leave_out=["data_batch_3.bin"])
    with pytest.raises(ValueError, match=r"lacks data_batch_3\.bin"):
        cifar.cifar(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_off_archive_is_named(tmp_path, share):
    write_set(tmp_path, 10, "binary", archive=True)
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz (is a damaged archive|lacks)"):
        cifar.cifar(tmp_path)


def test_another_number_of_classes_gets_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="classes must be 10 or 100, got 20"):
        cifar.cifar(tmp_path, 20)
