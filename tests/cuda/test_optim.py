"""The optimizers' kernels against their formulas, and steps that are made on a GPU without a look from the host."""

import math
from contextlib import nullcontext

import numpy as np
import pytest

from minivit import Parameter, optim
from minivit.backend import FUSED, device_of, formulas_only, to_device
from minivit.cuda.optim import THREADS, adamw, move_average, norm_and_scale, sgd, write
from minivit.optim import EMA, SGD, AdamW, FlatParameters, clip_grad_norm
from minivit.optim.optimizer import Optimizer
from tests.compare import UNIT, exact, numbers, relative
from tests.cupy_cuda import forbid_synchronisation

OPTIMIZERS = [
    pytest.param(lambda p: AdamW(p, lr=0.01, weight_decay=0.1), id="adamw"),
    pytest.param(lambda p: AdamW(p, lr=0.01, betas=(0.5, 0.7), eps=1e-3), id="adamw, other options"),
    pytest.param(lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1), id="momentum"),
    pytest.param(lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True), id="nesterov"),
    pytest.param(lambda p: SGD(p, lr=0.01), id="sgd"),
]
KERNELS = adamw, sgd, move_average, write, norm_and_scale
SIZES = 1, 1000, 37  # of Parameters: several blocks of threads, and no multiple of anything


def parameters(device, dtype="float32"):
    made = [Parameter(numbers(i, size, dtype=dtype)) for i, size in enumerate(SIZES)]
    for p in made:
        p.data = to_device(p.data, device)
    return [{"params": made[:2]}, {"params": made[2:], "weight_decay": 0.0}]


def steps(optimizer: Optimizer, count: int = 20, scale=None, gradient_scale: float = 1.0):
    """Weights and state on the host, after steps along random gradients under a changing learning rate."""
    device = device_of(optimizer.flat.data)
    for i in range(count):
        optimizer.lr = 0.01 / (i + 1)
        for j, gradient in enumerate(optimizer.flat.views(optimizer.flat.grad).values()):
            random = numbers(100 * i + j, *gradient.shape, dtype=gradient.dtype, scale=gradient_scale)
            gradient[...] = to_device(random, device)
        optimizer.prepare()
        optimizer.apply(scale)
    return [exact(array) for array in (optimizer.flat.data, *optimizer.state.values())]


@pytest.fixture
def gpu(xp, monkeypatch):
    """The name of the device, with the kernels in place."""
    for kernel in KERNELS:
        monkeypatch.setitem(FUSED, kernel.formula, kernel)
    return "cuda"


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_twenty_steps_as_by_the_formula(gpu, make):
    """The formula in float64, with float32's numbers at the start: only rounding differs."""
    found, expected = steps(make(parameters(gpu))), steps(make(parameters("cpu", "float64")))
    for a, b in zip(found, expected):
        assert relative(a, b) < 20 * UNIT["float32"]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_same_bits_twice(gpu, make):
    for a, b in zip(steps(make(parameters(gpu)), 3), steps(make(parameters(gpu)), 3)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("fused", [True, False])
def test_a_scale_multiplies_the_gradient(xp, gpu, make, fused):
    """By kernels and by formulas; the gradient itself stays as it is."""
    optimizer, other = make(parameters("cuda")), make(parameters("cuda"))
    with nullcontext() if fused else formulas_only():
        found = steps(optimizer, 2, xp.full((), 0.25, "float32"))
    expected = steps(other, 2, gradient_scale=0.25)
    np.testing.assert_array_equal(optimizer.flat.grad.get() * 0.25, other.flat.grad.get())
    for a, b in zip(found, expected):
        assert relative(a, b) < 4 * UNIT["float32"]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_along_a_gradient_that_is_not_finite_no_step_is_made(gpu, make, fused, bad):
    optimizer = make(parameters(gpu))
    before = steps(optimizer, 1)
    with nullcontext() if fused else formulas_only():
        optimizer.flat.grad[5] = bad
        _, scale = (norm_and_scale if fused else optim.norm_and_scale)(optimizer.flat.grad, 1.0)
        optimizer.prepare()
        optimizer.apply(scale)
    for a, b in zip(before, (optimizer.flat.data, *optimizer.state.values())):
        np.testing.assert_array_equal(a, exact(b))


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_step_reads_nothing(gpu, make):
    optimizer = make(parameters(gpu))
    with forbid_synchronisation():  # of the twin
        optimizer.zero_grad()
        clip_grad_norm(optimizer, 1.0)
        optimizer.step()
        optimizer.prepare()
        optimizer.apply(norm_and_scale(optimizer.flat.grad, 1.0)[1])


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_double_precision_is_left_to_the_formula(gpu, make, monkeypatch):
    monkeypatch.setattr("minivit.cuda.optim.launch", None)  # would raise
    for a, b in zip(steps(make(parameters(gpu, "float64")), 3), steps(make(parameters("cpu", "float64")), 3)):
        np.testing.assert_allclose(a, b, rtol=1e-14)


@pytest.mark.parametrize("size", [16, 1008, 4 * THREADS * 3 + 16])
@pytest.mark.parametrize("parts", [2, 1024])
def test_norm_and_scale(xp, size, parts, monkeypatch):
    """With two parts, the largest size makes each block of threads go over the vector twice."""
    monkeypatch.setattr("minivit.cuda.optim.PARTS", parts)
    g = numbers(0, size, scale=3)
    norm = math.sqrt(np.square(g.astype(np.float64)).sum())
    for max_norm in (math.inf, 2 * norm, norm / 2):
        found, scale = (float(x) for x in norm_and_scale(xp.asarray(g), max_norm))
        assert found == pytest.approx(norm, rel=1e-6)
        assert scale == pytest.approx(min(1, max_norm / (norm + 1e-6)), rel=1e-6)
    again = [norm_and_scale(xp.asarray(g))[0].get().tobytes() for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_norm_that_is_not_finite_has_scale_0(xp, bad):
    g = numbers(0, 4096)
    g[1234] = bad
    for function in (norm_and_scale, norm_and_scale.formula):
        norm, scale = (float(x) for x in function(xp.asarray(g), 1.0))
        assert not math.isfinite(norm)
        assert scale == 0


def test_clipping_as_on_a_cpu(gpu):
    groups = parameters(gpu), parameters("cpu")
    on_gpu, on_cpu = (FlatParameters(g) for g in groups)
    for max_norm in (math.inf, 10.0, 1.0):
        for flat, device in ((on_gpu, gpu), (on_cpu, "cpu")):
            flat.grad[...] = to_device(numbers(9, flat.grad.size), device)
        norm = clip_grad_norm(on_gpu, max_norm)
        assert norm.shape == ()
        assert float(norm) == pytest.approx(clip_grad_norm(on_cpu, max_norm), rel=1e-6)
        assert relative(exact(on_gpu.grad), exact(on_cpu.grad)) < 4 * UNIT["float32"]


@pytest.mark.parametrize("warmup", [False, True])
def test_the_moving_average_as_on_a_cpu(gpu, warmup):
    averages = []
    for device in (gpu, "cpu"):
        flat = FlatParameters(parameters(device))
        ema = EMA(flat, 0.99, warmup=warmup)
        for i in range(5):
            flat.data[...] = to_device(numbers(i, flat.data.size), device)
            ema.update()
        averages.append(exact(ema.average))
    assert relative(*averages) < 4 * UNIT["float32"]


def test_numbers_are_written_beside_nothing_else(xp):
    buffer = xp.full((3, 7), 5.0, "float32")
    rows = [tuple(range(i, i + 7)) for i in (0, 10)]
    write(buffer[:2], rows)
    np.testing.assert_array_equal(buffer.get(), [*rows, [5.0] * 7])
