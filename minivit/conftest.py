"""The names that the examples in docstrings use without importing them: ``np`` and what ``minivit`` exports."""

import numpy as np
import pytest

import minivit


@pytest.fixture(autouse=True)
def names(doctest_namespace):
    doctest_namespace["np"] = np
    doctest_namespace.update({name: getattr(minivit, name) for name in minivit.__all__})
