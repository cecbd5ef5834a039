"""Checkpoints: what is saved comes back bit for bit, and what is not a whole checkpoint of ours is refused."""

import io
import json
import os
import signal
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minivit
from minivit.nn import Linear
from minivit.optim import EMA, SGD, AdamW
from minivit.training import CheckpointError, load_checkpoint, restore, save_checkpoint
from minivit.training import checkpoint as module
from minivit.training.files import replacing

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def trained(seed=0, widths=(3, 2), optimizer=AdamW):
    """A layer after two steps, with its optimizer and average."""
    model = Linear(*widths)
    optimizer = optimizer(model.named_parameters(), lr=0.1)
    ema = EMA(optimizer, 0.5)
    for step in range(2):
        optimizer.flat.grad[:] = np.sin(np.arange(optimizer.flat.grad.size) + seed + step)
        optimizer.step()
        ema.update()
    return model, optimizer, ema


def states(*parts):
    return [{name: (a.dtype, a.shape, a.tobytes()) for name, a in part.state_dict().items()} for part in parts]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "last.npz"


@given(seed=st.integers(0, 1000), widths=st.tuples(st.integers(1, 5), st.integers(1, 5)))
@same_folder
def test_everything_comes_back(tmp_path, seed, widths):
    path, parts = tmp_path / "last.npz", trained(seed, widths)
    save_checkpoint(path, *parts, meta={"epoch": seed, "classes": ["cat", "Hündin"], "std": 1 / 3})
    others = trained(seed + 1, widths)
    assert states(*others) != states(*parts)
    checkpoint = load_checkpoint(path)
    restore(checkpoint, *others)
    assert states(*others) == states(*parts)
    assert checkpoint.meta["epoch"] == seed and checkpoint.meta["classes"] == ["cat", "Hündin"]
    assert checkpoint.meta["std"] == 1 / 3 and checkpoint.meta["minivit"] == minivit.__version__


def test_the_file_is_plain_npz_and_the_same_each_time(path):
    parts = trained()
    save_checkpoint(path, *parts)
    first = path.read_bytes()
    save_checkpoint(path, *parts)
    assert path.read_bytes() == first
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["model/weight"], parts[0].weight.data)
        assert json.loads(file["meta"].tobytes())["format"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.npz"]


def test_weights_alone(path):
    model, optimizer, ema = trained()
    save_checkpoint(path, model)
    checkpoint = load_checkpoint(path)
    restore(checkpoint, model)
    assert checkpoint.optimizer == checkpoint.ema == {}
    with pytest.raises(CheckpointError, match=r"last.npz holds no optimizer$"):
        restore(checkpoint, model, optimizer)
    with pytest.raises(CheckpointError, match=r"last.npz holds no ema$"):
        restore(checkpoint, model, ema=ema)


@given(data=st.data())
@same_folder
def test_a_flipped_bit_is_noticed(tmp_path, data):
    """Or it lies where it changes nothing, such as a date in the zip's directory."""
    path = tmp_path / "last.npz"
    parts = trained()
    save_checkpoint(path, *parts, meta={"epoch": 3})
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    others = trained(1)
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        restore(checkpoint, *others)
        assert states(*others) == states(*parts) and checkpoint.meta["epoch"] == 3


@pytest.mark.parametrize(
    "tamper",
    [
        lambda arrays: arrays["model/weight"].__iadd__(1),
        lambda arrays: arrays.update({"model/weight": arrays["model/weight"].T}),
        lambda arrays: arrays.update({"model/weight": arrays["model/weight"].view(np.int32)}),
        lambda arrays: arrays.update({"model/weighs": arrays.pop("model/weight")}),
        lambda arrays: arrays.pop("model/bias"),
    ],
    ids=["values", "shape", "dtype", "name", "missing"],
)
def test_a_change_is_noticed_even_if_the_zip_is_sound(path, tamper):
    model = Linear(3, 1)  # whose weight has the same bytes when transposed
    save_checkpoint(path, model)
    with np.load(path) as file:
        arrays = dict(file)
    tamper(arrays)
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match="do not fit their checksum"):
        load_checkpoint(path)


@given(share=st.floats(0, 1, exclude_max=True))
@same_folder
def test_a_cut_off_file_is_noticed(tmp_path, share):
    path = tmp_path / "last.npz"
    save_checkpoint(path, *trained())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"last.npz is (cut off|not a checkpoint)"):
        load_checkpoint(path)


def zip_of(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npz_of(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"PNG and so on", "not a checkpoint of minivit: it is no .npz file"),
        (zip_of(data=b"pickle"), "not a checkpoint of minivit: it has no description"),
        (npz_of(weight=np.zeros(3)), "not a checkpoint of minivit: it has no description"),
        (npz_of(meta=np.array([{"run": "code"}], dtype=object), sha256=np.zeros(32)), "allow_pickle=False"),
        (b"", "cut off or damaged"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, message):
    path = tmp_path / "foreign.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_missing_file_gets_a_sentence(path):
    with pytest.raises(CheckpointError, match=r"last.npz cannot be read: No such file"):
        load_checkpoint(path)


def test_a_newer_format_gets_a_sentence(path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 2)
    save_checkpoint(path, Linear(1, 1))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"format 2, this is .*, which reads up to 1: update minivit"):
        load_checkpoint(path)


def test_another_model_or_optimizer_gets_a_sentence(path):
    save_checkpoint(path, *trained())
    checkpoint = load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"does not fit this model: .*weight is \(2, 3\), expected \(5, 4\)"):
        restore(checkpoint, Linear(4, 5))
    model, sgd, _ = trained(optimizer=SGD)
    with pytest.raises(CheckpointError, match=r"does not fit this optimizer: this is not the state of SGD"):
        restore(checkpoint, model, sgd)


def test_meta_must_be_json(path):
    for meta in ({"x": np.zeros(1)}, {"x": float("nan")}):
        with pytest.raises((TypeError, ValueError), match="JSON"):
            save_checkpoint(path, Linear(1, 1), meta=meta)
    assert not path.exists()


def test_a_full_disk_leaves_the_previous_checkpoint(path):
    resource = pytest.importorskip("resource")
    model = Linear(300, 300)
    save_checkpoint(path, model, meta={"epoch": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # a file cannot grow further: a real failure
        with pytest.raises(CheckpointError, match=r"cannot be written: File too large; the previous .* unchanged"):
            save_checkpoint(path, model, meta={"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_checkpoint(path).meta["epoch"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.npz"]


def test_a_folder_that_cannot_be_gets_a_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"last.npz cannot be written: (File exists|Not a directory)$"):
        save_checkpoint(tmp_path / "file" / "last.npz", Linear(1, 1))


def test_a_folder_of_that_name_gets_a_sentence(path):
    """Which does not speak of a previous checkpoint."""
    path.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"last.npz cannot be written: [^;]*$"):
        save_checkpoint(path, Linear(1, 1))
    with pytest.raises(CheckpointError, match=r"last.npz cannot be read: "):
        load_checkpoint(path)
    assert [p.name for p in path.parent.iterdir()] == ["last.npz"]


def test_the_bytes_are_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    """And the folder, which holds the name, after it: in this order a power cut leaves the old file or the new."""
    calls = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, function=function: (calls.append(name), function(*args)))
    with replacing(tmp_path / "note") as file:
        file.write(b"new")
    assert calls == ["fsync", "replace", "fsync"]


def test_replacing_leaves_the_old_file_when_stopped(tmp_path):
    path = tmp_path / "note"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["note"]
