"""What kernels can read, and how they are put beside the formulas that they compute: see ``minivit/backend.py``."""

import math
from collections.abc import Callable

from minivit import backend
from minivit.backend import FUSED, Array


def stands_in_for(formula: Callable) -> Callable[[Callable], Callable]:
    """Register the decorated function as the stand-in of ``formula`` on a GPU."""
    return backend.stands_in_for(formula, FUSED)


def fits(*arrays: Array, multiple: int = 4) -> bool:
    """Can kernels read these arrays: float32 or bfloat16, not empty, rows (the last axis) a multiple of four?

    >>> fits(np.zeros((2, 8), np.float32)), fits(np.zeros((2, 8))), fits(np.zeros((2, 7), np.float32))
    (True, False, False)
    """
    return all(
        array.dtype.name in ("float32", "bfloat16") and array.size and array.shape[-1] % multiple == 0
        for array in arrays
    )


def blocks_for(items: int, each: int) -> int:
    """How many blocks it takes for so many items, ``each`` of them to a block.

    >>> blocks_for(10, 4)
    3
    """
    return math.ceil(items / each)
