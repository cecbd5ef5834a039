"""The examples, run as programs in a folder of their own, and what they must leave there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.training.test_ranks import MPIEXEC

ROOT = Path(__file__).parents[2]


def start(script, *arguments, cwd, ranks=None):
    """``python examples/<script> <arguments>`` in the folder ``cwd``, as on a machine without a display.

    With ``ranks`` it is ``mpiexec`` that starts so many of them.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "DISPLAY")}
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")  # on a busy machine, two threads wait for one another
    launcher = [MPIEXEC, "-n", str(ranks)] if ranks else []
    return subprocess.Popen(
        [*launcher, sys.executable, ROOT / "examples" / script, *map(str, arguments)],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script, *arguments, cwd):
    """Exit code, standard output and standard error, once it has ended."""
    with start(script, *arguments, cwd=cwd) as process:
        out, err = process.communicate()
    return process.returncode, out, err


def succeeds(script, *arguments, cwd):
    """The figures in the last line, of a run that had nothing to complain about."""
    code, out, err = run(script, *arguments, cwd=cwd)
    assert (code, err) == (0, "")
    return json.loads(out.splitlines()[-1])


def fails(script, *arguments, cwd):
    """The one line in which a program says why it does nothing."""
    code, _, err = run(script, *arguments, cwd=cwd)
    assert code == 1
    (line,) = err.splitlines()
    return line


def check_picture(path):
    """A whole PNG file that is neither tiny nor huge, and more than an empty sheet."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGBA"))
    assert 100 < pixels.shape[0] < 4000 and 300 < pixels.shape[1] < 4000
    assert len(np.unique(pixels.view(np.uint32))) > 50
    assert (pixels[0, 0] == 255).all()
