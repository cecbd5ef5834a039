"""Many small trainings, some at a time: for examples that compare variants over seeds.

Each job runs in a process of its own and keeps to one core, as small networks do best. That process writes the job's
figures to a file when it is done. So a sweep can be interrupted, and goes on with the jobs that are missing when it is
started again.
"""

import json
import math
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from hashlib import blake2b
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from minivit.backend import reuse_freed_memory
from minivit.training import Interrupted, available_cores
from minivit.training.files import replacing

GOES_ON = "stopped; the same command goes on with the runs that are missing"  # said after Ctrl-C
Job = dict  # of plain values: what a run depends on
Figures = dict  # of numbers: what came out


def sweep(run: Callable[[Job], Figures], jobs: list[Job], folder: Path, title: str) -> list[tuple[Job, Figures]]:
    """``run(job)`` for every job, as many at a time as there are cores; in the order of the jobs, with their figures.

    ``run`` is a function of a module (not a lambda), since other processes import it. What is found in ``folder`` from
    an earlier start is not run again. Raises RuntimeError, which names the job, for one that failed; after that, and
    after Ctrl-C or ``kill``, the jobs that are running are stopped, and those that were done are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{_name(job)}.json" for job in jobs]
    missing = [(job, path) for job, path in zip(jobs, paths) if not path.exists()]
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc=title, unit="run", disable=None)
    cores = max(1, min(available_cores(), len(missing)))
    others = set(active_children())
    with _kill_is_ctrl_c(), bar, ProcessPoolExecutor(cores, get_context("spawn"), _settle) as pool:
        pending = {pool.submit(_do, run, job, path): job for job, path in missing}
        try:
            for future in as_completed(pending):
                try:
                    future.result()
                except BrokenProcessPool as error:  # killed, perhaps where the memory was full
                    raise RuntimeError(f"a process ended without a word, maybe in {pending[future]}: {error}") from None
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.kill()  # a training listens to politer signals; files are whole, or not there
            raise
    return [(job, json.loads(path.read_text(encoding="utf-8"))["figures"]) for job, path in zip(jobs, paths)]


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation (of the sample: n − 1) of one variant's seeds.

    >>> spread([1.0, 2.0, 3.0])
    (2.0, 1.0)
    """
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def by_variant(results: list[tuple[Job, Figures]], key: str) -> dict[str, dict[str, np.ndarray]]:
    """The figures of each value of ``job[key]``, over all its other jobs: {variant: {figure: array}}.

    >>> by_variant([({"kind": "a", "seed": 0}, {"x": 1}), ({"kind": "a", "seed": 1}, {"x": 3})], "kind")
    {'a': {'x': array([1, 3])}}
    """
    found: dict[str, dict[str, list]] = {}
    for job, figures in results:
        for name, value in figures.items():
            found.setdefault(job[key], {}).setdefault(name, []).append(value)
    return {variant: {name: np.array(values) for name, values in f.items()} for variant, f in found.items()}


def _name(job: Job) -> str:
    return blake2b(json.dumps(job, sort_keys=True).encode(), digest_size=12).hexdigest()


@contextmanager
def _kill_is_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt: a process that it ended at once would leave the others running."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _settle() -> None:
    """In each process, before its first job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one decides
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # also where a training listens to it
    threadpool_limits(1)
    reuse_freed_memory()


def _do(run: Callable[[Job], Figures], job: Job, path: Path) -> None:
    """One job, in its process. An exception goes back as a sentence, as not all of them can be sent."""
    try:
        figures = run(job)
    except Interrupted:
        raise
    except Exception as error:
        raise RuntimeError(f"the run {job} failed: {type(error).__name__}: {error}") from None
    with replacing(path) as file:
        file.write(json.dumps({"job": job, "figures": figures}).encode())
