"""The engine: Tensors that remember how they were made, and one walk back through their history.

An op is a plain function of arrays that returns ``(value, pullback)``. With y = f(x) and a scalar loss L, write
dy for ∂L/∂y, an array of y's shape (its *cotangent*). ``pullback(dy)`` returns dx for every array argument, that is
the transposed derivative of f applied to dy: the chain rule, one step back. ``@op`` lifts such a function from
arrays to Tensors and records the call:

    x ──▶ f ──▶ y          y.node.parents  = (x.node,)
    dx ◀─ pullback ◀─ dy   y.node.pullback = the closure that f returned

The graph is made of nodes, and nodes hold no data: what the pullback mentions is exactly what the forward pass keeps
alive. Everything else in this file is bookkeeping: ``backward`` walks from the loss to its ancestors, youngest first,
and adds up what arrives.

An op may return a tuple of values, where they are cheaper to compute together; its pullback takes a cotangent for each.
Every result has a node, and between these and the arguments stands the node of the call:

    x ──▶ f ──▶ y, z       dx ◀─ pullback ◀─ (dy, dz) ◀┬─ (dy, None) ◀─ dy
                                                       └─ (None, dz) ◀─ dz
"""

import functools
import heapq
import inspect
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minivit.backend import Array, array_module, device_of, implementation, to_device

_births = itertools.count()


class _State(threading.local):
    enabled = True  # False inside no_grad
    wanted: tuple[bool, ...] | None = None  # of the op that is running now: which arguments need a cotangent?
    anomaly = False  # inside detect_anomaly


_state = _State()


class Node:
    """One recorded call of an op: where its result came from, and how to pull a cotangent back through it."""

    __slots__ = ("birth", "dtype", "op", "parents", "pullback", "shape")

    def __init__(self, op: str, value: Array, parents: tuple, pullback: Callable):
        self.birth = next(_births)  # an input is born before its output: birth order is a topological order
        self.op = op
        self.shape, self.dtype = value.shape, value.dtype  # tuples, where the op has several results
        self.parents = parents  # for each argument its Node, the Tensor itself where it is a leaf, or None
        self.pullback = pullback


class Several(tuple):
    """The values of an op with several results, or their cotangents: None where none has arrived."""

    shape = property(lambda self: tuple(value.shape for value in self))
    dtype = property(lambda self: tuple(value.dtype for value in self))

    def __add__(self, other: "Several") -> "Several":
        return Several(y if x is None else x if y is None else x + y for x, y in zip(self, other))

    def filled(self, like: Node) -> Iterator[Array]:
        """With zeros for a result that the loss does not depend on."""
        xp = array_module(next(dy for dy in self if dy is not None))
        return (xp.zeros(*kind) if dy is None else dy for dy, *kind in zip(self, like.shape, like.dtype))


class Tensor:
    """An array of floating-point numbers in a graph of computations.

    ``data`` is the raw array; Python numbers and lists become float32. ``grad`` is an array of the same shape, added
    to by ``backward``, on Tensors that were made with ``requires_grad=True`` (all Parameters); None before.

    Raises TypeError for integers and booleans: labels and indices have no derivative and stay plain arrays.

    >>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4., 6.], dtype=float32)
    """

    __array_ufunc__ = None  # NumPy array + Tensor asks Tensor.__radd__, instead of adding elements one by one
    __slots__ = ("__weakref__", "data", "grad", "node", "requires_grad")

    def __init__(self, data: Any, requires_grad: bool = False):
        if isinstance(data, Tensor):
            raise TypeError("Tensor needs an array or numbers, got a Tensor: use .detach()")
        if not hasattr(data, "dtype"):
            data = np.asarray(data)
            data = data.astype(np.float32) if data.dtype.kind == "f" else data
        data = np.asarray(data) if isinstance(data, np.generic) else data  # of a full reduction NumPy gives a scalar
        if data.dtype.kind != "f" and data.dtype.name != "bfloat16":
            raise TypeError(
                f"a Tensor holds floating-point numbers, got {data.dtype}: convert with .astype(np.float32); "
                "labels and indices are given as plain arrays"
            )
        self.data = data
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.node: Node | None = None  # None for a leaf: a Tensor that no recorded op made

    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)
    device = property(lambda self: device_of(self.data))

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        made_by = f", op={self.node.op}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        return f"{type(self).__name__}({np.array2string(to_device(self.data, 'cpu'), separator=', ')}{made_by})"

    def item(self) -> float:
        """The value of a Tensor of one element, as a Python float."""
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The value as a NumPy array, copied from the GPU where it is there."""
        return to_device(self.data, "cpu")

    def detach(self) -> "Tensor":
        """The same data, without history: no gradient flows through it."""
        return Tensor(self.data)

    def backward(self, gradient: Array | None = None, into: "dict[Tensor, Array] | None" = None) -> None:
        """Add ∂L/∂x to ``x.grad`` for every leaf x with ``requires_grad`` that this Tensor was computed from.

        ``gradient`` is ∂L/∂self; without it, self must be a single number, the loss L, and ∂L/∂L = 1. The graph is
        freed on the way, so memory falls as the walk proceeds, and a graph serves one backward. With ``into`` no
        ``.grad`` is touched: gradients are added to the arrays of that dict, by leaf, and leaves that it lacks are put
        in. So threads can go back through graphs of their own to the same Parameters.

        Raises ValueError for a non-scalar loss or a gradient of another shape, RuntimeError where there is nothing
        to go back through, or where the graph has been freed already.
        """
        if not self.requires_grad:
            raise RuntimeError("backward() has nothing to do: no input of this computation has requires_grad=True")
        if gradient is None and self.size != 1:
            raise ValueError(
                f"backward() starts from a single number, the loss; this Tensor has shape {self.shape}: "
                "reduce it with .sum() or .mean(), or pass gradient="
            )
        gradient = array_module(self.data).ones_like(self.data) if gradient is None else gradient
        if gradient.shape != self.shape:
            raise ValueError(f"gradient has shape {gradient.shape}, the Tensor {self.shape}")

        if self.node is None:
            return _accumulate(self, gradient, into)
        arrived = {self.node.birth: gradient}  # cotangents on their way, by birth
        waiting = [(-self.node.birth, self.node)]  # a heap: the youngest first, so all that flows into it has arrived
        while waiting:
            _, y = heapq.heappop(waiting)
            dy = arrived.pop(y.birth)
            cotangents, parents = _pull_back(y, dy), y.parents
            y.pullback, y.parents = _freed, ()
            for x, dx in zip(parents, cotangents):
                if x is None:
                    continue
                if not isinstance(dx, Several):
                    dx = unbroadcast(dx, x.shape).astype(x.dtype, copy=False)  # half where the value was half
                if isinstance(x, Tensor):  # a leaf: added at once, while dx is in the cache
                    _accumulate(x, dx, into)
                elif x.birth in arrived:
                    arrived[x.birth] = arrived[x.birth] + dx  # not in place: dx may be shared with another branch
                else:
                    arrived[x.birth] = dx
                    heapq.heappush(waiting, (-x.birth, x))


class Parameter(Tensor):
    """A Tensor that is trained: ``requires_grad`` is True, and Modules find it among their attributes."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True):
        super().__init__(data, requires_grad)


class Buffer(Parameter):
    """State that belongs to the weights, but is not trained: the running estimates of BatchNorm.

    It is saved, loaded, moved, converted and sent to other ranks as Parameters are, and stands among them in
    ``named_parameters``; it has no gradient, no optimizer changes it, and ``num_parameters`` leaves it out. Layers
    write to its ``data`` in place.

    >>> Buffer([0.0, 1.0])
    Buffer([0., 1.])
    """

    __slots__ = ()

    def __init__(self, data: Any):
        super().__init__(data, requires_grad=False)


def op(function: Callable) -> Callable:
    """Lift ``function(*arrays, **options) -> (value, pullback)`` from arrays to Tensors, and record the calls.

    ``pullback(dy)``, or ``pullback(dy, dz)`` where the value is a tuple of two, returns one cotangent for each of the
    leading positional arguments (a lone one need not be a tuple; None where nothing flows). A cotangent may have the
    broadcast shape: the walk back sums it. Arguments that are plain arrays or numbers are constants. The function
    itself stays available as ``.raw``; on a GPU, a fused kernel may stand in for it.

    >>> @op
    ... def scale(x, factor):
    ...     return x * factor, lambda dy: dy * factor
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> scale(x, 3.0).sum().backward()
    >>> x.grad
    array([3., 3.], dtype=float32)
    """
    name = function.__name__

    @functools.wraps(function)
    def lifted(*args, **options):
        if any(isinstance(option, Tensor) for option in options.values()):  # linear(x, w, bias=b)
            bound = inspect.signature(function).bind(*args, **options)
            args, options = bound.args, bound.kwargs
        raw = [_raw(arg) for arg in args]
        _check_devices(name, raw)
        wanted = tuple(_state.enabled and isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        needed = any(wanted)
        outer, _state.wanted = _state.wanted, wanted
        try:
            value, pullback = implementation(function, *raw[:2])(*raw, **options)
        finally:
            _state.wanted = outer
        parents = tuple(map(_origin, args)) if needed else None
        if not isinstance(value, tuple):
            return _result(name, value, parents, pullback)
        places, call = range(len(value)), (Node(name, Several(value), parents, pullback),) if needed else None
        puts = (lambda dy, i=i: (Several(dy if k == i else None for k in places),) for i in places)
        return tuple(_result(name, part, call, put) for part, put in zip(value, puts))

    lifted.raw = function
    return lifted


def _result(name: str, value: Array, parents: tuple | None, pullback: Callable) -> Tensor:
    """A Tensor, with its history where there is one."""
    if _state.anomaly:
        _check_finite(f"the forward pass of {name}", value)
    y = Tensor(value, requires_grad=parents is not None)
    if parents is not None:
        y.node = Node(name, y.data, parents, pullback)
    return y


def recording() -> bool:
    """Inside an op: will this call be recorded? If not, what only the pullback needs may be skipped."""
    return _state.wanted is None or any(_state.wanted)


def wanted(argument: int) -> bool:
    """Inside an op: will a cotangent of this argument (0, 1, …) be asked for? If not, the pullback may give None.

    The images at the input of a network want none, nor do frozen weights.
    """
    return _state.wanted is None or (argument < len(_state.wanted) and _state.wanted[argument])


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside: nothing is recorded, and nothing but results is kept.

    >>> x = Tensor([2.0], requires_grad=True)
    >>> with no_grad():
    ...     y = x * x
    >>> y.requires_grad
    False
    """
    outer, _state.enabled = _state.enabled, False
    try:
        yield
    finally:
        _state.enabled = outer


def grad_enabled() -> bool:
    """Outside of ``no_grad``?

    >>> with no_grad():
    ...     grad_enabled()
    False
    """
    return _state.enabled


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Inside: the first NaN or infinity raises FloatingPointError with the op and the direction it came from. Slow.

    >>> with detect_anomaly(), np.errstate(divide="ignore"):
    ...     Tensor([0.0]).log()
    Traceback (most recent call last):
    FloatingPointError: 1 of 1 values are not finite in the forward pass of log
    """
    outer, _state.anomaly = _state.anomaly, True
    try:
        yield
    finally:
        _state.anomaly = outer


def unbroadcast(dx: Array, shape: tuple[int, ...]) -> Array:
    """Sum ``dx`` over the axes along which an argument of ``shape`` was broadcast.

    Broadcasting copies x along an axis; each copy receives its own cotangent; x receives their sum.

    >>> unbroadcast(np.ones((2, 3)), (3,))
    array([2., 2., 2.])
    """
    if dx.shape == shape:
        return dx
    leading = dx.ndim - len(shape)
    if leading < 0 or any(n not in (1, m) for n, m in zip(shape, dx.shape[leading:])):
        raise ValueError(f"a pullback gave a cotangent of shape {dx.shape} for an argument of shape {shape}")
    stretched = tuple(leading + i for i, n in enumerate(shape) if n == 1)
    if stretched:
        return dx.sum(axis=tuple(range(leading)) + stretched, keepdims=True).reshape(shape)
    rows = dx.reshape(-1, math.prod(shape))
    return implementation(sum_of_rows, rows)(rows).reshape(shape)


def sum_of_rows(rows: Array) -> Array:
    """Σ over the first axis of a matrix: as a product, a sum runs at BLAS speed.

    >>> sum_of_rows(np.ones((3, 2)))
    array([3., 3.])
    """
    return array_module(rows).ones(len(rows), rows.dtype) @ rows


def _origin(arg: Any) -> "Node | Tensor | None":
    return (arg.node or arg) if isinstance(arg, Tensor) and arg.requires_grad else None


def _pull_back(y: Node, dy: Array) -> tuple:
    cotangents = y.pullback(*dy.filled(y)) if isinstance(dy, Several) else y.pullback(dy)
    if not isinstance(cotangents, tuple):
        cotangents = (cotangents,)
    cotangents += (None,) * (len(y.parents) - len(cotangents))
    for i, (x, dx) in enumerate(zip(y.parents, cotangents)):
        if x is not None and dx is None:
            raise TypeError(
                f"{y.op} is not differentiable in argument {i}, which was given a Tensor with requires_grad"
            )
    if _state.anomaly:
        for dx in cotangents:
            if dx is not None and not isinstance(dx, Several):
                _check_finite(f"the backward pass of {y.op}", dx)
    return cotangents


def _freed(*cotangents):
    raise RuntimeError("backward() went through this graph before, and freed it: compute the loss again")


def _accumulate(x: Tensor, dx: Array, into: dict[Tensor, Array] | None) -> None:
    total = x.grad if into is None else into.get(x)
    if total is None:
        total = array_module(x.data).array(dx, x.dtype)  # a copy: dx may be shared with another Tensor
    else:
        total += dx  # in place: it may be a view into an optimizer's flat buffer
    if into is None:
        x.grad = total
    else:
        into[x] = total


def _raw(arg):
    if isinstance(arg, Tensor):
        return arg.data
    return arg.item() if isinstance(arg, np.generic) else arg  # np.float64(2) would turn float32 into float64


def _check_devices(name: str, args: list) -> None:
    arrays = [arg for arg in args if hasattr(arg, "dtype")]
    if len({type(array) for array in arrays}) > 1:
        devices = ", ".join(device_of(array) for array in arrays)
        raise TypeError(f"the arguments of {name} are on different devices ({devices}): move them with .to(device)")


def _check_finite(where: str, value: Array) -> None:
    bad = int((~array_module(value).isfinite(value)).sum())
    if bad:
        raise FloatingPointError(f"{bad} of {value.size} values are not finite in {where}")
