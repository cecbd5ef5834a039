"""``cupy.cuda`` of the strict twin: devices, streams, and what makes the host wait for the GPU.

The host hands work to a GPU and goes on. It has to wait where it wants to see a result, ``x.item()``, ``x.get()`` or
``if x > 0``, and where the size of one is a result, ``x[mask]``. Copies from the host are counted with these: they
cannot be part of a step that is captured as a CUDA graph. A fast training step has none of them.

Names are those of CuPy, but for ``counted`` and ``forbid_synchronisation``.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

DEVICES = 2

# --- what makes the host wait ----------------------------------------------------------------------------------------

_counts: Counter[str] = Counter()
_allowed: list[frozenset[str] | None] = [None]  # None: everything


class SynchronisationError(AssertionError):
    """The host waited for the GPU, or copied to it, where that was forbidden."""


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Inside: a Counter of synchronisations by cause ("item", "get", "float", "asarray", …) fills."""
    before = _counts.copy()
    counts: Counter[str] = Counter()
    try:
        yield counts
    finally:
        counts.update(_counts - before)


@contextmanager
def forbid_synchronisation(*allowed: str) -> Iterator[None]:
    """Inside: whatever makes the host wait raises SynchronisationError, except for the causes that are allowed."""
    _allowed.append(frozenset(allowed))
    try:
        yield
    finally:
        _allowed.pop()


def synchronise(cause: str) -> None:
    if _allowed[-1] is not None and cause not in _allowed[-1]:
        raise SynchronisationError(f"the host waits for the GPU here: {cause}")
    _counts[cause] += 1


# --- devices ---------------------------------------------------------------------------------------------------------


class Current(threading.local):
    device = 0


current = Current()


class Device:
    """``cupy.cuda.Device``: inside ``with Device(1):`` arrays are made and used on device 1."""

    def __init__(self, device: int | None = None):
        self.id = current.device if device is None else int(device)
        if not 0 <= self.id < DEVICES:
            raise RuntimeError(f"cudaErrorInvalidDevice: invalid device ordinal {self.id}")
        self._outer: list[int] = []

    def __enter__(self) -> "Device":
        self._outer.append(current.device)
        return self.use()

    def __exit__(self, *exception: object) -> None:
        current.device = self._outer.pop()

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def use(self) -> "Device":
        current.device = self.id
        return self

    def synchronize(self) -> None:
        synchronise("synchronize")


class Stream:
    """``cupy.cuda.Stream``, in which everything is done as soon as it is asked for."""

    def __init__(self, null: bool = False, non_blocking: bool = False):
        self.ptr = 0

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def use(self) -> "Stream":
        return self

    def synchronize(self) -> None:
        synchronise("synchronize")


Stream.null = Stream(null=True)
namespace = SimpleNamespace(
    is_available=lambda: True,
    Device=Device,
    Stream=Stream,
    get_current_stream=lambda: Stream.null,
    runtime=SimpleNamespace(getDeviceCount=lambda: DEVICES, deviceSynchronize=lambda: synchronise("synchronize")),
)
