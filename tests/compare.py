"""A stand-in against its formula: the same numbers in, in float64 there and in its own types here."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minivit.backend import to_device

UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8}  # half the distance from 1 to the next number


def numbers(seed: int, *shape: int, dtype: Any = "float32", scale: float = 1.0) -> np.ndarray:
    """Random numbers that the dtype can hold, on the host."""
    return np.asarray(scale * np.random.default_rng(seed).standard_normal(shape), dtype)


def exact(array: Any) -> Any:
    """In float64 on the host; whole numbers, and what is no array, as they are."""
    if not hasattr(array, "dtype"):
        return array
    array = to_device(array, "cpu")
    return array if array.dtype.kind in "iub" else array.astype(np.float64)


def errors(
    stand_in: Callable, xp: Any, args: tuple, dy_dtype: Any = None, seed: int = 0, **options: Any
) -> list[float]:
    """The largest error of each value and of each cotangent, relative to its largest number.

    ``args`` are arrays on the host. The formula is ``stand_in.formula``. What the pullback gives in the broadcast
    shape is summed as the engine would.
    """
    values, pullback = stand_in(*(xp.asarray(a) if isinstance(a, np.ndarray) else a for a in args), **options)
    right, right_pullback = stand_in.formula(*map(exact, args), **options)
    values, right = as_tuple(values), as_tuple(right)
    dys = [
        numbers(seed + i, *y.shape, dtype=dy_dtype or value.dtype)
        for i, (y, value) in enumerate(zip(right, values), start=1)
    ]
    found, again = (as_tuple(pullback(*map(xp.asarray, dys))) for _ in range(2))
    wanted = as_tuple(right_pullback(*map(exact, dys)))
    for first, second in zip(found, again, strict=True):
        if first is not None:
            np.testing.assert_array_equal(exact(first), exact(second))  # to the last bit, and nothing was written to
    pairs = list(zip(values, right, strict=True))
    for x, dx, right_dx in zip(args, found, wanted):
        assert (dx is None) == (right_dx is None)
        if dx is not None:
            pairs.append((_summed(exact(dx), x.shape), _summed(right_dx, x.shape)))
    return [relative(exact(a), np.asarray(b)) for a, b in pairs]


def as_tuple(thing: Any) -> tuple:
    return thing if isinstance(thing, tuple) else (thing,)


def relative(found: np.ndarray, right: np.ndarray) -> float:
    """max |found − right| / max |right|, after checking that the shapes agree and all is finite."""
    assert found.shape == right.shape, f"{found.shape} instead of {right.shape}"
    assert np.isfinite(found).all(), f"{(~np.isfinite(found)).sum()} of {found.size} numbers are not finite"
    return float(np.abs(found - right).max() / max(np.abs(right).max(), 1e-30))


def _summed(dx: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return dx if dx.shape == shape else dx.reshape(-1, *shape).sum(0)
