"""A strict twin of CuPy: NumPy does the arithmetic, and what CuPy would refuse is refused.

So a machine without a GPU catches what would fail on one. The twin is the module ``twin``, known to Python as
``cupy_twin``; ``installed()`` puts it where the engine looks for CuPy, and ``minivit`` then finds it by itself:

    with installed():
        model.to("cuda")

It has the names, parameters and methods of CuPy 14.2 that NumPy has too (``cupy_names.json``; see ``cupy_names.py``),
and no others. Like CuPy,

- it never turns an array into NumPy's by itself: ``np.asarray(x)``, ``np.sum(x)`` and ``np.sqrt(x)`` raise TypeError,
- it does not mix: an operator or function with a NumPy array raises TypeError, an assignment ValueError,
- a full reduction and ``x[0]`` give arrays of no axes, not NumPy's scalars,
- ufuncs take no ``where=`` and no lists, and there are no objects, strings or long doubles,
- new results have their rows in memory one after another, whatever the order of the arguments,
- an array belongs to a device, and is used on that device,
- it says nothing of divisions by zero and overflow.

In three things it is stricter than CuPy, which would give wrong or slow results without a word: a NumPy floating-point
scalar in arithmetic (its type would decide the precision), an out= that overlaps an input in memory, and a NumPy array
as index (it would be copied each time).

What makes the host wait for the GPU is counted by cause: ``counted()`` shows it, ``forbid_synchronisation()`` refuses.
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minivit.backend import formulas_only
from tests.cupy_cuda import Device, Stream, counted, current, forbid_synchronisation, namespace, synchronise
from tests.cupy_names import WINDOWS

__all__ = ["Device", "Stream", "counted", "forbid_synchronisation", "installed", "ndarray", "twin", "wrap"]

NAMES = json.loads(Path(__file__).with_name("cupy_names.json").read_text())
DTYPES = "?bhilqBHILQefdFDE"  # E: bfloat16, of ml_dtypes

# --- arrays ----------------------------------------------------------------------------------------------------------


def unsupported(value: Any) -> TypeError:
    return TypeError(f"Unsupported type {type(value)}")


def _host(value: Any) -> Any:
    """What NumPy is given in place of ``value``: for a twin's array the NumPy array behind it."""
    if isinstance(value, ndarray):
        if value._device != current.device:
            raise ValueError(
                f"The device where the array resides ({value._device}) is different from the current device "
                f"({current.device}). Peer access is unavailable between these devices."
            )
        return value._array
    if isinstance(value, (np.ndarray, np.inexact)):
        raise unsupported(value)
    if type(value) in (list, tuple):
        return type(value)(map(_host, value))
    return value


def _result(value: Any, *sources: Any) -> Any:
    """The twin of what NumPy gave; a view knows which of the ``sources`` it looks at."""
    if isinstance(value, (np.ndarray, np.generic)):
        return wrap(np.asarray(value), next((x for x in sources if _is_view(value, x)), None))
    if isinstance(value, (list, tuple)):
        return type(value)(_result(entry, *sources) for entry in value)
    return value


def _is_view(value: Any, x: Any) -> bool:
    return isinstance(x, ndarray) and isinstance(value, np.ndarray) and np.may_share_memory(value, x._array)


def wrap(array: np.ndarray, source: "ndarray | None" = None) -> "ndarray":
    """A twin's array that looks at the memory of a NumPy array: no copy, and read-only if that is."""
    if array.dtype.char not in DTYPES and array.dtype.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {array.dtype}")
    x = object.__new__(ndarray)
    x._array, x._device = array, current.device
    x.base = None if source is None else source if source.base is None else source.base
    return x


def _index(index: Any) -> tuple:
    """For NumPy, with an ellipsis at the end: so that ``x[0]`` of one axis is a view too, and no NumPy scalar."""
    entries = index if isinstance(index, tuple) else (index,)
    for entry in entries:
        if isinstance(entry, ndarray) and entry.dtype.kind == "b":
            synchronise("boolean mask")  # how many are there?
        elif isinstance(entry, (list, bool)):
            synchronise("index from the host")
    entries = tuple(map(_host, entries))
    return entries if any(entry is ... for entry in entries) else (*entries, ...)


class ndarray:
    """``cupy.ndarray``: shape, type and methods of a NumPy array, and none of its willingness."""

    __slots__ = ("__weakref__", "_array", "_device", "base")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape: Any, dtype: Any = float, memptr: None = None, strides: None = None, order: str = "C"):
        if memptr is not None or strides is not None:
            raise NotImplementedError("the twin makes no arrays from pointers")
        self._array, self._device, self.base = np.empty(shape, dtype, order), current.device, None

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        raise TypeError(f"numpy.{ufunc.__name__} was given {' and '.join(type(x).__module__ for x in inputs)} arrays")

    def __array_function__(self, function, types, args, options):
        raise TypeError(f"numpy.{function.__name__} was given an array of CuPy: use array_module(x)")

    shape = property(lambda x: x._array.shape)
    strides = property(lambda x: x._array.strides)
    dtype = property(lambda x: x._array.dtype)
    ndim = property(lambda x: x._array.ndim)
    size = property(lambda x: x._array.size)
    itemsize = property(lambda x: x._array.itemsize)
    nbytes = property(lambda x: x._array.nbytes)
    T = property(lambda x: _result(x._array.T, x))
    mT = property(lambda x: _result(x._array.mT, x))
    real = property(lambda x: _result(x._array.real, x))
    imag = property(lambda x: _result(x._array.imag, x))
    device = property(lambda x: Device(x._device))

    @property
    def flags(self) -> SimpleNamespace:
        own = self._array.flags
        return SimpleNamespace(c_contiguous=own.c_contiguous, f_contiguous=own.f_contiguous, owndata=self.base is None)

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=self._array.__array_interface__["data"][0], device_id=self._device)

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator["ndarray"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> "ndarray":
        return _result(_rows_first(_host(self)[_index(index)]), self)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, (np.ndarray, list, tuple)) and np.ndim(value):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        target = _host(self)
        target[_index(index)] = value if isinstance(value, np.generic) else _host(value)

    def get(self, stream=None, order="C", out=None, blocking=True) -> np.ndarray:
        synchronise("get")
        if out is None:
            return np.array(self._array, order=order)
        out[...] = self._array
        return out

    def set(self, arr: np.ndarray, stream=None) -> None:
        if not isinstance(arr, np.ndarray) or (arr.dtype, arr.shape) != (self.dtype, self.shape):
            raise TypeError(f"{type(arr)} cannot be set to an array of {self.dtype} and shape {self.shape}")
        synchronise("set")
        self._array[...] = arr

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True) -> "ndarray":
        if casting is not None or subok is not None:
            raise TypeError("casting and subok are not supported yet")
        new = _host(self).astype(dtype, order, copy=copy)
        return self if new is self._array else wrap(new)

    def __repr__(self) -> str:
        synchronise("repr")
        return repr(self._array)

    def __str__(self) -> str:
        synchronise("repr")
        return str(self._array)

    def __format__(self, form: str) -> str:
        synchronise("repr")
        return format(self._array, form)


# --- functions and methods, made from the list -----------------------------------------------------------------------

HOST = ("__bool__", "__complex__", "__float__", "__int__", "dump", "dumps", "item", "tobytes", "tofile", "tolist")
WAIT = ("argwhere", "bincount", "compress", "extract", "flatnonzero", "nonzero", "trim_zeros", "unique")
KEEP_ORDER = ("copy", "empty", "empty_like", "full", "full_like", "ones", "ones_like", "zeros", "zeros_like")
ARRAYS = set("a b x y v m z p ary arr array x1 x2 a1 a2 condition indices values weights".split())  # parameters


def _rows_first(value: Any) -> Any:
    """A new array's elements in the order of its rows, as CuPy makes them; views as they are."""
    if isinstance(value, np.ndarray) and value.base is None and not value.flags.c_contiguous:
        return value.copy(order="C")
    return value


def _lifted(name: str, parameters: str, function: Callable) -> Callable:
    """``function`` of NumPy for arrays of the twin, with CuPy's parameters."""
    signature = inspect.signature(eval(f"lambda {parameters}: None"))
    first = next(iter(signature.parameters), None)

    def lifted(*args, **options):
        given = signature.bind(*args, **options).arguments
        for parameter, value in given.items():
            if parameter in ARRAYS and (
                isinstance(value, (list, tuple))
                or (parameter == first != "condition" and not isinstance(value, ndarray))
            ):
                raise unsupported(value)
        if name in WAIT or (name == "where" and len(given) == 1):
            synchronise(name)
        with np.errstate(all="ignore"):
            value = function(*map(_host, args), **{key: _host(option) for key, option in options.items()})
        if given.get("out") is not None:
            return given["out"]
        if isinstance(value, (bool, int)) and first in ARRAYS and name != "size":  # allclose, count_nonzero
            value = np.asarray(value)
        flat = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg])]
        return _result(value if name in KEEP_ORDER else _rows_first(value), *flat)

    lifted.__name__, lifted.__signature__ = name, signature
    return lifted


def _method(name: str, parameters: str) -> Callable:
    lifted = _lifted(name, f"self, {parameters}" if parameters else "self", getattr(np.ndarray, name))

    def method(self, *args, **options):
        return lifted(self, *args, **options)

    method.__name__ = name
    return method


def _to_host(name: str, parameters: str = "") -> Callable:
    signature = inspect.signature(eval(f"lambda {parameters}: None"))

    def method(self, *args, **options):
        signature.bind(*args, **options)
        synchronise(name.strip("_"))
        return getattr(self._array, name)(*args, **options)

    return method


class ufunc:
    """``cupy.ufunc``: NumPy's, with fewer keywords, for arrays of the twin and Python numbers."""

    def __init__(self, name: str):
        self._ufunc = getattr(np, name)
        self.name, self.nin, self.nout = f"cupy_{name}", self._ufunc.nin, self._ufunc.nout

    def __repr__(self) -> str:
        return f"<ufunc {self.name!r}>"

    def __call__(self, *args, out=None, **options):
        if wrong := options.keys() - set(NAMES["ufunc keywords"]):
            raise TypeError(f"Wrong arguments {wrong}")
        if not self.nin <= len(args) <= self.nin + self.nout:
            raise TypeError(f"Wrong number of arguments for {self!r}: {len(args)}")
        args, outs = args[: self.nin], args[self.nin :] or (out if isinstance(out, tuple) else (out,))
        for x in args:
            if not isinstance(x, (ndarray, int, float, complex, np.integer, np.bool_)):
                raise unsupported(x)
        inputs, outputs = [_host(x) for x in args], [_host(x) for x in outs if x is not None]
        for y in outs:
            if not (y is None or isinstance(y, ndarray)):
                raise TypeError(f"Output arguments must be cupy.ndarray, got {type(y)}")
        for y in outputs:
            if any(isinstance(x, np.ndarray) and _overlap(x, y) for x in inputs):
                raise ValueError(f"{self.name} writes to memory that it still reads: on a GPU the result is chance")
        with np.errstate(all="ignore"):
            value = self._ufunc(*inputs, **options, **({"out": tuple(outputs)} if outputs else {"order": "C"}))
        return outs[0] if outputs else _result(value)


def _overlap(x: np.ndarray, y: np.ndarray) -> bool:
    """Do they share memory without being the same elements in the same places?"""
    same = x.ctypes.data == y.ctypes.data and (x.shape, x.strides) == (y.shape, y.strides)
    return not same and np.may_share_memory(x, y) and np.shares_memory(x, y)


UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}
BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "divmod": "divmod", "pow": "power", "matmul": "matmul", "and": "bitwise_and",
    "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift", "lt": "less",
    "le": "less_equal", "eq": "equal", "ne": "not_equal", "gt": "greater", "ge": "greater_equal",
}  # fmt: skip


def _operator(name: str, function: Callable) -> Callable:
    def operator(x, y):
        if getattr(y, "__array_ufunc__", True) is None:  # a Tensor: it is asked instead
            return NotImplemented
        if name.startswith("i"):
            return function(x, y, out=x)
        return function(y, x) if name.startswith("r") and name not in BINARY else function(x, y)

    return operator


def _asarray(a: Any, dtype: Any = None, order: str | None = None, copy: bool | None = None) -> ndarray:
    if isinstance(a, ndarray):  # from another device it is copied to the current one
        copy = copy if a._device == current.device else True
        new = np.array(a._array, dtype, order=order or "K", copy=copy)
        return a if new is a._array else wrap(new)
    synchronise("asarray")
    return wrap(np.array(a, dtype, order=order or "K"))


twin = ModuleType("cupy_twin", "The strict twin of CuPy.")


def _fill(module: ModuleType) -> None:
    for name in NAMES["same objects"]:
        if hasattr(np, name):
            setattr(module, name, getattr(np, name))
    for name, parameters in NAMES["functions"].items():
        if hasattr(np, name):
            setattr(module, name, _lifted(name, parameters, getattr(np, name)))
    for name in NAMES["ufuncs"]:
        if isinstance(getattr(np, name, None), np.ufunc):
            setattr(module, name, ufunc(name))
    for name, parameters in NAMES["ndarray methods"].items():
        if not hasattr(ndarray, name):
            setattr(ndarray, name, _to_host(name, parameters) if name in HOST else _method(name, parameters))
    for name in NAMES["ndarray operators"]:
        stem = name.strip("_")
        if stem in UNARY:
            function = getattr(module, UNARY[stem])
            setattr(ndarray, name, lambda x, function=function: function(x))
        elif stem in BINARY or (stem[0] in "ri" and stem[1:] in BINARY):
            setattr(ndarray, name, _operator(stem, getattr(module, BINARY.get(stem) or BINARY[stem[1:]])))
        elif name in HOST:
            setattr(ndarray, name, _to_host(name))
    module.__version__ = NAMES["version"]
    module.ndarray, module.ufunc = ndarray, ufunc
    module.asarray = lambda a, dtype=None, order=None, *, copy=None, blocking=False: _asarray(a, dtype, order, copy)
    module.array = lambda obj, dtype=None, copy=True, order="K", *, blocking=False: _asarray(obj, dtype, order, copy)
    module.asnumpy = lambda a: a.get() if isinstance(a, ndarray) else np.asarray(a)
    module.get_array_module = lambda *args: module if any(isinstance(x, ndarray) for x in args) else np
    module.cuda = namespace
    windows = _lifted(WINDOWS, NAMES["functions"][WINDOWS], np.lib.stride_tricks.sliding_window_view)
    module.lib = SimpleNamespace(stride_tricks=SimpleNamespace(sliding_window_view=windows))


_fill(twin)
ndarray.__module__ = ufunc.__module__ = "cupy_twin"  # where the engine looks for the functions of an array
sys.modules["cupy_twin"] = twin


@contextmanager
def installed() -> Iterator[ModuleType]:
    """Inside: ``import cupy`` gives the twin, and so does a move to "cuda". No kernel runs: formulas do."""
    with pytest.MonkeyPatch.context() as patch, formulas_only():
        patch.setitem(sys.modules, "cupy", twin)
        yield twin
