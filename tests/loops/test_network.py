"""Whole steps with loops and without; and where there are none."""

import itertools
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest

from minivit.backend import LOOPS, formulas_only
from minivit.data import Batch
from minivit.models import ResNet, VisionTransformer
from minivit.nn import Module
from minivit.objective import Classification
from minivit.optim import AdamW
from minivit.training import Layout, NonFiniteLoss, predict, train_step
from tests.compare import numbers
from tests.loops.conftest import needs_numba


def batch(size: int = 6) -> Batch:
    images = np.random.default_rng(0).standard_normal((size, 3, 16, 16)).astype(np.float32)
    return Batch(images, np.arange(size) % 5, np.arange(size))


def vit(**options: object) -> VisionTransformer:
    return VisionTransformer(16, 4, num_classes=5, embed_dim=24, depth=2, num_heads=3, **options)


def resnet() -> ResNet:
    return ResNet("basic", layers=(1, 1), channels=(4, 6), stem="3x3", shortcut="A", num_classes=5)


def trained(model: Module, steps: int = 3, workers: int = 2, micro_batch: int | None = 2) -> dict[str, np.ndarray]:
    """The weights of a small network after some steps."""
    optimizer = AdamW(model.named_parameters(), lr=1e-3, eps=1e-3)  # a gradient of rounding errors makes no step
    with Layout(workers, micro_batch) as layout:
        for step in range(steps):
            train_step(model, Classification(), batch(), optimizer, seed=0, step=step, layout=layout)
    return model.state_dict()


@needs_numba
@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}, {"global_pool": "avg", "drop_path_rate": 0.3}, None], ids=str
)
def test_a_training_goes_the_same_way_with_loops_and_without(options):
    def network() -> dict[str, np.ndarray]:
        return trained(resnet(), micro_batch=None) if options is None else trained(vit(**options))

    ran = []
    with pytest.MonkeyPatch.context() as patch:
        for formula, stand_in in LOOPS.items():
            patch.setitem(LOOPS, formula, lambda *a, f=stand_in, **k: ran.append(f.__name__) or f(*a, **k))
        found = network()
    with formulas_only():
        right = network()
    loops = (
        "adamw batch_norm convolve linear" if options is None else "adamw add_layer_norm attend layer_norm linear mlp"
    )
    assert set(ran) == set(loops.split())
    for name, array in found.items():
        np.testing.assert_allclose(array, right[name], rtol=0, atol=2e-5, err_msg=name)


@needs_numba
@pytest.mark.parametrize("workers, micro_batch", [(1, None), (2, 1), (3, 2)])
def test_a_layout_gives_the_same_bits_every_time_and_nearly_the_same_as_others(workers, micro_batch):
    first, again, whole = (
        trained(vit(), workers=w, micro_batch=m) for w, m in [(workers, micro_batch)] * 2 + [(1, None)]
    )
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
        np.testing.assert_allclose(array, whole[name], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("around", [nullcontext, formulas_only], ids=["loops, if any", "formulas"])
def test_a_bad_number_in_an_image_is_noticed(around):
    model = vit()
    optimizer = AdamW(model.named_parameters())
    for bad in (np.nan, np.inf):
        images, labels, samples, _ = batch()
        images[2, 0, 3, 3] = bad
        with around(), pytest.raises(NonFiniteLoss, match="the input images"):
            train_step(model, Classification(), Batch(images, labels, samples), optimizer, seed=0, step=0)


@needs_numba
def test_inference_agrees():
    model, images = vit(), batch().images
    with Layout(workers=2, micro_batch=2) as layout:
        found = predict(model, images, layout)
    with formulas_only():
        np.testing.assert_allclose(found, predict(model, images), rtol=0, atol=1e-5)


@needs_numba
@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=2)), ids=str)
@pytest.mark.parametrize("size", [1, 3, 40])
def test_products_inside_of_loops(flags, size):
    from numba import njit

    from minivit.loops.blas import library, multiply

    if library() is None:
        pytest.skip("no BLAS library here has 64-bit integers")
    a_transposed, b_transposed = flags

    @njit
    def product(alpha, a, b, c):
        multiply(alpha, a, a_transposed, b, b_transposed, c)

    m, k, n = size, size + 1, size + 2
    wide = numbers(0, *((k, m) if a_transposed else (m, k))), numbers(1, *((n, k) if b_transposed else (k, n)))
    a, b = (np.pad(x, ((0, 0), (2, 5)))[:, 2:-5] for x in wide)  # rows lie apart
    c = np.full((m, n + 4), 7, np.float32)
    product(-0.5, a, b, c[:, 1:-3])
    right = -0.5 * (a.T if a_transposed else a).astype(float) @ (b.T if b_transposed else b)
    np.testing.assert_allclose(c[:, 1:-3], right, rtol=1e-5, atol=1e-5)
    assert (c[:, 0] == 7).all() and (c[:, -3:] == 7).all()


def names_of_loops(code: str = "pass", **environment: str) -> str:
    program = f"{code}; import minivit.backend; print(sorted(f.__name__ for f in minivit.backend.LOOPS.values()))"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment or None
    ).stdout.strip()


def test_without_numba_there_are_formulas():
    assert names_of_loops("import sys; sys.modules['numba'] = None") == "[]"


def test_loops_can_be_turned_off():
    assert names_of_loops(MINIVIT_FUSED="0") == "[]"


@needs_numba
def test_without_a_blas_library_products_are_numpys():
    code = "import threadpoolctl, importlib.metadata as m; threadpoolctl.threadpool_info = list; m.files = lambda x: []"
    assert names_of_loops(code) == "['adamw', 'add_layer_norm', 'batch_norm', 'convolve', 'gelu', 'layer_norm']"
