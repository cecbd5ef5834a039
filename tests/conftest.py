"""How hard the property tests try: ``HYPOTHESIS_PROFILE=thorough python -m pytest``.

``dev``, the default, tries the same 20 examples everywhere and every time: a fresh clone passes or fails alike on all
machines, and nobody meets a rare failure that another cannot repeat. ``ci`` tries the same 200. ``thorough`` draws 1000
new examples in each run, for finding what the others missed; it prints a line that repeats a failure. ``gpu`` tries 10,
for a GPU, where kernels are compiled for each shape.
"""

import os

import pytest
from hypothesis import settings

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices are small here: threads would wait for one another

common = {"deadline": None, "print_blob": True}  # the first example of a test warms caches: no time limit
settings.register_profile("dev", max_examples=20, derandomize=True, **common)
settings.register_profile("ci", max_examples=200, derandomize=True, **common)
settings.register_profile("thorough", max_examples=1000, **common)
settings.register_profile("gpu", max_examples=10, derandomize=True, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="module", params=["twin", pytest.param("cupy", marks=pytest.mark.gpu)])
def gpu(request):
    """CuPy's strict twin, and with ``-m gpu`` CuPy: ``to_device(x, "cuda")`` and ``model.to("cuda")`` work."""
    from tests.devices import standing_in

    with standing_in(request.param) as module:
        yield module


@pytest.fixture(scope="module")
def cupy_twin():
    """CuPy is its strict twin here: ``to_device(x, "cuda")`` and ``model.to("cuda")`` work, without a GPU."""
    from tests.cupy_twin import installed

    with installed() as twin:
        yield twin
