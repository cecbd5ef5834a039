"""The log of a run: a text file with one JSON object a line, for curves and for programs."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minivit.training.files import replacing


def append_log(path: str | Path, record: Mapping[str, Any]) -> None:
    """Add one line to the log, and have it on the disk; NaN and infinities, which JSON lacks, become null.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> append_log(path, {"step": 10, "loss": 2.25})
    >>> append_log(path, {"step": 20, "loss": 1.75})
    >>> [record["loss"] for record in read_log(path)]
    [2.25, 1.75]
    """
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(finite) + "\n")
        file.flush()
        os.fsync(file.fileno())  # a checkpoint counts the lines: after a power cut they must be there


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a log, in order. A last line without its end, left by a crash, is passed over.

    Raises ValueError with the number of a line that is not a JSON object.
    """
    records = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"line {number} of {path} is not a JSON object: {line.strip()[:80]!r}")
        records.append(record)
    return records


def cut_log(path: str | Path, lines: int) -> None:
    """Keep the first ``lines`` lines of a log, if it exists: what a resumed run is about to write anew is dropped."""
    path = Path(path)
    if path.exists():
        kept = _lines(path)[:lines]
        with replacing(path) as file:
            file.write("".join(kept).encode())


def _lines(path: str | Path) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]
