"""Fused CUDA kernels, put beside the formulas that they compute.

A formula (the function of arrays under an op, an optimizer's update, …) is the specification, and what runs on NumPy
arrays. Where the arrays are CuPy's, the engine asks ``backend.FUSED`` for a stand-in:

    @stands_in_for(ops.layer_norm.raw)
    def layer_norm(x, weight, bias, eps=1e-6): …      the same arguments, the same result to rounding

A stand-in goes back to the formula for what its kernel does not know: other types, odd shapes. The environment variable
``MINIVIT_FUSED=0`` leaves all formulas in their places.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minivit.backend import FUSED, Array

ENABLED = os.environ.get("MINIVIT_FUSED", "1") != "0"


def stands_in_for(formula: Callable) -> Callable:
    """Register the decorated function as the stand-in of ``formula`` on a GPU."""

    def register(kernel: Callable) -> Callable:
        kernel.formula = formula
        if ENABLED:
            FUSED[formula] = kernel
        return kernel

    return register


@contextmanager
def formulas_only() -> Iterator[None]:
    """Inside: no kernel stands in for anything. For comparisons.

    >>> with formulas_only():
    ...     print(len(FUSED))
    0
    """
    registered = dict(FUSED)
    FUSED.clear()
    try:
        yield
    finally:
        FUSED.update(registered)


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
