"""Elementwise nonlinearities, and softmax."""

import math

from minivit.autograd import op, recording
from minivit.backend import Array, array_module


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
    - ``"tanh"``: ½ x (1 + tanh u), u = √(2/π) (x + 0.044715 x³); its derivative is ½ (1 + tanh u) + ½ x (1 − tanh² u)
      u′ with u′ = √(2/π) (1 + 3 · 0.044715 x²). It differs from the exact form by up to 4.8e-4.

    The derivative is computed on the way forward, where e^(−x²/2) is at hand, and it is all that is kept.
    Raises ValueError for any other form.

    >>> gelu(Tensor([-1.0, 0.0, 1.0])).numpy().round(4)
    array([-0.1587,  0.    ,  0.8413], dtype=float32)
    """
    xp = array_module(x)
    if approximate == "none":
        density = xp.exp(-0.5 * x * x)
        cdf = _normal_cdf(x, density)
        if recording():
            slope = x * density
            slope *= 1 / math.sqrt(2 * math.pi)
            slope += cdf
        cdf *= x
        y = cdf
    elif approximate == "tanh":
        c = math.sqrt(2 / math.pi)
        th = xp.tanh(c * (x + 0.044715 * x * x * x))
        if recording():
            slope = 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * (c * (1 + 3 * 0.044715 * x * x))
        y = 0.5 * x * (1 + th)
    else:
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    return y, lambda dy: dy * slope


def _normal_cdf(x: Array, density: Array) -> Array:
    """Φ(x), given ``density`` = e^(−x²/2). NumPy has no erf, so this is one.

    For x ≥ 0 the tail is Φ(−x) = e^(−x²/2) P(s), where P varies slowly in s = 2 / (1 + x/5) − 1 ∈ (−1, 1]; the other
    half follows from Φ(x) = 1 − Φ(−x). P is a polynomial, fitted by least squares (in 50 digits, at 160 Chebyshev
    nodes, weighted by (1 + x) e^(−x²/2), so that x Φ(x) is even in error): degree 6 is within 4e-9 for float32,
    degree 15 within 1e-16 for float64.
    """
    xp = array_module(x)
    coefficients = _TAIL_FLOAT64 if x.dtype.itemsize == 8 else _TAIL_FLOAT32
    s = xp.abs(x)
    s *= 0.2
    s += 1
    xp.divide(2, s, out=s)
    s -= 1
    tail = coefficients[-1] * s
    for c in coefficients[-2:0:-1]:
        tail += c
        tail *= s
    tail += coefficients[0]
    tail *= density
    return xp.where(x > 0, 1 - tail, tail)


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
