"""From a Python function to machine code, and what loops are made of: e^x, and the larger of two numbers.

Numba translates a function into LLVM's language when it is first called, and keeps the machine code beside the source
(or in the user's cache) for the next process. It notices a change of the file of a loop, but not of what that imports:
whoever changes ``exp`` here, or a coefficient of a formula, has to delete ``minivit/loops/__pycache__``. While a loop
runs, other threads may hold Python's lock (``nogil``).

The compiler may add up in another order, so that it can add eight numbers at a time, and may fuse a multiplication with
an addition. NaN and infinity are left what they are, because a training step looks for them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from minivit import backend
from minivit.backend import LOOPS, Array

FREEDOM = {"contract", "reassoc", "nsz", "arcp"}  # LLVM's names: fused, in any order, any sign of 0, 1/x once


def stands_in_for(formula: Callable) -> Callable[[Callable], Callable]:
    """Register the decorated function as the stand-in of ``formula`` on a CPU."""
    return backend.stands_in_for(formula, LOOPS)


def loop(function: Callable) -> Callable:
    """Compile ``function`` when it is first called, for the types it is called with."""
    return njit(nogil=True, fastmath=FREEDOM, error_model="numpy", cache=True)(function)


def inlined(function: Callable) -> Callable:
    """A piece of loops: its code becomes part of theirs."""
    return njit(fastmath=FREEDOM, error_model="numpy", inline="always")(function)


def known(*arrays: Array) -> bool:
    """Can loops read these arrays: float32, and not empty?

    >>> known(np.ones(2, np.float32)), known(np.ones(2)), known(np.ones((0, 2), np.float32))
    (True, False, False)
    """
    return all(array.dtype == np.float32 and array.size for array in arrays)


def rows_of(array: Array) -> Array:
    """(…, D) as a matrix of rows, one after another in memory.

    >>> rows_of(np.ones((2, 3, 4))).shape
    (6, 4)
    """
    return np.ascontiguousarray(array).reshape(-1, array.shape[-1])


@intrinsic
def larger(context: Any, a: Any, b: Any) -> tuple:
    """The larger of a and b, in the form of which LLVM makes the largest of many, eight at a time. It overlooks NaN."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.FloatType()
        maximum = builder.module.declare_intrinsic("llvm.maxnum", [number], ir.FunctionType(number, [number, number]))
        return builder.call(maximum, arguments, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), code


@intrinsic
def float_of_bits(context: Any, bits: Any) -> tuple:
    """The float32 that lies in memory as the int32 ``bits`` does."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), code


@intrinsic
def in_widest_vectors(context: Any) -> tuple:
    """Compile the loop with the processor's widest vectors.

    Of AVX-512's sixteen numbers LLVM uses eight, as a core that uses all has a lower clock. With products between its
    loops, which do so anyway, a step has that lower clock already.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own add takes known names only
        return context.get_dummy_value()

    return types.void(), code


@inlined
def exp(x):
    """e^x of a float32 x ≤ 0, by operations of which a processor does eight or sixteen at a time.

    With n the whole number next to x / ln 2,

        e^x = 2ⁿ e^r,   r = x − n ln 2,  |r| ≤ ½ ln 2.

    ln 2 is subtracted in two parts, the first of so few digits that n times it is exact. For r so small the Taylor
    series is as good as a float32 after eight terms; the coefficients here are near its 1/k!, and share the error out
    evenly (Moshier's Cephes library, ``expf``). 2ⁿ has n + 127 where a float32 has its exponent. Where that ends, below
    e^−87 = 1.6e-38, the result is 0. NaN stays NaN.
    """
    in_widest_vectors()
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power_of_2 = float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))
    y = (p * r * r + r + np.float32(1)) * power_of_2
    return np.float32(0) if x < np.float32(-87) else y
