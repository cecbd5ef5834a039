"""Nothing is lost: whatever kills a run, and whenever, resuming leads to the run that nothing disturbed.

The runs are processes, forked from one that has imported everything. A killed one gets SIGKILL, which no program can
answer: the files stay as they are at that moment, half a checkpoint or half a line among them.
"""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from minivit.nn import Linear
from minivit.random import generator
from minivit.training import CheckpointError, load_checkpoint, read_log
from tests.data.test_idx import write_set
from tests.examples import ROOT
from tests.training import test_loop
from tests.training.durable_run import train, train_and_note, train_on_a_small_disk, train_until, train_without_rights
from tests.training.test_loop import contents, on_call, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no processes that can be forked")
KILLED = -9  # by SIGKILL
FILES = ["best.npz", "last.npz", "log.jsonl"]


@pytest.fixture(scope="module")
def processes():
    """Processes of which each is a copy of one that has one thread and knows the modules already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.durable_run"])
    return context


@pytest.fixture
def runs(processes):
    """``runs(function, …)``: the exit code of a process that called it, negative for the signal that killed it."""

    def exit_code(function, *arguments, **options):
        process = processes.Process(target=function, args=arguments, kwargs=options)
        process.start()
        process.join()
        return process.exitcode

    return exit_code


def whole(folder):
    """``contents`` of a folder in which a run left what it should, and no more."""
    assert sorted(path.name for path in folder.iterdir()) == FILES
    return contents(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """``undisturbed(epochs)``: what such a run leaves when it saves once an epoch and nothing happens to it."""
    known = {}

    def left_by(epochs):
        if epochs not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            run(folder, epochs=epochs)
            known[epochs] = whole(folder)
        return known[epochs]

    return left_by


def sound(folder):
    """Whatever has the name of a checkpoint is a whole one."""
    for path in folder.glob("*.npz"):
        load_checkpoint(path)
    return True


def runs_here(folder, **options):
    """What is left by a run that goes on, in this process."""
    run(folder, resume=(folder / "last.npz").exists(), **options)
    return whole(folder)


# --- killed ---------------------------------------------------------------------------------------------------------


def kill_at_random_times(folder, processes, reference, kills, seed, epochs):
    """SIGKILL ``kills`` times after a random time; a run that ends before is compared, and begun anew."""
    rng = generator(seed, "times")
    while kills:
        process = processes.Process(target=train, args=(folder,), kwargs={"epochs": epochs})
        process.start()
        time.sleep(rng.uniform(0, 0.06))
        process.kill()
        process.join()
        assert process.exitcode in (0, KILLED)
        if process.exitcode == KILLED:
            kills -= 1
            assert sound(folder)
        else:
            assert whole(folder) == reference
            (folder / "last.npz").unlink()


def test_killed_at_20_random_times(tmp_path, processes, runs, undisturbed):
    kill_at_random_times(tmp_path, processes, undisturbed(12), kills=20, seed=0, epochs=12)
    assert runs(train, tmp_path, epochs=12) == 0
    assert whole(tmp_path) == undisturbed(12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_200_random_times(tmp_path, processes, runs, undisturbed, seed):
    kill_at_random_times(tmp_path, processes, undisturbed(100), kills=200, seed=seed, epochs=100)
    assert runs(train, tmp_path, epochs=100) == 0
    assert whole(tmp_path) == undisturbed(100)


def test_killed_at_20_random_moments_of_writing(tmp_path, runs, undisturbed):
    """Of the thousands at which a file changes, as the run itself counts them: a kill from outside rarely hits one."""
    rng, codes = generator(0, "moments"), []
    for _ in range(20):
        codes.append(runs(train_until, tmp_path, "", int(rng.integers(0, 200)), epochs=12))
    assert codes == [KILLED] * 20
    assert load_checkpoint(tmp_path / "last.npz").meta["progress"]["epoch"] > 2
    assert runs(train, tmp_path, epochs=12) == 0
    assert whole(tmp_path) == undisturbed(12)


@pytest.fixture(scope="module")
def moments(processes, tmp_path_factory):
    """All moments of a run of two epochs, in order."""
    folder, notes = tmp_path_factory.mktemp("moments"), tmp_path_factory.mktemp("notes") / "notes"
    process = processes.Process(target=train_and_note, args=(folder, notes), kwargs={"epochs": 2})
    process.start()
    process.join()
    return notes.read_text().splitlines()


SAVING = ["opened .{}.tmp", "wrote a part of .{}.tmp", "syncing .{}.tmp", "replacing {}", "replaced {}"]
LOGGING = ["opened log.jsonl", "wrote a part of log.jsonl", "syncing log.jsonl", "closed log.jsonl"]


@pytest.mark.parametrize("name", ["last.npz", "best.npz"])
@pytest.mark.parametrize("moment", SAVING)
def test_killed_while_it_saves(tmp_path, runs, moments, undisturbed, name, moment):
    """Half a file is left under a name that nobody reads, until the next save."""
    moment = moment.format(name)
    number = int(generator(0, moment).integers(0, moments.count(moment)))  # of those at which this happens, one
    assert runs(train_until, tmp_path, moment, number, epochs=2) == KILLED
    assert (tmp_path / f".{name}.tmp").exists() == (not moment.startswith("replaced"))
    assert sound(tmp_path)
    assert runs(train, tmp_path, epochs=2) == 0
    assert whole(tmp_path) == undisturbed(2)


@pytest.mark.parametrize("moment", LOGGING)
def test_killed_while_it_logs(tmp_path, runs, moments, undisturbed, moment):
    number = int(generator(0, moment).integers(1, moments.count(moment)))  # not in the first line: that is to be seen
    assert runs(train_until, tmp_path, moment, number, epochs=2) == KILLED
    assert (tmp_path / "log.jsonl").read_text().endswith("\n") == ("wrote a part" not in moment)
    assert runs(train, tmp_path, epochs=2) == 0
    assert whole(tmp_path) == undisturbed(2)


def test_a_line_is_on_the_disk_before_a_checkpoint_counts_it(moments):
    """After a power cut, too, which takes what the system has not yet written."""
    telling = [m for m in moments if m in ("closed log.jsonl", "synced log.jsonl", "opened .last.npz.tmp")]
    logged = [before for before, now in pairwise(telling) if now == "closed log.jsonl"]
    assert logged == ["synced log.jsonl"] * 8 and telling.count("opened .last.npz.tmp") == 8


@pytest.mark.parametrize("moment", [moment.format("log.jsonl") for moment in SAVING])
def test_killed_while_it_resumes(tmp_path, runs, undisturbed, moment):
    """The log has a line and a half that are to be cut, and is replaced by the lines that count."""
    assert runs(train_until, tmp_path, "wrote a part of log.jsonl", 5, epochs=2, save_seconds=None) == KILLED
    assert runs(train_until, tmp_path, moment, epochs=2) == KILLED
    assert runs(train, tmp_path, epochs=2) == 0
    assert whole(tmp_path) == undisturbed(2)


@pytest.mark.parametrize("moment", [f"{verb} {name}" for verb in ("deleting", "deleted") for name in FILES])
def test_killed_while_it_deletes_another_run(tmp_path, runs, undisturbed, moment):
    """What is left of the other run does not get into this one."""
    run(tmp_path, epochs=1, lr=0.01)
    for name in FILES:
        (tmp_path / f".{name}.tmp").write_bytes(b"left by the other run" * 1000)
    assert runs(train_until, tmp_path, moment, anew=True, epochs=1) == KILLED
    assert runs(train, tmp_path, anew=True, epochs=1) == 0
    assert whole(tmp_path) == undisturbed(1)


def test_a_best_checkpoint_and_a_log_from_after_the_last_save_do_no_harm(tmp_path, runs, undisturbed):
    """The third time that the accuracy rises is in the fourth epoch, when ``last.npz`` is two epochs old."""
    options = {"epochs": 6, "save_epochs": 2, "save_seconds": None}
    assert runs(train_until, tmp_path, "replaced best.npz", 2, **options) == KILLED
    steps = [load_checkpoint(tmp_path / name).meta["progress"]["step"] for name in ("last.npz", "best.npz")]
    assert steps == [6, 12] and read_log(tmp_path / "log.jsonl")[-1]["step"] == 12
    assert runs(train, tmp_path, **options) == 0
    assert whole(tmp_path) == undisturbed(6)


@pytest.mark.slow
@pytest.mark.parametrize("share", range(4))
def test_killed_at_every_moment_of_writing(tmp_path, runs, moments, undisturbed, share):
    """And a second time while it goes on from there."""
    for number in range(share, len(moments), 4):
        folder = tmp_path / str(number)
        codes = [runs(train_until, folder, "", n, epochs=2) for n in (number, number // 3)]
        assert codes[0] == KILLED and codes[1] in (0, KILLED) and sound(folder), number
        assert runs(train, folder, epochs=2) == 0, number
        assert whole(folder) == undisturbed(2), number


# --- no room, no rights ---------------------------------------------------------------------------------------------


@pytest.fixture
def answers(processes):
    """``answers(function, …)``: what a process that called it had to say, one thing after the other."""

    def all_answers(function, *arguments, **options):
        here, there = processes.Pipe(duplex=False)
        process = processes.Process(target=function, args=(there, *arguments), kwargs=options)
        process.start()
        there.close()
        try:
            while True:
                yield here.recv()
        except EOFError:
            process.join()
            assert process.exitcode == 0

    return all_answers


@pytest.mark.parametrize("pages", [1, 2, 3, 4, 5])
def test_a_disk_that_is_full_in_the_middle_of_training(tmp_path, answers, undisturbed, pages):
    """``best.npz`` takes a page of the disk, the log another, ``last.npz`` two, and two more while it is written."""
    size = pages * os.sysconf("SC_PAGE_SIZE")
    first, *rest = answers(train_on_a_small_disk, tmp_path, size, epochs=2)
    if isinstance(first, str):
        pytest.skip(first)
    stopped, left = first
    saved = "last.npz" in left
    assert saved == (pages > 2)
    way_out = f"resume=True goes on from {tmp_path}/last.npz" if saved else "begin the run anew"
    kept = "; the previous checkpoint is unchanged" if saved else ""
    start = f"the checkpoint {tmp_path}/last.npz cannot be written: No space left on device{kept}"
    assert stopped == f"{start}. Once this is put right, {way_out}"
    assert not [name for name in left if name.endswith(".tmp")]
    assert rest == [undisturbed(2)]


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_a_folder_that_becomes_read_only_in_the_middle_of_training(tmp_path, answers, undisturbed, steps):
    ((stopped, done),) = answers(train_without_rights, tmp_path, steps, epochs=2)
    assert done == steps
    start = r"the checkpoint \w+.npz cannot be written: Permission denied" + ("; the prev.* unchanged" * (steps > 1))
    way_out = "resume=True goes on from last.npz" if steps > 1 else "begin the run anew"
    assert re.fullmatch(rf"{start}\. Once this is put right, {way_out}", stopped)
    os.chmod(tmp_path, 0o755)
    assert runs_here(tmp_path, epochs=2) == undisturbed(2)


def test_a_read_only_folder_is_noticed_before_the_first_step(tmp_path, answers):
    ((stopped, done),) = answers(train_without_rights, tmp_path, 0)
    assert stopped == ". cannot hold a run: Permission denied (log.jsonl); give another run_dir"
    assert done == 0 and not list(tmp_path.iterdir())


def test_resuming_in_a_read_only_folder(tmp_path, answers, runs, undisturbed):
    runs(train_until, tmp_path, "closed log.jsonl", 3, epochs=2)
    ((stopped, done),) = answers(train_without_rights, tmp_path, 0, epochs=2)
    way_out = "Once this is put right, resume=True goes on from last.npz"
    assert (stopped, done) == (f"log.jsonl cannot be written: Permission denied. {way_out}", 0)
    os.chmod(tmp_path, 0o755)
    assert runs_here(tmp_path, epochs=2) == undisturbed(2)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_disk_that_is_full_when_a_line_is_logged(tmp_path, monkeypatch, undisturbed):
    log, kept = tmp_path / "log.jsonl", tmp_path / "kept"

    def fill():
        log.rename(kept)
        log.symlink_to("/dev/full")

    with monkeypatch.context() as patch:
        on_call(patch, "train_step", 4, fill)
        message = r"log.jsonl cannot be written: No space left on device\. .*, resume=True goes on from .*last.npz"
        with pytest.raises(CheckpointError, match=message):
            run(tmp_path, epochs=2, save_seconds=0)
    kept.replace(log)
    assert runs_here(tmp_path, epochs=2) == undisturbed(2)


def test_the_example_ends_with_one_line_when_the_disk_is_full(tmp_path):
    """A real program on a real disk, which has room for what it saves first."""
    write_set(tmp_path / "data" / "mnist")
    (tmp_path / "runs").mkdir()
    (tmp_path / "kept").mkdir()
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a disk")
    script = 'mount -t tmpfs -o size=4m none runs && "$@"; code=$?; cp runs/* kept; exit $code'
    train = [sys.executable, ROOT / "examples" / "train_vit.py", "--dataset", "mnist", "--batch-size", "10"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *train, "--epochs", "3", "--run-dir", "runs"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(
        r"train_vit: the checkpoint runs/(best|last).npz cannot be written: No space left on device; the previous "
        r"checkpoint is unchanged\. Once this is put right, the same command with --resume goes on from runs/last.npz",
        done.stderr.strip(),
    ), done.stderr
    assert sound(tmp_path / "kept")
    assert load_checkpoint(tmp_path / "kept" / "last.npz").meta["progress"]["epoch"] == 1


# --- a checkpoint that is no good -----------------------------------------------------------------------------------


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    """Of a weight: there are bytes between the arrays of a zip file that say nothing."""
    content = bytearray(path.read_bytes())
    content[content.index(load_checkpoint(path).model["fc2.weight"].tobytes()) + 10] ^= 4
    path.write_bytes(content)


def put_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut_off, "last.npz is cut off or damaged (.*): put back a copy of it, or begin anew"),
        (flip_a_bit, "last.npz is .*damaged (.*): put back a copy of it, or begin anew"),
        (put_a_folder, "the checkpoint .*last.npz cannot be read: Is a directory"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_rest_is_left_alone(tmp_path, runs, undisturbed, damage, message):
    """A copy of the file, put back, goes on."""
    run_dir, copy = tmp_path / "run", tmp_path / "copy"
    assert runs(train_until, run_dir, "wrote a part of log.jsonl", 6, epochs=2) == KILLED
    shutil.copytree(run_dir, copy)
    damage(run_dir / "last.npz")
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError, match=message):
        run(run_dir, resume=True, epochs=2)
    assert before == {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    shutil.rmtree(run_dir)
    copy.rename(run_dir)
    assert runs_here(run_dir, epochs=2) == undisturbed(2)


def test_a_checkpoint_of_another_network_is_refused_and_left_alone(tmp_path, monkeypatch, runs, undisturbed):
    """Where nothing in the description tells them apart."""

    class Wide(test_loop.Net):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = Linear(4, 9), Linear(9, 3)

    assert runs(train_until, tmp_path, "wrote a part of log.jsonl", 6, epochs=2) == KILLED
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(test_loop, "Net", Wide)
        with pytest.raises(CheckpointError, match=r"last.npz does not fit this model: .*\(8, 4\), expected \(9, 4\)"):
            run(tmp_path, resume=True, epochs=2)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert runs_here(tmp_path, epochs=2) == undisturbed(2)


def test_a_folder_in_the_place_of_a_checkpoint_is_noticed_before_training(tmp_path):
    (tmp_path / "last.npz").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot hold a run: .* \(.*last.npz\); give another run_dir"):
        run(tmp_path, overwrite=True)
