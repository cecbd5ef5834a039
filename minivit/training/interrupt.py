"""Ctrl-C once: stop at the next good moment. Twice: stop now."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """Training was stopped by Ctrl-C or by the system, and saved; the message tells how to go on."""


class Interrupt:
    """Inside: SIGINT (Ctrl-C) and SIGTERM are noted, and ``check`` raises Interrupted; a second one stops at once.

    ``anyone``, of several ranks, tells whether any of them says yes: then all of them stop at the same check.
    The handlers that were there before come back at the end. In a thread other than the main one, where Python
    allows no handlers, signals keep their usual meaning.

    >>> with Interrupt() as interrupt:
    ...     interrupt.check()
    ...     signal.raise_signal(signal.SIGINT)
    ...     interrupt.check()
    Traceback (most recent call last):
    minivit.training.interrupt.Interrupted: interrupted by SIGINT
    """

    def __init__(self, anyone: Callable[[bool], bool] = bool) -> None:
        self.anyone = anyone
        self.received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.anyone(self.received is not None):
            raise Interrupted(f"interrupted by {self.received or 'a signal to another rank'}")

    def checked(self, items: Iterable) -> Iterator:
        """The items, with a ``check`` before each."""
        for item in items:
            self.check()
            yield item

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        with suppress(OSError):  # not print(): a handler may run in the middle of another print()
            os.write(sys.stderr.fileno(), b"\nFinishing this step, then saving. Once more stops at once.\n")
