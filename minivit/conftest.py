"""The names that the examples in docstrings use without importing them: ``np`` and what ``minivit`` exports."""

import importlib.util

import numpy as np
import pytest

import minivit

if importlib.util.find_spec("numba") is None:
    collect_ignore_glob = ["loops/[a-z]*.py"]


@pytest.fixture(autouse=True)
def names(doctest_namespace):
    doctest_namespace["np"] = np
    doctest_namespace.update({name: getattr(minivit, name) for name in minivit.__all__})
