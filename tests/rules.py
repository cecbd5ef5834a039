"""What every op promises, whatever it computes. Each rule takes an op and a Case, and raises if it is broken."""

import functools
from collections.abc import Callable

import numpy as np

from minivit import Tensor, gradcheck, ops
from minivit.autograd import unbroadcast
from minivit.training import Layout
from tests.strategies import Case, is_float
from tests.twins import FORMULAS, TWINS


def one_result(op: Callable) -> Callable:
    """An op with several results as an op with one: their numbers side by side. Any other op is itself."""
    if op.__name__ not in SEVERAL:
        return op

    @functools.wraps(op)
    def joined(*args, **options):
        return ops.concatenate(*(y.reshape(-1) for y in op(*args, **options)))

    def raw(*args, **options):
        values, pullback = op.raw(*args, **options)
        ends = np.cumsum([y.size for y in values])[:-1]

        def pullback_of_parts(dy):
            return pullback(*(part.reshape(y.shape) for part, y in zip(np.split(dy, ends), values, strict=True)))

        return np.concatenate([y.ravel() for y in values]), pullback_of_parts

    joined.raw = raw
    return joined


def gradient_is_right(op: Callable, case: Case) -> float:
    """The pullback is the transpose of the derivative; the relative error is returned."""
    return gradcheck(lambda *args: op(*args, **case.options), *case.args)


def float32_stays_float32(op: Callable, case: Case) -> None:
    """float32 in, float32 out: in the value and in all cotangents.

    There is one cotangent of the right shape for each array of numbers, none for labels and indices, and no more.
    """
    case = case.astype(np.float32)
    value, pullback = op.raw(*case.args, **case.options)
    cotangents = pull_back(pullback, cotangent(value))
    assert value.dtype == np.float32
    assert len(cotangents) <= len(case.args)
    for x, dx in zip(case.args, cotangents):
        if is_float(x):
            assert dx.dtype == np.float32
            assert unbroadcast(dx, x.shape).shape == x.shape
        elif isinstance(x, np.ndarray):
            assert dx is None


def nothing_is_written_to(op: Callable, case: Case) -> None:
    """Neither an argument nor the incoming cotangent, which are read-only here; so a second call repeats the first."""
    assert not any(x.flags.writeable for x in case.args if is_float(x))
    value, pullback = op.raw(*case.args, **case.options)
    dy = cotangent(value)
    dy.flags.writeable = False
    for first, second in zip(pull_back(pullback, dy), pull_back(pullback, dy)):
        np.testing.assert_array_equal(first, second)


def agrees_with_its_twin(op: Callable, case: Case) -> None:
    """The same function by other means (``tests/twins.py``) has the same value, and the same gradients if it can."""
    name = op.__name__
    if name in FORMULAS:
        values = [op.raw(*case.args, **case.options)[0]], [np.asarray(FORMULAS[name](*case.args, **case.options))]
    else:
        values = value_and_gradients(op, case), value_and_gradients(TWINS[name], case)
    for ours, theirs in zip(*values):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def large_numbers_do_not_overflow(op: Callable, case: Case) -> None:
    """An op with a softmax in it takes numbers whose exponentials are beyond float32: only differences matter."""
    first, *others = case.astype(np.float32).args
    value, pullback = op.raw(100 * first, *others, **case.options)
    for x in (value, *pull_back(pullback, cotangent(value))):
        assert x is None or np.isfinite(x).all()


def ties_share(amax: Callable, case: Case) -> None:
    """The maximum of x and of x lowered in places is that of x, though some of the largest elements are there twice."""
    (x,), axis = case.args, case.options["axis"]
    lowered = np.sign(cotangent(x)).clip(0)
    reduced = range(x.ndim) if axis is None else np.atleast_1d(axis)
    if len(reduced):
        gradcheck(lambda x: amax(ops.concatenate(x, x - lowered, axis=int(reduced[0])), **case.options), x)


def the_first_of_equals_wins(max_pool: Callable, case: Case) -> None:
    """Of equal pixels the first in the window gets the cotangent: as if each were a little larger than the next."""
    (x,) = case.args
    signs = np.sign(x)
    lowered = signs - 1e-3 * np.arange(x.size).reshape(x.shape) / x.size
    y, pullback = max_pool.raw(signs, **case.options)
    dy = cotangent(y)
    np.testing.assert_array_equal(pullback(dy), max_pool.raw(lowered, **case.options)[1](dy))


def nothing_unwanted_is_computed_or_kept(op: Callable, case: Case) -> None:
    """A factor's cotangent needs the other factor only: alone, it is the same; its own factor dies."""
    for i, x in enumerate(case.args):
        if not is_float(x):
            continue
        args = [Tensor(a, requires_grad=j == i) if is_float(a) else a for j, a in enumerate(case.args)]
        y = op(*args, **case.options)
        dy, pullback = cotangent(y.data), y.node.pullback
        cotangents, complete = pullback(dy), op.raw(*case.args, **case.options)[1](dy)
        np.testing.assert_allclose(cotangents[i], complete[i], rtol=1e-9, atol=1e-12)
        assert all(cotangents[j] is None for j in PRODUCTS[op.__name__] if j != i)
        assert not any(np.may_share_memory(x, array) for array in kept(pullback))


def the_cut_does_not_matter(op: Callable, case: Case) -> None:
    """An op over the whole batch gives the same numbers where two threads have a part of the batch each.

    Gradients of weights are summed over the parts; mean, biased variance and count are told to each, of the whole.
    """
    x, *others = case.args
    y, pullback = op.raw(*case.args, **case.options)
    dy, told = cotangent(y), []

    def part(worker: int, piece: slice) -> list[np.ndarray]:
        y, pullback = op.raw(x[piece], *others, **case.options, report=lambda *numbers: told.append(numbers))
        return [y, *pullback(dy[piece])]

    with Layout(workers=2) as layout:
        parts = list(zip(*layout.map(part, len(x), together=True)))
    together = [*map(np.concatenate, parts[:2]), *map(sum, parts[2:])]
    for ours, theirs in zip(together, [y, *pullback(dy)], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    axes = (0, *range(2, x.ndim))
    assert len(told) == len(parts[0])
    for mean, var, n in told:
        np.testing.assert_allclose(mean, x.mean(axes), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(var, x.var(axes), rtol=1e-9, atol=1e-12)
        assert n.tolist() == [x.size // x.shape[1]]


FACTORS = (0, 1)  # which arguments are
PRODUCTS = {"conv2d": FACTORS, "linear": FACTORS, "matmul": FACTORS, "mlp": (0, 1, 3), "rotate": FACTORS}
SEVERAL = {"add_layer_norm"}
WITH_SOFTMAX = {"cross_entropy", "log_softmax", "scaled_dot_product_attention", "self_attention", "softmax"}
OVER_THE_BATCH = {"batch_norm"}


def check(op: Callable, case: Case) -> float:
    """All of the rules; the relative error of the gradient is returned."""
    op = one_result(op)
    error = gradient_is_right(op, case)
    agrees_with_its_twin(op, case)
    float32_stays_float32(op, case)
    nothing_is_written_to(op, case)
    if op.__name__ in WITH_SOFTMAX:
        large_numbers_do_not_overflow(op, case)
    if op.__name__ in PRODUCTS:
        nothing_unwanted_is_computed_or_kept(op, case)
    if op.__name__ in OVER_THE_BATCH:
        the_cut_does_not_matter(op, case)
    if op.__name__ == "max_pool2d":
        the_first_of_equals_wins(op, case)
    if op.__name__ == "amax":
        ties_share(op, case)
    return error


def value_and_gradients(f: Callable[..., Tensor], case: Case) -> list[np.ndarray]:
    tensors = [Tensor(x, requires_grad=True) if is_float(x) else x for x in case.args]
    y = f(*tensors, **case.options)
    y.backward(cotangent(y.data))
    return [y.data, *(x.grad for x in tensors if isinstance(x, Tensor))]


def cotangent(value: np.ndarray) -> np.ndarray:
    """A random array like ``value``, the same for equal shapes."""
    return np.asarray(np.random.default_rng(0).standard_normal(value.shape), value.dtype)


def pull_back(pullback: Callable, dy: np.ndarray) -> tuple:
    cotangents = pullback(dy)
    return cotangents if isinstance(cotangents, tuple) else (cotangents,)


def kept(pullback: Callable) -> list[np.ndarray]:
    """The arrays that a pullback mentions, itself or by way of a function that it calls: these stay in memory."""
    contents = [cell.cell_contents for cell in pullback.__closure__ or ()]
    arrays = [x for x in contents if isinstance(x, np.ndarray)]
    return arrays + [x for f in contents if hasattr(f, "__closure__") for x in kept(f)]
