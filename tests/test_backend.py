import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import backend
from minivit.backend import array_module, cache_blocks, device_of, to_device


class OnTheGPU:
    """An array of another library, as far as the engine looks at it."""

    dtype, size = np.dtype(np.float32), 10**6
    device = types.SimpleNamespace(id=1)

    def get(self):
        return np.ones(3, np.float32)


def test_the_array_module_is_the_package_that_defines_the_type():
    assert array_module(np.zeros(2)) is np
    assert array_module(np.float32(2)) is np
    assert array_module(OnTheGPU()).__name__ == "tests"


def test_devices_are_named():
    assert device_of(np.zeros(2)) == "cpu"
    assert device_of(OnTheGPU()) == "cuda:1"


def test_a_move_to_the_cpu_copies_only_what_is_elsewhere():
    x = np.zeros(2)
    assert to_device(x, "cpu") is x
    np.testing.assert_array_equal(to_device(OnTheGPU(), "cpu"), np.ones(3))


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "CPU", "", "cuda 0"])
def test_unknown_devices(device):
    with pytest.raises(ValueError, match=r"'cpu', 'cuda' or 'cuda:<number>', got"):
        to_device(np.zeros(2), device)


def test_without_cupy_the_way_out_is_told(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(backend.importlib, "import_module", missing)
    with pytest.raises(RuntimeError, match=r"needs CuPy: pip install 'minivit\[cuda12\]'"):
        to_device(np.zeros(2), "cuda")


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:3", 3)])
def test_a_move_to_the_gpu_happens_on_the_device_with_that_number(monkeypatch, device, number):
    entered = []

    class Device:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            entered.append(self.number)

        def __exit__(self, *exception):
            entered.append("left")

    def asarray(array):
        assert entered == [number]
        return ("moved", array)

    runtime = types.SimpleNamespace(getDeviceCount=lambda: 4)
    cuda = types.SimpleNamespace(is_available=lambda: True, Device=Device, runtime=runtime)
    cupy = types.SimpleNamespace(cuda=cuda, asarray=asarray)
    monkeypatch.setattr(backend.importlib, "import_module", lambda name: cupy)
    x = np.zeros(2)
    assert to_device(x, device) == ("moved", x)
    assert entered == [number, "left"]
    with pytest.raises(RuntimeError, match="there is no device 'cuda:4': this machine has 4, cuda:0 to cuda:3"):
        to_device(x, "cuda:4")
    cuda.is_available = lambda: False
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU and its driver"):
        to_device(x, device)


@given(st.integers(0, 100), st.integers(1, 200), st.sampled_from([np.float32, np.float64]))
def test_cache_blocks_cut_an_array_into_pieces_of_limited_size(size, limit, dtype):
    x = np.arange(size, dtype=dtype)
    pieces = [x[block] for block in cache_blocks(x, limit)]
    assert all(0 < piece.nbytes <= max(limit, x.itemsize) for piece in pieces)
    np.testing.assert_array_equal(np.concatenate([*pieces, x[:0]]), x)


def test_an_array_on_the_gpu_is_one_block():
    assert cache_blocks(OnTheGPU(), 100) == [slice(0, 10**6)]
