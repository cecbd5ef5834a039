"""How the benchmarks measure: in turns, with quartiles, and memory in a process of its own."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import trange

from minivit.backend import LOOPS
from minivit.training import available_cores

Task = tuple[AbstractContextManager, Callable[[], object]]  # around a turn, outside of its time; and the turn itself


def seconds_of(run: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def take_turns(
    tasks: Mapping[str, Task], rounds: int, title: str, clock: Callable[[Callable[[], object]], float] = seconds_of
) -> dict[str, np.ndarray]:
    """Seconds of each task, one entry a round; in a round each has its turn, so what else the machine does meets all.

    Before the rounds each runs once, unmeasured: compilation, first touch of memory. A task's context is entered for
    its own turn only, so the threads and limits that it sets do not reach the others.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in trange(1 + rounds, desc=title, leave=False, disable=None):
        for name, (inside, run) in tasks.items():
            with inside:
                taken = clock(run)
            if number:
                seconds[name].append(taken)
    return {name: np.array(taken) for name, taken in seconds.items()}


class Warm(AbstractContextManager):
    """Around a turn: ``inside``, and in it a first run that is not timed.

    So the timed one finds its threads, memory and caches as a step of a training finds those of the step before, and
    not as another task left them.
    """

    def __init__(self, inside: AbstractContextManager, run: Callable[[], object]):
        self.inside, self.run = inside, run

    def __enter__(self) -> None:
        self.inside.__enter__()
        try:
            self.run()
        except BaseException:
            self.inside.__exit__(*sys.exc_info())
            raise

    def __exit__(self, *exception: object) -> None:
        self.inside.__exit__(*exception)


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """First quartile, median, third quartile.

    >>> quartiles(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    (2.0, 3.0, 4.0)
    """
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return low, median, high


def memory(field: str) -> int | None:
    """Bytes of this process now (``VmRSS``) or at the highest (``VmHWM``); None where the system is not Linux.

    ``getrusage`` would start from the peak of the parent process.
    """
    if not sys.platform.startswith("linux"):
        return None
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def engine() -> str:
    """What minivit computes with here: "formulas" of NumPy, or "loops" and the BLAS library that these call."""
    if not LOOPS:
        return "formulas"
    blas = importlib.import_module("minivit.loops.blas").library()
    return f"loops, {Path(blas).name}" if blas else "loops"


def use_cores(count: int | None) -> int:
    """Keep this process, and those that it starts, to ``count`` cores (None: to those it has); how many it has then."""
    if count is not None:
        if count > available_cores():
            sys.exit(f"--threads {count} is more than the {available_cores()} cores of this process")
        if hasattr(os, "sched_setaffinity"):
            chosen = sorted(os.sched_getaffinity(0))[:count]
            for thread in os.listdir("/proc/self/task"):  # those of the BLAS library are there already
                os.sched_setaffinity(int(thread), chosen)
        elif count < available_cores():
            sys.exit("--threads needs a system that can keep a process to some of the cores: Linux")
        threadpool_limits(count, "blas")
    return available_cores()


def run_child(command: list[str]) -> dict:
    """Run a program and read the last line that it prints, a JSON object. Exits with its complaint where it fails."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def mpiexec() -> str | None:
    """The mpiexec that lies beside python, or None."""
    path = Path(sys.executable).with_name("mpiexec")
    return str(path) if path.exists() else None


def draw(name: str, rows: list[dict], path: Path) -> None:
    """Draw the rows with the function of that name in ``pictures``, where matplotlib is there."""
    try:
        import pictures
    except ImportError:
        print("no picture was drawn: it needs matplotlib, pip install 'minivit[examples]'")
    else:
        getattr(pictures, name)(rows, path)
        print(f"picture: {path}")


NO_MPI = "no ranks are measured: there is no mpiexec beside python; pip install 'minivit[mpi]'"


def positive(text: str) -> int:
    """A whole number of at least 1, for the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
