"""What CuPy offers, read from the installed wheel into ``cupy_names.json``, for the strict twin of ``cupy_twin.py``.

    pip install cupy-cuda12x==14.2.0 numpy==2.4.6
    python -m tests.cupy_names                        write the list
    python -m tests.cupy_names --check                is the list that of this CuPy, beside this NumPy?

CuPy can be imported, though not be used, on a machine without a GPU. Listed are the names that NumPy has too: a program
for both may use these only. Functions come with their parameters, whose defaults are all written as ``None``: the twin
takes the values from NumPy, and only asks which arguments are allowed. What is compiled shows no signature to
``inspect``: methods of ndarray have it in the first line of their docstrings, and ufuncs are asked with each keyword in
turn, since they refuse the wrong ones before they look for a GPU.
"""

import argparse
import inspect
import json
import os
import re
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).with_name("cupy_names.json")
KEYWORDS = ("axis", "casting", "dtype", "keepdims", "order", "out", "signature", "subok", "where")  # of NumPy's ufuncs
WINDOWS = "lib.stride_tricks.sliding_window_view"  # the only one further down that is used
COMPARISONS = ("__eq__", "__ge__", "__gt__", "__le__", "__lt__", "__ne__")  # which every Python object has


def read(cupy: Any) -> dict[str, Any]:
    """The list, for a module like ``cupy``."""
    shared = [name for name in dir(cupy) if hasattr(np, name) and not name.startswith("_")]
    same = [name for name in shared if getattr(cupy, name) is getattr(np, name)]
    ufuncs = [name for name in shared if isinstance(getattr(cupy, name), cupy.ufunc)]
    functions = {name: _parameters(getattr(cupy, name)) for name in shared if name not in {*same, *ufuncs}}
    functions[WINDOWS] = _parameters(attrgetter(WINDOWS)(cupy))
    members = {
        name: getattr(cupy.ndarray, name)
        for name in dir(cupy.ndarray)
        if (hasattr(np.ndarray, name) or name in ("get", "set")) and name not in dir(object)
    }
    operators = [name for name in members if name.startswith("__")] + list(COMPARISONS)
    methods = {name: _parameters(member) for name, member in members.items() if name not in operators}
    return {
        "version": cupy.__version__,
        "same objects": same,
        "functions": {name: text for name, text in functions.items() if text is not None},
        "ufuncs": ufuncs,
        "ufunc keywords": [keyword for keyword in KEYWORDS if _takes(cupy.exp, keyword)],
        "ndarray methods": {name: text for name, text in methods.items() if text is not None},
        "ndarray operators": operators,
        "ndarray attributes": [name for name, text in methods.items() if text is None],
    }


def _parameters(function: Any) -> str | None:
    """``"a, axis=None, *, dtype=None"``, or None for what is no function."""
    if isinstance(function, type) or not callable(function):
        return None
    try:
        return _written(inspect.signature(function))
    except (TypeError, ValueError):
        pass
    line = re.match(r"[\w.]+\((.*)\)", (function.__doc__ or "").partition("\n")[0])
    if line is None:
        return None
    words = [re.sub(r".*\s(?=[*\w=.'-]+$)", "", word.strip()) for word in line[1].split(",")]  # Cython's types go
    words = [re.sub(r"=.*", "=None", word) for word in words if word != "self"]
    return ", ".join(words)


def _written(signature: inspect.Signature) -> str:
    plain = [
        p.replace(annotation=p.empty, default=p.default if p.default is p.empty else None)
        for p in signature.parameters.values()
        if p.name != "self"
    ]
    return str(inspect.Signature(plain))[1:-1]


def _takes(ufunc: Any, keyword: str) -> bool:
    try:
        ufunc(**{keyword: None})
    except TypeError as error:
        return "Wrong arguments" not in str(error)
    raise AssertionError("a ufunc without arguments ran")


def written(names: dict[str, Any]) -> str:
    """The list as the text of the file: one line a function or method, long lines of names that have none."""

    def entry(value: Any) -> str:
        if not isinstance(value, dict):
            return json.dumps(value)
        return "{\n" + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n  }"

    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {entry(value)}" for key, value in names.items()) + "\n}\n"


def main() -> int:
    import cupy

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the list that is there, and write nothing")
    text = written(read(cupy))
    if parser.parse_args().check:
        same = PATH.read_text() == text
        print(f"{PATH.name} {'is' if same else 'is not'} that of CuPy {cupy.__version__} beside NumPy {np.__version__}")
        return 0 if same else 1
    temporary = PATH.with_suffix(".part")
    temporary.write_text(text)
    os.replace(temporary, PATH)
    print(f"{PATH.name}: {len(text):,} bytes, CuPy {cupy.__version__} beside NumPy {np.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
