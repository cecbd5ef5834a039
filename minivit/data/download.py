"""Files of public data sets: found where they lie already, otherwise downloaded, whole and checked, or not at all."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from tqdm import tqdm


def provide(path: Path, places: Iterable[Path], urls: Sequence[str], checksum: str) -> Path:
    """The first of ``places`` that exists; where none does, ``path`` after downloading it with ``fetch``.

    A file that is there already is used as it is: its reader validates it, and a copy packed by other means is
    as good as the original.
    """
    found = next((place for place in places if place.exists()), None)
    return found or fetch(urls, path, checksum)


def fetch(urls: Sequence[str], path: str | Path, checksum: str, timeout: float = 30.0) -> Path:
    """Download ``path`` from the first of ``urls`` that delivers it, and return it. A file already there stays.

    ``checksum`` is ``"md5:…"`` or ``"sha256:…"`` in hexadecimal; ``timeout`` is the longest silence in seconds.
    The bytes go to a temporary name and take their own only when they are complete and their checksum is right,
    so ``path`` is never half a file. Raises ConnectionError, which tells what to put where by hand, when no
    address delivers, and leaves nothing behind.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     origin = Path(folder, "origin")
    ...     _ = origin.write_bytes(b"images")
    ...     checksum = "md5:" + hashlib.md5(b"images").hexdigest()
    ...     fetch([origin.as_uri()], Path(folder, "data", "copy"), checksum).read_bytes()
    b'images'
    """
    path = Path(path)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    reasons = []
    for url in urls:
        try:
            _stream(url, part, checksum, timeout)
            os.replace(part, path)
            return path
        except (OSError, HTTPException) as error:
            reasons.append(f"  {url}: {error}")
        finally:
            part.unlink(missing_ok=True)
    raise ConnectionError(
        "\n".join([f"{path.name} could not be downloaded.", *reasons])
        + f"\nDownload it by other means and put it into the folder {path.parent.resolve()}, then run again."
    )


def _stream(url: str, part: Path, checksum: str, timeout: float) -> None:
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with urlopen(url, timeout=timeout) as response, open(part, "wb") as file:
        announced = response.headers.get("Content-Length")
        total = int(announced) if announced else None
        name = url.rpartition("/")[2]
        with tqdm(total=total, desc=name, unit="B", unit_scale=True, leave=False, disable=None) as progress:
            while chunk := response.read(1 << 16):
                file.write(chunk)
                digest.update(chunk)
                progress.update(len(chunk))
        received = file.tell()
    if total is not None and received != total:
        raise ConnectionError(f"the transfer was cut off after {received} of {total} bytes")
    if digest.hexdigest() != expected:
        raise ConnectionError(f"the {algorithm} checksum is {digest.hexdigest()}, it should be {expected}")
