"""Each test of a kernel runs on the CuPy twin, with the kernel compiled for the CPU, and with ``-m gpu`` on a GPU."""

import ml_dtypes  # noqa: F401  NumPy knows the name "bfloat16" from here on
import numpy as np
import pytest

from tests.cuda import emulator
from tests.cupy_twin import twin
from tests.devices import standing_in

needs_compiler = pytest.mark.skipif(not emulator.COMPILER, reason="g++ compiles the kernels for the CPU: not found")


@pytest.fixture(params=[pytest.param("twin", marks=needs_compiler), pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """The twin, or CuPy, in which new memory holds NaN: what a kernel does not write is seen."""
    with standing_in(request.param) as module, pytest.MonkeyPatch.context() as patch:
        empty = module.empty

        def poisoned(shape, dtype=float, order="C"):
            array = empty(shape, dtype)
            array.reshape(-1).view("uint8")[...] = 0xFF  # NaN in every format, −1 in integers
            return array

        patch.setattr(module, "empty", poisoned)
        patch.setattr(module, "empty_like", lambda a, dtype=None: poisoned(a.shape, dtype or a.dtype))
        if module is twin:
            patch.setattr(twin, "RawModule", emulator.RawModule, raising=False)
        yield module


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return np.dtype(request.param)
