"""Keyed randomness: a draw is a function of its name, never of what was drawn before it.

Every random number of the project comes from a stream named by (seed, purpose, layer or parameter, epoch or
step) and, inside the stream, by the global index of the sample it belongs to. So a run gives the same result
however its batches are cut over micro-batches, threads or machines, and resuming needs no saved generator.

Two kinds of stream:

- ``generator(seed, ...)``: a NumPy ``Generator``, for draws that happen once, on the host (initial weights,
  the order of an epoch).
- ``uniform(key(seed, ...), samples, shape)``: counter-based, for draws that belong to samples (drop-path,
  dropout, crops). Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011):
  ten rounds of multiply and exchange turn (counter, key) into four 32-bit words. The counter holds the sample
  index and the position inside the sample, so any part of the stream can be computed alone, on any device.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from minivit.backend import Array, implementation

Key = tuple[int, int] | Array  # two words of 32 bits; or an array (2,) of uint32 that lies where it is used


def key(seed: int, *names: object) -> tuple[int, int]:
    """Two 32-bit words that name a stream: the BLAKE2b hash of ``(seed, *names)``.

    >>> key(0, "dropout", 3) == key(0, "dropout", 3) != key(0, "dropout", 4)
    True
    """
    plain = tuple(name.item() if isinstance(name, np.generic) else name for name in (seed, *names))  # np.int64(3) is 3
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def generator(seed: int, *names: object) -> np.random.Generator:
    """A NumPy generator for the stream ``(seed, *names)``.

    >>> a, b = (generator(0, "init", "head.weight").normal() for _ in range(2))
    >>> a == b
    True
    """
    low, high = key(seed, *names)
    return np.random.Generator(np.random.Philox(key=low | high << 32))


def philox(counter: list[Array], key: tuple[int, int]) -> list[Array]:
    """Philox4x32-10: four arrays of counters (uint64 holding 32 bits each) → four arrays of random words.

    One round multiplies words 0 and 2 by constants, keeps both halves of the 64-bit products, and mixes the high
    halves with words 1, 3 and the key; the key then advances by the golden ratio and √3 − 1 (section 3.3).

    >>> [f"{int(word):08x}" for word in philox([np.uint64(0)] * 4, (0, 0))]   # the paper's known answer
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def uniform(key: Key, samples: Array, shape: tuple[int, ...] = (), xp: ModuleType = np) -> Array:
    """Numbers in [0, 1) in float32, shape ``(len(samples), *shape)``; row i depends on ``samples[i]`` alone.

    ``samples`` are global sample indices, non-negative integers (repeats give equal rows); ``xp`` is the array
    module that computes. The 24 high bits of each word make the number, so every value is exact in float32.

    >>> rows = uniform(key(0, "crop"), np.array([7, 8]), (2,))
    >>> bool((uniform(key(0, "crop"), np.array([8]), (2,)) == rows[1]).all())
    True
    """
    key = key if isinstance(key, tuple) else key.astype(xp.uint64)
    size = int(np.prod(shape))
    blocks = xp.arange(-(-size // 4), dtype=xp.uint64)[None, :]  # (1, blocks of four words)
    samples = xp.asarray(samples).astype(xp.uint64)[:, None]  # (n, 1)
    zero = xp.zeros_like(samples) + xp.zeros_like(blocks)
    words = philox([zero + blocks, zero, samples & 0xFFFFFFFF, samples >> 32], key)
    words = xp.stack([word + zero for word in words], axis=-1).reshape(len(samples), 4 * blocks.size)[:, :size]
    return ((words >> 8).astype(xp.float32) * 2.0**-24).reshape(len(samples), *shape)


class Draws(threading.local):
    """Which samples this thread is computing, and how many layers have drawn for them so far."""

    seed: int = 0
    step: int | None = None
    samples: Array | None = None
    count: int = 0
    keys: Callable[[int], Key] | None = None


_draws = Draws()


@contextmanager
def sampling(seed: int, step: int, samples: Array) -> Iterator[None]:
    """Inside: the random layers (Dropout, DropPath) draw for these global ``samples`` of this ``step``.

    The n-th layer that draws in a forward pass takes stream (seed, "layer", step, n), so the masks of a sample
    are the same in every micro-batch, thread or process that computes it.

    >>> with sampling(seed=0, step=5, samples=np.array([40, 41])):
    ...     whole = layer_uniform(2)
    >>> with sampling(seed=0, step=5, samples=np.array([41])):
    ...     part = layer_uniform(1)
    >>> bool(whole[1] == part[0])
    True
    """
    with replaying({"seed": seed, "step": step, "samples": samples, "count": 0, "keys": _draws.keys}):
        yield


def layer_key(seed: int, step: int | None, n: int) -> tuple[int, int]:
    """The key of the n-th layer (0, 1, …) that draws in a forward pass of ``step``.

    >>> with sampling(seed=0, step=5, samples=np.array([40, 41])):
    ...     bool((layer_uniform(2) == uniform(layer_key(0, 5, 0), np.array([40, 41]))).all())
    True
    """
    return key(seed, "layer", step, n)


@contextmanager
def keyed_by(keys: Callable[[int], Key]) -> Iterator[None]:
    """Inside: the n-th layer that draws takes ``keys(n)``, in place of the key that ``sampling`` says.

    A step that is recorded as a CUDA graph reads its keys from an array, in which they are changed before each launch.

    >>> table = np.array([layer_key(0, 5, n) for n in range(3)], np.uint32)
    >>> with sampling(seed=0, step=5, samples=np.arange(2)):
    ...     drawn = layer_uniform(2)
    >>> with keyed_by(table.__getitem__), sampling(seed=7, step=7, samples=np.arange(2)):
    ...     bool((drawn == layer_uniform(2)).all())
    True
    """
    with replaying(bookmark() | {"keys": keys}):
        yield


def bookmark() -> dict[str, Any]:
    """Where this thread's draws stand, for ``replaying``."""
    return vars(_draws).copy()


@contextmanager
def replaying(place: dict[str, Any]) -> Iterator[None]:
    """Inside: the layers of this thread draw again what they drew after ``place = bookmark()``, in any thread.

    After: the draws go on from where they stood before, as if nothing had been drawn in between.

    >>> place = bookmark()
    >>> first = layer_uniform(2)
    >>> with replaying(place):
    ...     again = layer_uniform(2)
    >>> bool((first == again).all()), bool((first == layer_uniform(2)).any())
    (True, False)
    """
    previous = bookmark()
    vars(_draws).clear()
    vars(_draws).update(place)
    try:
        yield
    finally:
        vars(_draws).clear()
        vars(_draws).update(previous)


def layer_uniform(batch: int, shape: tuple[int, ...] = (), xp: ModuleType = np) -> Array:
    """The next layer's numbers in [0, 1), shape ``(batch, *shape)``, for the samples named by ``sampling``.

    Outside of ``sampling`` every call takes a new stream of seed 0. Raises ValueError where the batch is not the
    one that ``sampling`` announced.
    """
    samples = xp.arange(batch) if _draws.samples is None else _draws.samples
    if len(samples) != batch:
        raise ValueError(f"sampling() announced {len(samples)} samples, but a layer was given a batch of {batch}")
    n, keys, samples = _draws.count, _draws.keys, xp.asarray(samples)
    _draws.count += 1
    stream = keys(n) if keys else layer_key(_draws.seed, _draws.step, n)
    return implementation(uniform, samples)(stream, samples, shape, xp)
