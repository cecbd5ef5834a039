"""GELU as a loop: the formula of ``ops/activation.py`` in one pass instead of two dozen."""

import math

import numpy as np

from minivit import ops
from minivit.autograd import recording
from minivit.backend import Array
from minivit.loops.compiler import exp, inlined, known, loop, stands_in_for
from minivit.ops.activation import TAIL_FLOAT32, K

K = np.float32(K)
C0, C1, C2, C3, C4, C5 = map(np.float32, TAIL_FLOAT32)
PEAK = np.float32(1 / math.sqrt(2 * math.pi))  # φ(0)


@stands_in_for(ops.gelu.raw)
def gelu(x: Array, approximate: str = "none") -> tuple:
    """The exact form. The slope is computed on the way, as in the formula, if it will be asked for."""
    if approximate != "none" or not known(x):
        return ops.gelu.raw(x, approximate)
    shape, x = x.shape, np.ascontiguousarray(x).reshape(-1)
    y = np.empty_like(x)
    slope = np.empty_like(x) if recording() else y[:0]
    _gelu(x, y, slope)
    return y.reshape(shape), lambda dy: dy * slope.reshape(shape)


@loop
def _gelu(x, y, slope):
    if len(slope):
        for i in range(len(x)):
            y[i], slope[i] = gelu_of(x[i])
    else:
        for i in range(len(x)):
            y[i] = gelu_of(x[i])[0]


@inlined
def gelu_of(x):
    """x Φ(x) and its slope Φ(x) + x φ(x). With t = k / (k + |x|), Φ(−|x|) = φ(x) (c₀ + c₁ t + … + c₅ t⁵)."""
    density = PEAK * exp(np.float32(-0.5) * x * x)
    t = K / (K + abs(x))
    tail = density * (C0 + t * (C1 + t * (C2 + t * (C3 + t * (C4 + t * C5)))))
    below = np.float32(1) - tail if x > 0 else tail
    return x * below, below + x * density
