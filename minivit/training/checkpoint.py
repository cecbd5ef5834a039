"""Checkpoints: one ``.npz`` file with weights, optimizer state, average and a description, and a checksum over all.

The file is what ``numpy.load`` reads, an uncompressed zip of arrays, with sections and two entries of its own:

    model/blocks.0.attn.qkv.weight      the model's parameters, under their names
    optimizer/exp_avg/blocks.0. …       what the next step depends on
    ema/average/blocks.0. …             the moving average, where one is kept
    objective/projections.0. …          what the objective trains beside the model, where there is such a thing
    meta                                JSON as bytes: format, version, and what the caller wants to find again
    sha256                              of the names, dtypes, shapes and bytes of all of the above

Nothing is pickled, so loading a file from elsewhere runs no code from it.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minivit
from minivit.models import create_model
from minivit.nn import Module
from minivit.optim import EMA, Optimizer
from minivit.training.files import replacing

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or used; the message is a sentence for the user."""


@dataclass(frozen=True)
class Checkpoint:
    """What was in the file: the sections, each a dict of arrays (empty where none was saved), and the description."""

    path: Path
    meta: dict[str, Any]
    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    ema: dict[str, np.ndarray]
    objective: dict[str, np.ndarray]


def save_checkpoint(
    path: str | Path,
    model: Module,
    optimizer: Optimizer | None = None,
    ema: EMA | None = None,
    meta: Mapping[str, Any] | None = None,
    objective: Module | None = None,
) -> None:
    """Write a checkpoint; the previous one of that name is replaced in the last moment, when all is on the disk.

    ``meta``: a dict that JSON can hold, found again as ``load_checkpoint(path).meta``. ``objective``: the ``module`` of
    an ``Objective``.

    Raises CheckpointError where the file cannot be written, TypeError or ValueError for a ``meta`` that JSON refuses.

    >>> import tempfile
    >>> from minivit.nn import Linear
    >>> path = Path(tempfile.mkdtemp()) / "last.npz"
    >>> save_checkpoint(path, Linear(3, 2), meta={"epoch": 7})
    >>> checkpoint = load_checkpoint(path)
    >>> checkpoint.meta["epoch"], checkpoint.model["weight"].shape
    (7, (2, 3))
    """
    path = Path(path)
    text = json.dumps({**(meta or {}), "format": FORMAT, "minivit": minivit.__version__}, allow_nan=False)
    arrays = {"meta": np.frombuffer(text.encode(), np.uint8)}
    for section, part in [("model", model), ("optimizer", optimizer), ("ema", ema), ("objective", objective)]:
        if part is not None:
            arrays |= {f"{section}/{name}": array for name, array in part.state_dict().items()}
    arrays["sha256"] = np.frombuffer(_digest(arrays), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
    except OSError as error:
        kept = "; the previous checkpoint is unchanged" if path.is_file() else ""
        raise CheckpointError(f"the checkpoint {path} cannot be written: {error.strerror or error}{kept}") from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises CheckpointError for a file that is missing, cut off, altered, not from minivit or from a newer minivit.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    if start and start != b"PK\x03\x04":
        raise CheckpointError(f"{path} is not a checkpoint of minivit: it is no .npz file")
    try:
        arrays = _read(path)
    except Exception as error:  # there is no end to what zipfile and NumPy raise for bytes that changed
        raise CheckpointError(
            f"{path} is cut off or damaged ({error}): put back a copy of it, or begin anew"
        ) from error
    if not {"meta", "sha256"} <= arrays.keys():
        raise CheckpointError(f"{path} is not a checkpoint of minivit: it has no description and no checksum")
    if arrays.pop("sha256").tobytes() != _digest(arrays):
        raise CheckpointError(
            f"{path} is damaged (its contents do not fit their checksum): put back a copy of it, or begin anew"
        )
    meta = json.loads(arrays.pop("meta").tobytes())
    if meta["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was written by minivit {meta['minivit']} in format {meta['format']}, "
            f"this is {minivit.__version__}, which reads up to {FORMAT}: update minivit"
        )
    sections: dict[str, dict[str, np.ndarray]] = {"model": {}, "optimizer": {}, "ema": {}, "objective": {}}
    for name, array in arrays.items():
        section, _, rest = name.partition("/")
        sections[section][rest] = array
    return Checkpoint(path, meta, **sections)


def restore(
    checkpoint: Checkpoint,
    model: Module,
    optimizer: Optimizer | None = None,
    ema: EMA | None = None,
    objective: Module | None = None,
) -> None:
    """Copy a checkpoint into a model, and into the optimizer, average and objective's module that are given, in place.

    Raises CheckpointError where it is of another model or optimizer, or lacks what is asked for.
    """
    for section, part in [("model", model), ("optimizer", optimizer), ("ema", ema), ("objective", objective)]:
        if part is None:
            continue
        arrays = getattr(checkpoint, section)
        if not arrays:
            raise CheckpointError(f"{checkpoint.path} holds no {section}")
        try:
            part.load_state_dict(arrays)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path} does not fit this {section}: {error}") from error


def load_model(path: str | Path) -> tuple[Module, dict[str, Any]]:
    """The network of a run's checkpoint, built and with its weights, in evaluation mode; and the description.

    The description needs ``model``, a name that ``create_model`` knows, and ``arguments``, as ``fit`` saves them when
    they are in its ``meta``. Raises CheckpointError where they are missing.

    >>> import tempfile
    >>> from minivit.models import create_model
    >>> path, options = Path(tempfile.mkdtemp()) / "best.npz", {"num_classes": 3}
    >>> model = create_model("vit_nano_patch7_28", **options)
    >>> save_checkpoint(path, model, meta={"model": "vit_nano_patch7_28", "arguments": options})
    >>> load_model(path)[0].head.weight.shape
    (3, 64)
    """
    checkpoint = load_checkpoint(path)
    if not {"model", "arguments"} <= checkpoint.meta.keys():
        raise CheckpointError(f"{path} does not say which network it is of: build that, then use restore")
    arguments = {**checkpoint.meta["arguments"], "weight_init": "skip"}
    model = create_model(checkpoint.meta["model"], **arguments).eval()
    restore(checkpoint, model)
    return model, checkpoint.meta


def _read(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as entry:
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(entry, allow_pickle=False)
    return arrays


def _digest(arrays: Mapping[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.digest()
