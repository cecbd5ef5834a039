"""Writing a file so that it is there whole, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write bytes to, which takes the place of ``path`` once everything is written, and never before.

    The bytes go to a temporary name in the same folder and to the disk; then the name is changed, in one step of the
    file system, and that too is made sure of. Whatever goes wrong earlier, ``path`` is what it was.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with replacing(path) as file:
    ...     _ = file.write(b"whole")
    >>> path.read_text()
    'whole'
    """
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # it is gone already, unless something went wrong
            temporary.unlink()
    with suppress(OSError):  # some systems do not open folders, and some file systems do not sync them
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove(path: Path) -> None:
    """Delete a file, and the half of one that a killed process left under the temporary name; either may be missing.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> _ = path.write_text("old")
    >>> remove(path)
    >>> path.exists()
    False
    """
    path.unlink(missing_ok=True)
    _temporary(path).unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
