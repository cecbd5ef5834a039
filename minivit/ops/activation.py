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
def sigmoid(x):
    """y = 1 / (1 + e^(−x)), a gate between 0 and 1: dy/dx = y (1 − y).

    Computed from e^(−|x|), which cannot overflow: for x < 0 it is e^x / (1 + e^x).

    >>> sigmoid(Tensor([0.0, -1000.0])).numpy()
    array([0.5, 0. ], dtype=float32)
    """
    xp = array_module(x)
    power = xp.exp(-xp.abs(x))
    y = xp.where(x < 0, power, 1) / (1 + power)
    return y, lambda dy: dy * (y * (1 - y))


@op
def gelu(x, approximate="none"):
    """x · Φ(x), with Φ the normal distribution function (Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    - ``"none"``: exact, the form of ViT, DeiT and MAE. d/dx x Φ(x) = Φ(x) + x φ(x), with the density
      φ(x) = e^(−x²/2) / √(2π).
    - ``"tanh"``: ½ x (1 + tanh u), u = √(2/π) (x + 0.044715 x³), which differs from the exact form by up to 4.8e-4. Its
      derivative is ½ (1 + tanh u) + ½ x (1 − tanh² u) u′ with u′ = √(2/π) (1 + 3 · 0.044715 x²).

    The slope is computed on the way forward, where e^(−x²/2) is at hand, and is all that is kept. Two dozen passes over
    x are needed: they are made block by block, while the block is in the cache.
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
    """Write x Φ(x) to ``y`` and its derivative Φ(x) + x φ(x) to ``slope``. NumPy has no erf, so Φ is computed here.

    For a = |x| the tail is Φ(−a) = φ(a) M(t): M varies slowly in t = k / (k + a) ∈ (0, 1], and is a polynomial here.
    Then Φ(x) = |Φ(−a) − [x > 0]|. The coefficients are fitted to the tail, weighted by max(1, a) as its errors end in
    x Φ(x), and k makes the float32 polynomial, of degree 5, as good as it can be: within 1.8e-8, so that rounding is
    what remains. For float64, degree 15 is within 1e-16.
    """
    xp = array_module(x)
    coefficients = _TAIL_FLOAT64 if x.dtype.itemsize == 8 else TAIL_FLOAT32
    t = xp.abs(x)
    t += K
    xp.divide(K, t, out=t)
    tail = xp.multiply(t, coefficients[-1], out=y)  # in the memory of y, as the density in that of the slope
    for c in coefficients[-2:0:-1]:
        tail += c
        tail *= t
    tail += coefficients[0]
    density = xp.multiply(x, x, out=slope)
    density *= -0.5
    xp.exp(density, out=density)
    density *= 1 / math.sqrt(2 * math.pi)
    tail *= density
    tail -= x > 0
    xp.abs(tail, out=y)
    if slope is not None:
        slope *= x
        slope += y
    y *= x


def _gelu_tanh(x: Array, y: Array, slope: Array | None) -> None:
    """Write the tanh form to ``y`` and its derivative to ``slope``."""
    c = math.sqrt(2 / math.pi)
    th = array_module(x).tanh(c * (x + 0.044715 * x * x * x))
    if slope is not None:
        slope[...] = 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * (c * (1 + 3 * 0.044715 * x * x))
    y[...] = 0.5 * x * (1 + th)


_GELU = {"none": _gelu_exact, "tanh": _gelu_tanh}
K = 3.16
TAIL_FLOAT32 = (0.01614218, 0.16978242, 0.86604849, -0.78789856, 1.3243915, -0.3351519)
_TAIL_FLOAT64 = (
    3.496187233913919e-06, 0.3163341033245354, 0.31826954469044677, 0.26885321015610314, 0.3146411371705824,
    -0.25422017595688784, 1.254242412753788, -2.8363824807550846, 4.9250261785447975, -6.638888085561476,
    6.446772242328317, -4.394764135709089, 2.0678384408613852, -0.6448290373914027, 0.12075029642927525,
    -0.010333009757024593,
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
