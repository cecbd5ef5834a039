"""What the child processes of ``test_durability.py`` do: train, save after every step, and die by their own hand.

All of it runs in a process that is about to end, so nothing that is replaced here is put back.
"""

import codecs
import ctypes
import io
import os
import signal
import subprocess
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from minivit.autograd import Tensor
from minivit.ops import gelu
from minivit.training import CheckpointError, files, log, loop
from tests.training.test_loop import contents, run


def train(folder: Path, anew: bool = False, **options: object) -> None:
    """Begin the run in ``folder``, or go on with it where it was saved."""
    resume = not anew and (folder / "last.npz").exists()
    run(folder, resume=resume, overwrite=not resume, **{"save_seconds": 0, **options})


def train_and_note(folder: Path, notes: Path, **options: object) -> None:
    """Train to the end, and leave the moments at which a file changed, one a line."""
    moments: list[str] = []
    watch(moments.append)
    train(folder, **options)
    with open(notes, "w") as file:
        file.writelines(f"{moment}\n" for moment in moments)


def train_until(folder: Path, moment: str, number: int = 0, **options: object) -> None:
    """Train, but die when ``moment`` (the start of its name; "" is any) comes for the time ``number``, from 0."""
    left = number

    def reached(name: str) -> None:
        nonlocal left
        if name.startswith(moment):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    watch(reached)
    train(folder, **options)


def train_on_a_small_disk(answer: Connection, folder: Path, size: int, **options: object) -> None:
    """Train on a disk of ``size`` bytes; answer with what stopped it and what it left. Then make room, and go on."""
    try:
        mount_disk(folder, size)
    except (AttributeError, OSError, subprocess.CalledProcessError) as error:
        return answer.send(f"this system lets nobody mount a disk: {error}")
    stopped = what_stops(folder, **options)
    answer.send((stopped, sorted(os.listdir(folder))))
    subprocess.run(["mount", "-o", "remount,size=100m", "none", folder], check=True)
    train(folder, **options)
    answer.send(contents(folder))


def train_without_rights(answer: Connection, folder: Path, steps: int, **options: object) -> None:
    """Train in a folder that takes no files after some steps; answer with the sentence and the steps that were done.

    Root may write everywhere, so it becomes a user who owns nothing but this folder.
    """
    os.chdir(folder)
    if os.getuid() == 0:
        codecs.lookup("cp437")  # of zip files: Python reads it when it is needed, from where this user may not look
        gelu(Tensor([0.0]))  # and so does Numba, if it is there
        os.chown(".", 65534, 65534)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    train_step, done = loop.train_step, 0

    def counting(*args: object, **options: object) -> object:
        nonlocal done
        result = train_step(*args, **options)
        done += 1
        if done == steps:
            os.chmod(".", 0o555)
        return result

    loop.train_step = counting
    if steps == 0:
        os.chmod(".", 0o555)
    answer.send((what_stops(Path("."), **options), done))


def what_stops(folder: Path, **options: object) -> str:
    """The sentence with which a training run ends that cannot save."""
    try:
        train(folder, **options)
    except CheckpointError as error:
        return str(error)
    return "nothing"


def mount_disk(folder: Path, size: int) -> None:
    """Put an empty disk of ``size`` bytes in the place of a folder, as this process alone sees it. Linux only.

    Raises AttributeError, OSError or CalledProcessError where the system does not let us. No rights are needed where
    users may have a namespace of their own, in which they are root.
    """
    user, group = os.getuid(), os.getgid()
    libc, new_user, new_mounts = ctypes.CDLL(None, use_errno=True), 0x10000000, 0x00020000
    if libc.unshare(new_user | new_mounts):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in [("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")]:
        Path("/proc/self", name).write_text(text)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)


def watch(reached: Callable[[str], None]) -> None:
    """Call ``reached`` at every moment, from now on, at which a file is about to change or has changed."""

    class Disk(io.FileIO):
        """A file below Python's buffer, which is written in two goes, as by a system that is pressed for room."""

        def __init__(self, path: Path, mode: str):
            super().__init__(path, mode)
            self.path = Path(path)
            opened[self.fileno()] = self.path.name
            reached(f"opened {self.path.name}")

        def write(self, data: bytes) -> int:
            half = len(data) // 2
            super().write(data[:half])
            reached(f"wrote a part of {self.path.name}")
            return half + super().write(data[half:])

        def close(self) -> None:
            if not self.closed:
                del opened[self.fileno()]
                super().close()
                reached(f"closed {self.path.name}")

    def open_disk(path: Path, mode: str = "r", **options: str) -> io.IOBase:
        if "r" in mode:
            return open(path, mode, **options)
        file = io.BufferedWriter(Disk(path, mode.replace("b", "")))
        return file if "b" in mode else io.TextIOWrapper(file, **options)

    def around(function: Callable, doing: str, done: str, name: Callable[..., str]) -> Callable:
        def acting(*args: object, **options: object) -> None:
            what = name(*args)
            reached(f"{doing} {what}")
            function(*args, **options)
            reached(f"{done} {what}")

        return acting

    opened: dict[int, str] = {}
    files.open = log.open = open_disk
    os.fsync = around(os.fsync, "syncing", "synced", lambda number: opened.get(number, "the folder"))
    os.replace = around(os.replace, "replacing", "replaced", lambda old, new: Path(new).name)
    Path.unlink = around(Path.unlink, "deleting", "deleted", lambda path: path.name)
