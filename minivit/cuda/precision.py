"""In which number format a GPU computes the products of a network.

    name     operands of products   their sums, statistics, softmax, loss, weights and their gradients
    fp32     float32                 float32
    tf32     float32, of which the tensor cores use 10 bits of mantissa (of 23)        float32
    bf16     bfloat16, 7 bits of mantissa, and so are the activations between ops      float32

The weights stay float32, and so does the residual stream, to which small steps are added; each product makes its own
copy of its weight in bfloat16. bfloat16 has the range of float32, so the loss needs no scaling (Micikevicius et al.,
2018, arXiv:1710.03740, needed it for float16; Kalamkar et al., 2019, arXiv:1905.12322).

On a CPU half precision would only save memory: NumPy computes in float32 and float64, and the precision in force is
not looked at.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minivit.backend import Array

PRECISIONS = ("fp32", "tf32", "bf16")


class _State(threading.local):
    name = "fp32"


_state = _State()


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Inside: products on a GPU are computed in this precision, "fp32", "tf32" or "bf16".

    Backward uses what forward used. Raises ValueError for any other name.

    >>> with precision("bf16"):
    ...     current()
    'bf16'
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {name!r}")
    outer, _state.name = _state.name, name
    try:
        yield
    finally:
        _state.name = outer


def current() -> str:
    """The precision in force, in this thread.

    >>> current()
    'fp32'
    """
    return _state.name


def working_type(x: Array) -> Any:
    """The dtype of activations between ops: bfloat16 under "bf16", else that of ``x``."""
    if _state.name != "bf16":
        return x.dtype
    from ml_dtypes import bfloat16

    return bfloat16
