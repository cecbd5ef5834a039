"""Is this pullback the transpose of that derivative?

For y = f(x), any direction v and any cotangent g,

    ⟨g, f′(x) v⟩ = ⟨f′(x)ᵀ g, v⟩.

The left side is measured, by a central difference: f′(x) v ≈ (f(x + εv) − f(x − εv)) / 2ε, whose error is O(ε²) from
the curve and about 10⁻¹⁶/ε from rounding, so ε = 10⁻⁶ in float64 leaves some 10⁻¹⁰ of y. The right side is what
``backward`` says. One number on each side tests all elements at once, if g and v are random: with g = 1, as many
checks choose it, the softmax and layer norm of anything have derivative zero, and any multiple of the right gradient
would pass.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minivit.autograd import Parameter, Tensor, no_grad
from minivit.backend import Array, array_module, to_device
from minivit.random import generator


class GradcheckError(AssertionError):
    """A gradient disagrees with the function, or a rule of ops is broken; the message says where."""


def gradcheck(
    f: Callable[..., Tensor],
    *inputs: Any,
    parameters: Mapping[str, Parameter] | None = None,
    seed: int = 0,
    eps: float = 1e-6,
    tolerance: float = 1e-7,
) -> float:
    """Compare the gradient of ``f(*inputs)`` with central differences; return the worst relative error.

    Floating-point arrays (or Tensors) among ``inputs`` are differentiated, all else (labels, options) is passed on;
    ``parameters`` (``dict(model.named_parameters())``) are differentiated too. ``f`` returns one Tensor of any shape
    and must give the same value each time. The error of one argument is |measured − pulled back| relative to
    max(‖gradient‖, |measured|, 10⁻² ‖g‖ ‖y‖): the last is the floor under which rounding would be compared.

    Also checked: that gradients are there, with the arguments' shapes; that nothing given is written to; that the
    last op's pullback gives the same answer twice; that value and gradients repeat; that the value is the same under
    ``no_grad``.

    Raises TypeError for float32 (its rounding hides errors of 1 %) and for several results, GradcheckError (an
    AssertionError) with the argument, the worst element, the expected and the given number.

    >>> from minivit.ops import gelu
    >>> gradcheck(gelu, np.array([-1.0, 0.0, 2.0])) < 1e-7
    True
    """
    arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
    named = {f"argument {i}": x for i, x in enumerate(arrays) if _is_float(x)}
    parameters = parameters or {}
    for name, x in [*named.items(), *parameters.items()]:
        if x.dtype != np.float64:
            raise TypeError(f"gradcheck needs float64, but {name} is {x.dtype}: rounding would hide what it looks for")
    if not named and not parameters:
        raise TypeError("gradcheck found nothing to differentiate: no floating-point array among the inputs")
    rng = generator(seed, "gradcheck")
    constants = [Tensor(x) if _is_float(x) else x for x in arrays]
    before = {name: x.copy() for name, x in named.items()} | {name: p.data.copy() for name, p in parameters.items()}

    y, g, gradients = _backward(f, arrays, parameters, rng, None)
    again, _, repeated = _backward(f, arrays, parameters, rng, g)
    with no_grad():
        unrecorded = f(*constants).data
    for name, old in before.items():
        now = named[name] if name in named else parameters[name].data
        if not _same(old, now):
            raise GradcheckError(f"{name} was written to: ops may only write to arrays they allocated")
        if not _same(gradients[name], repeated[name]):
            raise GradcheckError(f"the gradient of {name} differs between two runs")
    if not _same(y, again) or not _same(y, unrecorded):
        raise GradcheckError("the value of the function differs between two runs, or under no_grad()")

    def measured(name: str, v: Array) -> float:
        """⟨g, (f(x + εv) − f(x − εv))⟩ / 2ε for a change of one argument."""
        values = []
        for step in (eps, -eps):
            moved = before[name] + step * v
            with no_grad():
                if name in named:
                    changed = [Tensor(moved) if f"argument {i}" == name else x for i, x in enumerate(constants)]
                    values.append(f(*changed).data)
                else:
                    parameters[name].data[...] = moved
                    values.append(f(*constants).data)
                    parameters[name].data[...] = before[name]
        return float((g * (values[0] - values[1])).sum()) / (2 * eps)

    floor = 1e-2 * _norm(g) * _norm(y)
    worst = 0.0
    for name, gradient in gradients.items():
        v = _direction(rng, gradient)
        expected, got = measured(name, v), float((gradient * v).sum())
        error = abs(expected - got) / (max(_norm(gradient), abs(expected), floor) or 1.0)
        if not error <= tolerance:  # NaN fails
            raise GradcheckError(
                f"the gradient of {name}, shape {gradient.shape}, is wrong: along a random direction expected "
                f"{expected:.9g}, got {got:.9g} (relative error {error:.2g}); {_worst(name, gradient, measured)}"
            )
        worst = max(worst, error)
    return worst


def _backward(f, arrays: list, parameters: Mapping[str, Parameter], rng, g: Array | None) -> tuple:
    """Value, cotangent, and the gradients by name, of one forward and backward pass."""
    tensors = {f"argument {i}": Tensor(x, requires_grad=True) for i, x in enumerate(arrays) if _is_float(x)}
    for p in parameters.values():
        p.grad = None
    y = f(*[tensors.get(f"argument {i}", x) for i, x in enumerate(arrays)])
    if not isinstance(y, Tensor):
        raise TypeError(f"gradcheck needs a function of one result, a Tensor, got a {type(y).__name__}: join them")
    if g is None:
        g = array_module(y.data).asarray(rng.standard_normal(y.shape))
    if y.node is None:
        raise GradcheckError("the result does not depend on any of the arguments through recorded ops")
    kept = g.copy()
    first, second = y.node.pullback(g), y.node.pullback(g)
    pairs = zip(first, second) if isinstance(first, tuple) else [(first, second)]
    if not all(a is None or _same(a, b) for a, b in pairs):
        raise GradcheckError(f"the pullback of {y.node.op} gives another answer when it is called again")
    y.backward(g)
    if not _same(g, kept):
        raise GradcheckError("a pullback wrote to the cotangent it was given")
    gradients = {name: x.grad for name, x in [*tensors.items(), *parameters.items()]}
    for name, gradient in gradients.items():
        if gradient is None:
            raise GradcheckError(f"{name} received no gradient")
    for p in parameters.values():
        p.grad = None
    return y.data, g, gradients


def _direction(rng: np.random.Generator, like: Array) -> Array:
    """A random unit vector v with every |v_i| ≥ 1/(3√n), so that no element is overlooked."""
    v = rng.choice([-1.0, 1.0], like.shape) * rng.uniform(0.5, 1.5, like.shape)
    return array_module(like).asarray(v / (np.linalg.norm(v) or 1.0))


def _worst(name: str, gradient: Array, measured: Callable[[str, Array], float], most: int = 1000) -> str:
    """Where the gradient is furthest off, of at most ``most`` elements, measured one by one."""
    given = to_device(gradient, "cpu").ravel()
    differences = []
    for i in range(min(given.size, most)):
        unit = np.zeros(given.size)
        unit[i] = 1.0
        expected = measured(name, array_module(gradient).asarray(unit.reshape(gradient.shape)))
        differences.append((abs(expected - given[i]), i, expected))
    _, i, expected = max(differences)
    index = ", ".join(str(int(k)) for k in np.unravel_index(i, gradient.shape))
    return f"worst at element [{index}]: expected {expected:.9g}, got {given[i]:.9g}"


def _is_float(x: Any) -> bool:
    return hasattr(x, "dtype") and x.dtype.kind == "f" and hasattr(x, "shape")


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def _norm(x: Array) -> float:
    return float((x * x).sum()) ** 0.5
