"""AdamW in one pass over its arrays: the formula of ``optim/adamw.py`` takes thirteen."""

import numpy as np

from minivit.backend import Array
from minivit.loops.compiler import known, loop, stands_in_for
from minivit.optim import adamw as formula


@stands_in_for(formula.adamw)
def adamw(
    numbers: Array, scale: Array | None, p: Array, g: Array, m: Array, v: Array, scratch: Array | None = None
) -> None:
    """Without a ``scale``, which is for a GPU."""
    if scale is not None or not known(p, g):
        return formula.adamw(numbers, scale, p, g, m, v, scratch)
    _adamw(numbers, p, g, m, v)


@loop
def _adamw(numbers, p, g, m, v):
    decay, beta1, rest1, beta2, rest2, eps, rate = numbers
    for i in range(len(p)):
        m[i] = beta1 * m[i] + rest1 * g[i]
        v[i] = beta2 * v[i] + rest2 * g[i] * g[i]
        p[i] = decay * p[i] - rate * m[i] / (np.sqrt(v[i]) + eps)
