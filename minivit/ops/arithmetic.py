"""Elementwise arithmetic. The walk back sums over broadcast axes, so each pullback here is one line."""

from minivit.autograd import op
from minivit.backend import array_module


@op
def add(x, y):
    """z = x + y, broadcast: dx = dz and dy = dz.

    >>> add(Tensor([1.0, 2.0]), Tensor([10.0])).numpy()
    array([11., 12.], dtype=float32)
    """
    return x + y, lambda dz: (dz, dz)


@op
def sub(x, y):
    """z = x − y, broadcast: dx = dz and dy = −dz.

    >>> sub(Tensor([1.0, 2.0]), Tensor([10.0])).numpy()
    array([-9., -8.], dtype=float32)
    """
    return x - y, lambda dz: (dz, -dz)


@op
def mul(x, y):
    """z = x · y, elementwise and broadcast: each factor's cotangent is weighted by the other factor.

    >>> mul(Tensor([1.0, 2.0]), Tensor([10.0])).numpy()
    array([10., 20.], dtype=float32)
    """
    return x * y, lambda dz: (dz * y, dz * x)


@op
def div(x, y):
    """z = x / y, elementwise and broadcast: ∂z/∂x = 1/y and ∂z/∂y = −x/y² = −z/y.

    >>> div(Tensor([1.0, 2.0]), Tensor([10.0])).numpy()
    array([0.1, 0.2], dtype=float32)
    """
    z = x / y

    def pullback(dz):
        dx = dz / y
        return dx, -dx * z

    return z, pullback


@op
def scale(x, factor):
    """x · factor for a constant factor, a number or an array: no cotangent is computed for it.

    >>> scale(Tensor([1.0, 2.0]), 3.0).numpy()
    array([3., 6.], dtype=float32)
    """
    return x * factor, lambda dy: dy * factor


@op
def neg(x):
    """−x.

    >>> neg(Tensor([1.0, -2.0])).numpy()
    array([-1.,  2.], dtype=float32)
    """
    return -x, lambda dy: -dy


@op
def power(x, exponent):
    """x ** exponent for a constant number: d(xⁿ) = n xⁿ⁻¹ dx. Write x * x for a square: it is much faster.

    Raises TypeError for any other exponent.

    >>> power(Tensor([1.0, 4.0]), 0.5).numpy()
    array([1., 2.], dtype=float32)
    """
    if not isinstance(exponent, (int, float)):
        raise TypeError(f"power needs a number as exponent, got {type(exponent).__name__}")
    below = exponent - 1 if exponent else 0  # x⁰ has the slope 0 everywhere; x⁻¹ has none at 0
    return x**exponent, lambda dy: dy * (exponent * x**below)


@op
def exp(x):
    """y = eˣ, its own derivative: dx = dy · y.

    >>> exp(Tensor([0.0])).numpy()
    array([1.], dtype=float32)
    """
    y = array_module(x).exp(x)
    return y, lambda dy: dy * y


@op
def log(x):
    """ln x: dx = dy / x.

    >>> log(Tensor([1.0])).numpy()
    array([0.], dtype=float32)
    """
    return array_module(x).log(x), lambda dy: dy / x


@op
def sqrt(x):
    """y = √x: dy/dx = 1 / 2y.

    >>> sqrt(Tensor([4.0])).numpy()
    array([2.], dtype=float32)
    """
    y = array_module(x).sqrt(x)
    return y, lambda dy: dy / (2 * y)
