"""Elementwise nonlinearities, and softmax."""

import math

from minivit.autograd import op, recording
from minivit.backend import Array, array_module, cache_blocks


@op
def relu(x):
    """max(x, 0): dy passes where x > 0. (At 0 the derivative is taken to be 0, as everywhere in the field.)

    >>> relu(Tensor([-1.0, 2.0])).numpy()
    array([0., 2.], dtype=float32)
    """
    y = array_module(x).maximum(x, 0)
    return y, lambda dy: dy * (y > 0)


@op
def gelu(x, approximate="none"):
    """x · Φ(x), with Φ the normal distribution function (Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    - ``"none"``: exact, the form of ViT, DeiT and MAE. d/dx x Φ(x) = Φ(x) + x φ(x), with the density
      φ(x) = e^(−x²/2) / √(2π).
    - ``"tanh"``: ½ x (1 + tanh u), u = √(2/π) (x + 0.044715 x³), which differs from the exact form by up to 4.8e-4. Its
      derivative is ½ (1 + tanh u) + ½ x (1 − tanh² u) u′ with u′ = √(2/π) (1 + 3 · 0.044715 x²).

    The slope is computed on the way forward, where e^(−x²/2) is at hand, and is all that is kept. A dozen passes over x
    are needed: they are made block by block, while the block is in the cache.
    Raises ValueError for any other form.

    >>> gelu(Tensor([-1.0, 0.0, 1.0])).numpy().round(4)
    array([-0.1587,  0.    ,  0.8413], dtype=float32)
    """
    if approximate not in _GELU:
        raise ValueError(f"approximate must be one of {', '.join(map(repr, _GELU))}, got {approximate!r}")
    xp = array_module(x)
    shape, flat, y = x.shape, x.reshape(-1), xp.empty(x.size, x.dtype)
    slope = xp.empty(x.size, x.dtype) if recording() else None
    for block in cache_blocks(flat):
        _GELU[approximate](flat[block], y[block], slope if slope is None else slope[block])
    return y.reshape(shape), lambda dy: dy * slope.reshape(shape)


def _gelu_exact(x: Array, y: Array, slope: Array | None) -> None:
    """Write x Φ(x) to ``y`` and its derivative to ``slope``. NumPy has no erf, so Φ is computed here.

    For a = |x| the tail is Φ(−a) = e^(−a²/2) P(s), where P varies slowly in s = 2 / (1 + a/5) − 1 ∈ (−1, 1], and from
    it x Φ(x) = max(x, 0) − a Φ(−a) and Φ(x) = ½ ± (½ − Φ(−a)). P is a polynomial, fitted by least squares (in 50
    digits, at 160 Chebyshev nodes, weighted by (1 + a) e^(−a²/2), so that x Φ(x) is even in error): degree 6 is
    within 4e-9 for float32, degree 15 within 1e-16 for float64.
    """
    xp = array_module(x)
    coefficients = _TAIL_FLOAT64 if x.dtype.itemsize == 8 else _TAIL_FLOAT32
    a = xp.abs(x)
    s = 0.2 * a
    s += 1
    xp.divide(2, s, out=s)
    s -= 1
    tail = coefficients[-1] * s
    for c in coefficients[-2:0:-1]:
        tail += c
        tail *= s
    tail += coefficients[0]
    density = x * x
    density *= -0.5
    xp.exp(density, out=density)
    tail *= density
    if slope is not None:
        xp.subtract(0.5, tail, out=slope)
        xp.copysign(slope, x, out=slope)
        slope += 0.5
        density *= 1 / math.sqrt(2 * math.pi)
        density *= x
        slope += density
    tail *= a
    xp.maximum(x, 0, out=y)
    y -= tail


def _gelu_tanh(x: Array, y: Array, slope: Array | None) -> None:
    """Write the tanh form to ``y`` and its derivative to ``slope``."""
    c = math.sqrt(2 / math.pi)
    th = array_module(x).tanh(c * (x + 0.044715 * x * x * x))
    if slope is not None:
        slope[...] = 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * (c * (1 + 3 * 0.044715 * x * x))
    y[...] = 0.5 * x * (1 + th)


_GELU = {"none": _gelu_exact, "tanh": _gelu_tanh}
_TAIL_FLOAT32 = (
    0.07693396882, 0.1432344143, 0.1174778919, 0.07605081836, 0.05767855925, 0.01144696338, 0.01717738573,
)  # fmt: skip
_TAIL_FLOAT64 = (
    0.0769193049752478249, 0.143457555257906287, 0.116068811939840761, 0.0808838771348274789,
    0.0478553512419960756, 0.0234139095876712597, 0.00899134338983817507, 0.00237885131017304156,
    0.000219764330622147492, -0.000135065747903423534, -0.0000589442683088681449, -2.55986290922615141e-6,
    7.4096805902375887e-6, 1.62199201991009889e-6, -1.45866701272470185e-6, 2.27705401052748117e-7,
)  # fmt: skip


@op
def softmax(x, axis=-1):
    """y_i = e^(x_i) / Σ_j e^(x_j) along ``axis``; the maximum is subtracted first, so nothing overflows.

    ∂y_i/∂x_j = y_i (δ_ij − y_j), so dx = y ⊙ (dy − Σ_j dy_j y_j). A constant dy gives dx = 0: rows sum to 1.

    >>> softmax(Tensor([0.0, 0.0])).numpy()
    array([0.5, 0.5], dtype=float32)
    """
    y = x - x.max(axis=axis, keepdims=True)
    array_module(x).exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)

    def pullback(dy):
        dx = dy * y
        dx -= y * dx.sum(axis=axis, keepdims=True)
        return dx

    return y, pullback


@op
def log_softmax(x, axis=-1):
    """y_i = x_i − ln Σ_j e^(x_j) along ``axis``, with the maximum subtracted first.

    ∂y_i/∂x_j = δ_ij − softmax(x)_j, so dx = dy − softmax(x) · Σ_i dy_i.

    >>> log_softmax(Tensor([0.0, 0.0])).numpy().round(4)
    array([-0.6931, -0.6931], dtype=float32)
    """
    xp = array_module(x)
    y = x - x.max(axis=axis, keepdims=True)
    y -= xp.log(xp.exp(y).sum(axis=axis, keepdims=True))
    return y, lambda dy: dy - xp.exp(y) * dy.sum(axis=axis, keepdims=True)
