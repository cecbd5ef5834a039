"""What is said of networks, held against measurements of several seeds: no example knows beforehand what comes out."""

from collections.abc import Sequence
from typing import NamedTuple

from sweep import spread


class Claim(NamedTuple):
    """Something that is said, whether it held here, and the numbers by which that was decided."""

    key: str
    says: str
    held: bool
    numbers: str


def compare(a: Sequence[float], b: Sequence[float]) -> int:
    """1 where a is higher than b, −1 where it is lower, 0 where their ranges, mean ± standard deviation, overlap.

    >>> compare([3, 4], [1, 2]), compare([1, 2], [3, 4]), compare([1, 3], [2, 3])
    (1, -1, 0)
    """
    (mean_a, sd_a), (mean_b, sd_b) = spread(list(a)), spread(list(b))
    gap = abs(mean_a - mean_b) - (sd_a + sd_b)
    return 0 if not gap > 0 else 1 if mean_a > mean_b else -1  # of NaN, too


def plus_minus(values: Sequence[float], factor: float = 1, digits: int = 1) -> str:
    """Mean and standard deviation in words.

    >>> plus_minus([0.91, 0.93], factor=100)
    '92.0 ± 1.4'
    """
    mean, sd = spread([factor * float(value) for value in values])
    return f"{mean:.{digits}f} ± {sd:.{digits}f}"


def tell(claims: list[Claim], seeds: int) -> str:
    """The claims in words, a line for each, and one for what it was decided by."""
    lines = [
        f"What is said, and whether it held at this scale (mean ± standard deviation of {seeds} seeds; one thing is",
        "higher than another where these ranges do not overlap, and they are equal where they do):",
    ]
    for claim in claims:
        lines += [f"- {claim.says}", f"  {'It held' if claim.held else 'It did not hold'}: {claim.numbers}."]
    return "\n".join(lines)
