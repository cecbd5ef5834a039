"""The twin refuses what CuPy refuses, offers what it offers, and sees the host wait; its list is read as it should."""

import json
import types

import numpy as np
import pytest
from hypothesis import given

from minivit import Tensor, backend
from minivit.autograd import op
from minivit.backend import array_module, cache_blocks, device_of, to_device
from tests import cupy_names
from tests.cupy_cuda import DEVICES, SynchronisationError
from tests.cupy_twin import NAMES, Device, Stream, counted, forbid_synchronisation, installed, ndarray, twin, wrap
from tests.strategies import arrays, shapes

HOST = np.arange(6, dtype=np.float32).reshape(2, 3)


def x():
    return wrap(HOST.copy())


def assign(target, index, value):
    target[index] = value


REFUSED = {
    "asarray": (lambda: np.asarray(x()), TypeError, "Implicit conversion to a NumPy array is not allowed"),
    "array": (lambda: np.array(x()), TypeError, "Implicit conversion"),
    "np.float32 of an array": (lambda: np.float32(x()), TypeError, "Implicit conversion"),
    "a function of NumPy": (lambda: np.sum(x()), TypeError, "numpy.sum was given an array of CuPy"),
    "a list in a function of NumPy": (lambda: np.stack([x(), x()]), TypeError, "numpy.stack was given"),
    "a ufunc of NumPy": (lambda: np.sqrt(x()), TypeError, "numpy.sqrt was given cupy_twin arrays"),
    "NumPy's norm": (lambda: np.linalg.norm(x()), TypeError, "numpy.norm was given"),
    "array + twin": (lambda: HOST + x(), TypeError, "numpy.add was given numpy and cupy_twin arrays"),
    "twin + array": (lambda: x() + HOST, TypeError, "Unsupported type <class 'numpy.ndarray'>"),
    "twin @ array": (lambda: x() @ HOST.T, TypeError, "Unsupported type"),
    "twin += array": (lambda: x().__iadd__(HOST), TypeError, "Unsupported type"),
    "twin == array": (lambda: x() == HOST, TypeError, "Unsupported type"),
    "twin == None": (lambda: x() == None, TypeError, "Unsupported type <class 'NoneType'>"),  # noqa: E711
    "twin * list": (lambda: x() * [1, 2, 3], TypeError, "Unsupported type <class 'list'>"),
    "twin * float64": (lambda: x() * np.float64(2), TypeError, "Unsupported type <class 'numpy.float64'>"),
    "float64 * twin": (lambda: np.float64(2) * x(), TypeError, "numpy.multiply was given"),
    "a float32 in a function": (lambda: twin.maximum(x(), np.float32(0)), TypeError, "numpy.float32"),
    "an array in a function": (lambda: twin.where(x() > 0, x(), HOST), TypeError, "numpy.ndarray"),
    "an array to reduce": (lambda: twin.sum(HOST), TypeError, "numpy.ndarray"),
    "a list to reduce": (lambda: twin.sum([1.0, 2.0]), TypeError, "class 'list'"),
    "a number to reduce": (lambda: twin.mean(3.0), TypeError, "class 'float'"),
    "a list in a ufunc": (lambda: twin.exp([1.0, 2.0]), TypeError, "class 'list'"),
    "an array in a list": (lambda: twin.concatenate([x(), HOST]), TypeError, "numpy.ndarray"),
    "an array as out": (lambda: twin.exp(x(), out=HOST.copy()), TypeError, "Unsupported type"),
    "a number as out": (lambda: twin.exp(x(), out=3), TypeError, "Output arguments must be cupy.ndarray"),
    "where= of a ufunc": (lambda: twin.exp(x(), where=x() > 0), TypeError, "Wrong arguments {'where'}"),
    "order= of a ufunc": (lambda: twin.exp(x(), order="C"), TypeError, "Wrong arguments"),
    "too many arguments": (lambda: twin.exp(x(), x(), x()), TypeError, "Wrong number of arguments"),
    "where= of a method": (lambda: x().sum(where=x() > 0), TypeError, "unexpected keyword argument 'where'"),
    "initial= of a method": (lambda: x().max(initial=0), TypeError, "'initial'"),
    "where= of a function": (lambda: twin.sum(x(), where=x() > 0), TypeError, "'where'"),
    "an index for item": (lambda: x().item(0), TypeError, "too many positional arguments"),
    "casting= of astype": (lambda: x().astype("f8", casting="safe"), TypeError, "not supported yet"),
    "an unknown function": (lambda: twin.nan_to_nummer, AttributeError, "nan_to_nummer"),
    "erf, which is elsewhere": (lambda: twin.erf, AttributeError, "erf"),
    "a function of NumPy alone": (lambda: twin.busday_count, AttributeError, "busday_count"),
    "an unknown method": (lambda: x().itemset(0), AttributeError, "itemset"),
    "an attribute of NumPy alone": (lambda: x().ctypes, AttributeError, "ctypes"),
    "a new attribute": (lambda: setattr(x(), "name", "x"), AttributeError, "name"),
    "an index of NumPy": (lambda: x()[np.array([0, 1])], TypeError, "numpy.ndarray"),
    "to be an index": (lambda: [1, 2][wrap(np.array(0))], TypeError, "indices must be integers"),
    "assigning an array": (lambda: assign(x(), ..., HOST), ValueError, "cannot be used for fill"),
    "assigning a list": (lambda: assign(x(), 0, [1, 2, 3]), ValueError, "cannot be used for fill"),
    "the truth of many": (lambda: bool(x() > 0), ValueError, "ambiguous"),
    "a hash": (lambda: {x()}, TypeError, "unhashable"),
    "objects": (lambda: twin.asarray([None]), ValueError, "Unsupported dtype object"),
    "strings": (lambda: twin.asarray(["a"]), ValueError, "Unsupported dtype <U1"),
    "long doubles": (lambda: twin.zeros(2, np.longdouble), ValueError, "Unsupported dtype"),
    "in place with an overlap": (lambda: twin.add(v := x().reshape(-1), 0, out=v[::-1]), ValueError, "is chance"),
    "a precision lost in place": (lambda: twin.zeros(2, int).__iadd__(0.5), TypeError, "same_kind"),
    "another GPU": (lambda: Device(DEVICES), RuntimeError, "invalid device ordinal"),
    "setting another type": (lambda: x().set(HOST.astype(float)), TypeError, "cannot be set"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses(what):
    attempt, error, words = REFUSED[what]
    with pytest.raises(error, match=words):
        attempt()


ACCEPTED = {
    "numbers": lambda xp, a: 2 * a / 3.0 - a**2 + (1 + 2) // 2,
    "reflected": lambda xp, a: 1 / (1 + a) + (2 - a) + 2**a,
    "comparisons": lambda xp, a: (a > 1) & (a <= 4) | ~(a != 2),
    "products": lambda xp, a: a @ a.T,
    "a batch of products": lambda xp, a: xp.matmul(a[None], a.T[None], out=xp.empty((1, 2, 2), "f")),
    "a full reduction": lambda xp, a: a.sum() * a.mean(),
    "an axis": lambda xp, a: xp.max(a, axis=1, keepdims=True) + a.std(0),
    "an element": lambda xp, a: a[0, 0] + a[-1][-1],
    "tokens": lambda xp, a: a[xp.arange(2)[:, None], xp.asarray([[0, 2], [1, 0]])],
    "a choice": lambda xp, a: xp.where(a > 2, a, 0.0),
    "joined": lambda xp, a: xp.concatenate([a, xp.ones_like(a)], axis=-1),
    "cut": lambda xp, a: xp.split(a, [1], axis=1)[1],
    "in place": lambda xp, a: xp.multiply(a, 2, out=a).__iadd__(1),
    "integers": lambda xp, a: a.astype(xp.uint64) * 0xD2511F53 >> 32,
    "spread": lambda xp, a: xp.broadcast_to(a.reshape(2, 1, 3), (2, 4, 3)),
    "divided by zero": lambda xp, a: a / (a - a),
    "equal": lambda xp, a: xp.asarray(xp.allclose(a, a)),
    "counted": lambda xp, a: xp.asarray(xp.count_nonzero(a)),
    "a mask": lambda xp, a: a[a > 2],
    "a list as index": lambda xp, a: a[[1, 0]],
}


@pytest.mark.parametrize("what", ACCEPTED)
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
def test_it_computes_as_numpy_does(what):
    got, expected = ACCEPTED[what](twin, x()), ACCEPTED[what](np, HOST.copy())
    assert isinstance(got, ndarray)
    assert got.dtype == np.asarray(expected).dtype
    np.testing.assert_array_equal(got.get(), expected)


MISTAKES = {  # in an op: what works with NumPy, and what the twin says of it
    "NumPy's function": (lambda x: (np.exp(x), None), "numpy.exp was given"),
    "a scalar of NumPy": (lambda x: (x * np.sqrt(2.0), None), "numpy.float64"),
    "a constant array": (lambda x: (x * np.ones(3, np.float32), None), "numpy.ndarray"),
    "a buffer on the host": (lambda x: (array_module(x).exp(x, out=np.empty_like(HOST)), None), "numpy.ndarray"),
    "a keyword too many": (lambda x: (x.sum(0, initial=1.0), None), "initial"),
    "a conversion": (lambda x: (np.asarray(x) + 1, None), "Implicit conversion"),
    "an index on the host": (lambda x: (x[np.argsort([2, 1])], None), "numpy.ndarray"),
    "a decision": (lambda x: (x if x.sum() > 0 else -x, None), "the host waits for the GPU here: bool"),
    "a number": (lambda x: (x * float(x.max()), None), "the host waits for the GPU here: float"),
    "a selection": (lambda x: (x[x > 0], None), "the host waits for the GPU here: boolean mask"),
    "a size": (lambda x: (array_module(x).nonzero(x)[0], None), "the host waits for the GPU here: nonzero"),
    "a table": (lambda x: (x * array_module(x).asarray([1.0, 2.0, 3.0]), None), "waits for the GPU here: asarray"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_ops_are_caught(mistake):
    function, words = MISTAKES[mistake]
    mistaken = op(function)
    mistaken.raw(HOST)  # NumPy finds nothing wrong
    with forbid_synchronisation(), pytest.raises((TypeError, SynchronisationError), match=words):
        mistaken(Tensor(x()))


WAITS = {
    "get": lambda a: a.get(), "item": lambda a: a[0, 0].item(), "float": lambda a: float(a[0, 0]),
    "int": lambda a: int(a[0, 0]), "bool": lambda a: bool(a[0, 0]), "complex": lambda a: complex(a[0, 0]),
    "tolist": lambda a: a.tolist(), "repr": lambda a: f"{a}", "boolean mask": lambda a: a[a > 1],
    "nonzero": lambda a: a.nonzero(), "where": lambda a: twin.where(a > 0), "unique": lambda a: twin.unique(a),
    "asarray": lambda a: twin.asarray(HOST), "set": lambda a: a.set(HOST), "index from the host": lambda a: a[[0, 1]],
    "synchronize": lambda a: Stream.null.synchronize(), "tobytes": lambda a: a.tobytes(),
}  # fmt: skip


@pytest.mark.parametrize("cause", WAITS)
def test_the_host_is_seen_to_wait(cause):
    with counted() as counts:
        WAITS[cause](x())
        assert not counts  # filled at the end
    assert counts == {cause: 1}
    with forbid_synchronisation(cause):
        WAITS[cause](x())
    with forbid_synchronisation(), pytest.raises(SynchronisationError, match=f"waits for the GPU here: {cause}"):
        WAITS[cause](x())
    WAITS[cause](x())  # allowed again


@given(shapes.flatmap(arrays))
def test_a_mask_that_is_assigned_to_waits_and_views_do_not(array):
    on_gpu = wrap(array.copy())
    with forbid_synchronisation():
        on_gpu[...] = on_gpu.T.T + 0
    with counted() as counts:
        on_gpu[on_gpu > 0] = 0
    assert counts == {"boolean mask": 1}
    np.testing.assert_array_equal(on_gpu.get(), np.minimum(array, 0))


def test_the_engine_takes_it_for_cupy():
    with installed():
        a = to_device(HOST, "cuda")
        assert to_device(a, "cuda") is a
        assert device_of(to_device(HOST, "cuda:1")) == "cuda:1"
        assert cache_blocks(a.reshape(-1)) == [slice(0, 6)]
    assert array_module(a) is twin
    assert device_of(a) == "cuda:0"
    np.testing.assert_array_equal(to_device(a, "cpu"), HOST)
    assert type(to_device(a, "cpu")) is np.ndarray
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend.importlib, "import_module", lambda name: types.SimpleNamespace(cuda=None))
        with pytest.raises(AttributeError):
            to_device(HOST, "cuda")  # outside of installed() CuPy is what it was


def test_views_share_memory_and_know_their_base():
    a = x()
    view = a[1]
    assert view.base is a
    assert view[:2].base is a
    assert a.base is (a + 0).base is None
    assert view.data.ptr == a.data.ptr + 3 * 4
    a[0][...] = 7
    first = a[0, 0]
    first += 1
    assert a.get()[0].tolist() == [8, 7, 7]


def test_results_have_their_rows_one_after_another():
    turned = x().T
    assert not turned.flags.c_contiguous
    for result in (turned * 2, twin.exp(turned), turned.max(-1, keepdims=True), twin.where(turned > 0, turned, 0.0)):
        assert result.flags.c_contiguous
    assert (turned * 2).strides == (8, 4)
    assert turned.astype(np.float64).flags.f_contiguous
    assert twin.zeros_like(turned).flags.f_contiguous


def test_devices():
    with Device(1) as device:
        a = twin.zeros(2)
        assert (device.id, a.device, a.data.device_id) == (1, Device(), 1)
        a += 1
    assert Device().id == 0
    with pytest.raises(ValueError, match=r"resides \(1\) is different from the current device \(0\)"):
        a.sum()


def test_it_offers_nothing_that_the_list_lacks():
    more = {"asnumpy", "cuda", "get_array_module", "lib", "ndarray", "ufunc"}
    offered = {name for name in vars(twin) if not name.startswith("_")}
    assert offered <= {*NAMES["same objects"], *NAMES["functions"], *NAMES["ufuncs"]} | more
    members = {name for name in vars(ndarray) if not name.startswith("_")}
    assert members <= {*NAMES["ndarray methods"], *NAMES["ndarray attributes"]}
    operators = {name for name in vars(ndarray) if name in dir(np.ndarray) and name not in dir(object)}
    assert operators - members <= {*NAMES["ndarray operators"]}
    assert "__index__" not in operators
    assert "__imatmul__" not in operators


def test_the_list_is_that_of_the_installed_cupy():
    cupy = pytest.importorskip("cupy")
    if cupy.__version__ != NAMES["version"]:
        pytest.skip(f"CuPy {cupy.__version__} is not the {NAMES['version']} of the list")
    read = json.loads(cupy_names.written(cupy_names.read(cupy)))
    assert read["ndarray methods"] == NAMES["ndarray methods"]
    assert {name: read["functions"][name] for name in NAMES["functions"] if name in read["functions"]} == {
        name: text for name, text in NAMES["functions"].items() if name in read["functions"]
    }


def test_parameters_are_read_from_signatures_and_from_docstrings():
    def compiled():
        """_ndarray_base.sort(self, int axis=-1, Py_ssize_t kind='None', *, _ndarray_base out=None) -> None"""

    compiled.__signature__ = "none that inspect understands"
    assert cupy_names._parameters(compiled) == "axis=None, kind=None, *, out=None"
    assert cupy_names._parameters(lambda a, axis=-1, *, out=0: a) == "a, axis=None, *, out=None"
    assert cupy_names._parameters(float) is None
    assert cupy_names._parameters(3) is None
