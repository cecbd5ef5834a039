"""Programs of papers, as references: a file of a repository at one commit, downloaded, checked and run.

Files are kept in the folder that the environment variable MINIVIT_REFERENCES names, as ``owner/name/path``, by default
in the system's folder for temporary files; a clone of the repository may lie there too. None of them comes into this
repository: their licences are not its own.
"""

import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType

from minivit.data.download import fetch

KEPT = Path(os.environ.get("MINIVIT_REFERENCES") or Path(tempfile.gettempdir(), "minivit-references"))


def source(repository: str, commit: str, path: str, sha256: str) -> str:
    """The text of one file of ``repository`` ("owner/name").

    Raises ConnectionError where it cannot be downloaded, ImportError where the file that is kept has another checksum.
    """
    url = f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"
    content = fetch([url], KEPT / repository / path, f"sha256:{sha256}").read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ImportError(f"{KEPT / repository / path} has the sha256 {found}, that of {commit} is {sha256}")
    return content.decode()


def module(
    repository: str, commit: str, path: str, sha256: str, changes: Mapping[str, str] = MappingProxyType({})
) -> ModuleType:
    """The module that the file is, with ``changes`` to what no longer runs. Raises what ``source`` does."""
    text = source(repository, commit, path, sha256)
    for old, new in changes.items():
        text = text.replace(old, new)
    made = ModuleType(path.removesuffix(".py").replace("/", "."))
    sys.modules[made.__name__] = made  # timm looks there for who registers a model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are old by now
        exec(compile(text, path, "exec"), vars(made))
    return made
