"""Random numbers on a GPU, the same as on a CPU: ``kernels/philox.cu`` for the formula in ``minivit/random.py``."""

import math
from types import ModuleType

import numpy as np

from minivit import random
from minivit.backend import Array
from minivit.cuda.launch import launch
from minivit.cuda.registry import blocks_for, stands_in_for

THREADS = 256


@stands_in_for(random.uniform)
def uniform(key: random.Key, samples: Array, shape: tuple[int, ...] = (), xp: ModuleType = np) -> Array:
    """Four numbers a thread. A key that is an array is read by the kernel, so that a captured step draws anew."""
    width = math.prod(shape)
    if len(samples) * width == 0:
        return random.uniform(key, samples, shape, xp)
    samples = xp.ascontiguousarray(samples.astype("int64", copy=False))
    out = xp.empty((len(samples), *shape), "float32")
    where, words = (None, key) if isinstance(key, tuple) else (key, (0, 0))
    low, high = (word - 2**32 if word >= 2**31 else word for word in words)  # the same 32 bits, with a sign
    grid = blocks_for(len(samples) * blocks_for(width, 4), THREADS)
    launch("philox", "uniform", grid, THREADS, where, low, high, samples, out, len(samples), width)
    return out
