"""``sweep.py``: which jobs are run, what is kept of them, and what is said of one that fails."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.examples import ROOT

JOBS = [{"kind": kind, "seed": seed} for kind in ("a", "b") for seed in range(2)]


@pytest.fixture
def sweep():
    import sweep

    return sweep


def run(job):
    """Its figures, and a note of every time that it was run, by which process."""
    with open(Path(job["folder"]) / f"{job['kind']}{job['seed']}", "a") as note:
        note.write(f"{os.getpid()}\n")
    return {"x": ord(job["kind"]) + job["seed"], "threads": max(limits()), "seed": job["seed"]}


def limits():
    from threadpoolctl import threadpool_info

    return [1] + [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def fail(job):
    if job["kind"] == "b":
        raise Two("it is", job["kind"])
    return {"x": 1}


def end(job):
    os._exit(1)


class Two(ArithmeticError):
    """Of two arguments, and so not to be sent from a process to another as it is."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def at(folder):
    return [job | {"folder": str(folder)} for job in JOBS]


def notes(folder):
    return {path.name: path.read_text().split() for path in folder.iterdir() if path.is_file()}


def test_every_job_is_run_once_in_another_process_on_one_core(sweep, tmp_path):
    results = sweep.sweep(run, at(tmp_path), tmp_path / "figures", "testing")
    assert [job for job, _ in results] == at(tmp_path)
    assert [figures for _, figures in results] == [
        {"x": x, "threads": 1, "seed": seed} for x, seed in ((97, 0), (98, 1), (98, 0), (99, 1))
    ]
    assert sorted(notes(tmp_path)) == ["a0", "a1", "b0", "b1"]
    assert all(len(pids) == 1 and pids[0] != str(os.getpid()) for pids in notes(tmp_path).values())
    files = sorted((tmp_path / "figures").iterdir())
    assert len(files) == 4 and [json.loads(file.read_text()) for file in files] == sorted(
        ({"job": job, "figures": figures} for job, figures in results), key=lambda one: sweep._name(one["job"])
    )


def test_only_what_is_missing_is_run_again(sweep, tmp_path):
    jobs = at(tmp_path)
    first = sweep.sweep(run, jobs[:3], tmp_path / "figures", "testing")
    (tmp_path / "figures" / f"{sweep._name(jobs[1])}.json").unlink()
    again = sweep.sweep(run, jobs, tmp_path / "figures", "testing")
    assert again[:3] == first
    assert {name: len(pids) for name, pids in notes(tmp_path).items()} == {"a0": 1, "a1": 2, "b0": 1, "b1": 1}
    other = [jobs[0] | {"epochs": 2}]
    sweep.sweep(run, other, tmp_path / "figures", "testing")
    assert len(notes(tmp_path)["a0"]) == 2, "a job of another setting is another job"


def test_nothing_to_do(sweep, tmp_path):
    assert sweep.sweep(run, [], tmp_path / "figures", "testing") == []


def test_a_job_that_fails_is_named_with_its_exception_and_the_others_are_kept(sweep, tmp_path):
    jobs = [{"kind": "a"}, {"kind": "b"}]
    sweep.sweep(fail, jobs[:1], tmp_path, "testing")
    with pytest.raises(RuntimeError, match=r"^the run \{'kind': 'b'\} failed: Two: it is b$"):
        sweep.sweep(fail, jobs, tmp_path, "testing")
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == {"job": {"kind": "a"}, "figures": {"x": 1}}


def test_a_process_that_ends_without_a_word_gets_a_sentence(sweep, tmp_path):
    with pytest.raises(RuntimeError, match=r"^a process ended without a word, maybe in \{'kind': 'c'\}: "):
        sweep.sweep(end, [{"kind": "c"}], tmp_path, "testing")
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
import os, signal, time
from pathlib import Path
from sweep import sweep

def run(job):
    if job["seconds"]:
        print(os.getpid(), flush=True)
    time.sleep(job["seconds"])
    return {"x": 1}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background may ignore it
    sweep(run, [{"seconds": 0}], Path("figures"), "testing")
    sweep(run, [{"seconds": 0}, {"seconds": 30}], Path("figures"), "testing")
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a signal as a terminal does")
@pytest.mark.parametrize(("to_all", "sent"), [(True, signal.SIGINT), (False, signal.SIGINT), (False, signal.SIGTERM)])
def test_ctrl_c_stops_what_is_running_and_keeps_what_is_done(tmp_path, to_all, sent):
    """From a terminal it reaches all processes, from ``kill`` one; either way none goes on."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "examples")))}
    with subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        worker = int(process.stdout.readline())
        (os.killpg if to_all else os.kill)(process.pid, sent)
        _, err = process.communicate()
    assert process.returncode != 0 and err.splitlines()[-1] == "KeyboardInterrupt"
    assert err.count("Traceback") == 1, err
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    (kept,) = (tmp_path / "figures").iterdir()
    assert json.loads(kept.read_text())["job"] == {"seconds": 0}


def test_spread_is_that_of_a_sample(sweep):
    values = np.random.default_rng(0).standard_normal(7)
    assert sweep.spread(values.tolist()) == pytest.approx((values.mean(), values.std(ddof=1)))
    assert sweep.spread([3.0]) == (3.0, 0.0)


def test_figures_of_a_variant_are_in_the_order_of_its_jobs(sweep):
    results = [({"kind": kind, "seed": seed}, {"x": 10 * seed}) for seed in (2, 0, 1) for kind in "ba"]
    results[0][1]["only"] = [1, 2]
    found = sweep.by_variant(results, "kind")
    assert list(found) == ["b", "a"] and {kind: f["x"].tolist() for kind, f in found.items()} == {
        "b": [20, 0, 10], "a": [20, 0, 10],
    }  # fmt: skip
    assert found["b"]["only"].tolist() == [[1, 2]] and "only" not in found["a"]
