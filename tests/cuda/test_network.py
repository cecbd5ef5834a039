"""A whole network and its training with every kernel in its place: on the twin, and with ``-m gpu`` on a GPU."""

import copy
import gc
import math
from collections import Counter
from contextlib import contextmanager, nullcontext
from unittest import mock

import numpy as np
import pytest

from minivit import no_grad, ops
from minivit.backend import FUSED
from minivit.cuda import Captured, blas, launch, precision
from minivit.cuda.precision import PRECISIONS
from minivit.data import Batch
from minivit.models import VisionTransformer, create_model
from minivit.objective import Classification
from minivit.optim import AdamW, clip_grad_norm, weight_decay_groups
from minivit.random import sampling
from minivit.training import CapturedStep, Layout, train_step
from minivit.training.step import forward_and_backward
from tests.compare import UNIT, exact, numbers
from tests.cuda import fake_cublaslt
from tests.cuda.graph import graphs
from tests.cupy_twin import twin
from tests.devices import no_waiting, standing_in

STAND_INS = dict(FUSED)
VIEWS = {"reshape", "transpose", "getitem", "concatenate", "broadcast_to"}  # ops that move numbers: no kernel of ours
DEPTH, WIDTH = 2, 64

# How far rounding takes a number from what it should be. On its way through the network and back it is rounded some 20
# times a block, each time by up to one unit; independent errors add up as the steps of a random walk do, to the square
# root of their number. What is rounded is, with bf16 and tf32, what goes into the products. With fp32 it is every sum,
# and they are WIDTH numbers long.
ROUNDINGS = math.sqrt(20 * DEPTH)
TOLERANCE = {"fp32": ROUNDINGS * math.sqrt(WIDTH) * 2.0**-24, "tf32": ROUNDINGS * 2.0**-11, "bf16": ROUNDINGS * 2.0**-8}


@pytest.fixture
def gpu(xp):
    """The twin with all kernels and with cublasLt, or CuPy."""
    with mock.patch.dict(FUSED, STAND_INS), fake_cublaslt.installed(xp):
        yield xp


def network(device="cpu", dtype=np.float32):
    """Heads of a width that all kernels know, and whatever drops."""
    model = VisionTransformer(
        img_size=(8, 12), patch_size=4, num_classes=8, embed_dim=WIDTH, depth=DEPTH, num_heads=2, mlp_ratio=2.0,
        pos_drop_rate=0.2, proj_drop_rate=0.2, drop_path_rate=0.4, weight_init="book",
    )  # fmt: skip
    return model.astype(dtype).to(device)


def batch(number=0, size=4, device="cpu", dtype=np.float32):
    images = numbers(number, size, 3, 8, 12).astype(dtype)
    labels = np.random.default_rng(number).integers(0, 8, size)
    return Batch(images, labels, np.arange(size) + size * number).to(device)


OBJECTIVE = Classification(label_smoothing=0.1)


def optimizer_for(model):
    """With an eps that keeps AdamW from blowing up the rounding errors of gradients that are zero but for these."""
    return AdamW(weight_decay_groups(model, 0.05), lr=0.01, eps=1e-4)


def one_step(model, optimizer, data, number=0, max_norm=0.5):
    """A training step that reads nothing: loss and norm, where they lie."""
    optimizer.zero_grad()
    seen = forward_and_backward(model, OBJECTIVE, data, optimizer, 3, number, Layout())
    norm = clip_grad_norm(optimizer, max_norm)
    optimizer.step()
    return seen[0, 0], norm


def far(found, right) -> float:
    """‖found − right‖ / ‖right‖."""
    found, right = exact(found), exact(right)
    assert found.shape == right.shape and np.isfinite(found).all()
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


def op_names(tensor) -> set[str]:
    """Of all that was recorded."""
    names, waiting = set(), [tensor.node]
    while waiting:
        node = waiting.pop()
        if hasattr(node, "op"):
            names.add(node.op)
            waiting += node.parents
    return names


@contextmanager
def watched():
    """Inside, two Counters fill, of stand-ins that computed and of those that went back to their formulas, and a set
    of the kernels started. Each cotangent must have the type of its value: the engine would need a pass to make it so.
    """
    used, left, kernels, started = Counter(), Counter(), set(), []

    def counting(function):
        def call(*args, **options):
            started.append(1)
            if function is compiled:
                kernels.add(args[3])
            return function(*args, **options)

        return call

    def watching(stand_in):
        def call(*args, **options):
            before = len(started)
            result = stand_in(*args, **options)
            (used if len(started) > before else left)[stand_in.__name__] += 1
            if not (isinstance(result, tuple) and callable(result[1])):
                return result
            value, pullback = result

            def checked(*dy):
                cotangents = pullback(*dy)
                for x, dx in zip(args, cotangents if isinstance(cotangents, tuple) else (cotangents,)):
                    assert dx is None or dx.dtype == x.dtype, f"{stand_in.__name__}: {dx.dtype} for {x.dtype}"
                return cotangents

            return value, checked

        return call

    compiled = launch._compiled
    with (
        mock.patch.dict(FUSED, {formula: watching(stand_in) for formula, stand_in in FUSED.items()}),
        mock.patch.object(launch, "_compiled", counting(compiled)),
        mock.patch.object(blas, "matmul", counting(blas.matmul)),
    ):
        yield used, left, kernels


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRECISIONS)
def test_logits_loss_and_gradients_are_those_of_the_formulas(gpu, name):
    """The formulas compute in float64, with the same masks."""

    def run(device, dtype):
        model, data = network(device, dtype), batch(device=device, dtype=dtype)
        optimizer = optimizer_for(model)
        with no_grad(), sampling(3, 0, data.samples):
            logits = model(data.images)
        seen = forward_and_backward(model, OBJECTIVE, data, optimizer, 3, 0, Layout())
        return {"logits": logits.data, "loss": seen[:, 0]} | optimizer.flat.views(optimizer.flat.grad)

    with precision(name):
        found = run("cuda", np.float32)
    expected = run("cpu", np.float64)
    assert found.keys() == expected.keys()
    errors = {key: far(found[key], expected[key]) for key in expected}
    assert max(errors.values()) < TOLERANCE[name], errors
    assert name == "fp32" or max(errors.values()) > TOLERANCE["fp32"]  # it was this precision that computed


def test_every_op_of_a_step_is_fused(gpu):
    """No stand-in goes back to its formula, and what has none moves numbers only."""
    model, data = network("cuda"), batch(device="cuda")
    with precision("bf16"), watched() as (used, left, kernels), no_waiting():
        logits = model(data.images)
        assert op_names(ops.cross_entropy(logits, data.labels, label_smoothing=0.1)) <= set(used) | VIEWS
        one_step(model, optimizer_for(model), data)
    assert not left
    assert set(used) == {
        "adamw", "add", "add_layer_norm", "cross_entropy", "gelu", "layer_norm", "linear", "norm_and_scale", "patchify",
        "scale", "scaled_dot_product_attention", "self_attention", "uniform", "write",
    }  # fmt: skip
    assert kernels == {
        "adamw", "add", "add_layer_norm", "add_layer_norm_backward", "add_to_each", "attention",
        "attention_backward_keys", "attention_backward_queries", "cast", "column_sums", "cross_entropy",
        "cross_entropy_backward", "gelu", "gelu_backward", "layer_norm", "layer_norm_backward", "multiply",
        "norm_and_scale", "patchify", "scale", "scale_each", "softmax", "softmax_backward", "squares",
        "uniform", "write_numbers",
    }  # fmt: skip


def test_a_fallback_is_noticed(gpu):
    """Rows of six numbers are too short for the kernel."""
    x, weight, bias = (gpu.ones(shape, "float32") for shape in ((2, 6), 6, 6))
    with watched() as (used, left, kernels):
        FUSED[ops.layer_norm.raw](x, weight, bias)
    assert (used, left, kernels) == ({}, {"layer_norm": 1}, set())


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_run_on_the_gpu_is_the_run_on_the_cpu(gpu, name):
    """Losses, norms and what was learned in some steps: the same keys, the same masks. The host waits for nothing."""

    def run(device):
        model = network(device)
        optimizer, seen = optimizer_for(model), []
        start = exact(optimizer.flat.data).copy()
        for number in range(3):
            data = batch(number, device=device)
            with no_waiting():
                seen.append(one_step(model, optimizer, data, number))
        return [[float(x) for x in step] for step in seen], exact(optimizer.flat.data) - start

    with precision(name):
        found, learned = run("cuda")
    expected, right = run("cpu")
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[name])
    assert far(learned, right) < TOLERANCE[name]


def trained(step_function, name, steps, model, batches):
    """Losses, norms and the optimizer after some steps."""
    optimizer = optimizer_for(model)
    with precision(name):
        step = step_function(model, optimizer)
        results = [step(batches[i % len(batches)], i) for i in range(steps)]
        if isinstance(step, CapturedStep):
            results = [*results[1:], step.finish()]
    return results, optimizer


def op_by_op(model, optimizer):
    return lambda data, number: train_step(model, OBJECTIVE, data, optimizer, 3, number, max_norm=1.0)


def captured(model, optimizer):
    return CapturedStep(model, OBJECTIVE, optimizer, 3, max_norm=1.0)


def test_a_graph_of_a_step_has_all_kernels_in_it(gpu):
    with graphs() if gpu is twin else nullcontext():
        runs = [
            trained(step_function, "bf16", 2, network("cuda"), [batch(i, device="cuda") for i in range(2)])
            for step_function in (captured, op_by_op)
        ]
    (found, optimizer), (expected, other) = runs
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert far(optimizer.flat.data, other.flat.data) < 1e-5


# --- on a GPU only: what the twin cannot show ------------------------------------------------------------------------


@pytest.fixture
def cupy():
    with standing_in("cupy") as cupy:
        yield cupy


def tiny(count=4, size=16):
    """The network of the tests below, as ImageNet sees it, and some batches."""
    model = create_model("vit_tiny_patch16_224", num_classes=8, drop_path_rate=0.1, proj_drop_rate=0.1).to("cuda")
    made = (batch(i, size) for i in range(count))
    return model, [data._replace(images=numbers(i, size, 3, 224, 224)).to("cuda") for i, data in enumerate(made)]


@pytest.mark.gpu
@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("step_function", [op_by_op, captured])
def test_twenty_steps_twice_have_the_same_bits(cupy, step_function, name):
    (first, optimizer), (second, other) = (trained(step_function, name, 20, *tiny()) for _ in range(2))
    assert first == second
    for a, b in zip((optimizer.flat.data, *optimizer.state.values()), (other.flat.data, *other.state.values())):
        np.testing.assert_array_equal(exact(a), exact(b))


@pytest.mark.gpu
@pytest.mark.parametrize("name", PRECISIONS)
def test_captured_steps_are_those_made_op_by_op(cupy, name):
    found, optimizer = trained(captured, name, 5, *tiny())
    expected, other = trained(op_by_op, name, 5, *tiny())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert far(optimizer.flat.data, other.flat.data) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("step_function", [op_by_op, captured])
def test_memory_does_not_grow_over_a_hundred_steps(cupy, step_function):
    model, batches = tiny()
    step, pool, seen = step_function(model, optimizer_for(model)), cupy.get_default_memory_pool(), []
    with precision("bf16"):
        for i in range(104):
            step(batches[i % 4], i)
            if i in (3, 103):
                gc.collect()
                seen.append((pool.used_bytes(), pool.total_bytes()))
    assert seen[0] == seen[1]


@pytest.mark.gpu
@pytest.mark.parametrize("name", PRECISIONS)
def test_products_are_captured(cupy, name):
    """Which CuPy's own cannot be: of two and of three axes, with a bias and with the sum put into float32."""
    kind = "bfloat16" if name == "bf16" else "float32"
    x, w, bias, batched = (
        cupy.asarray(numbers(i, *shape).astype(kind))
        for i, shape in enumerate([(64, 96), (32, 96), (32,), (4, 64, 64)])
    )

    def step():
        y = blas.matmul(x, w.T, bias=bias)
        return y, blas.matmul(y.T, x, dtype="float32"), blas.matmul(batched, batched.swapaxes(1, 2))

    with precision(name):
        graph = Captured(step)
        x *= 2
        for found, expected in zip(graph(), step()):
            np.testing.assert_array_equal(exact(found), exact(expected))


@pytest.mark.gpu
@pytest.mark.parametrize("name", PRECISIONS)
def test_a_large_network_is_that_of_the_cpu(cupy, name):
    """197 tokens and twelve blocks, as in the benchmarks, against NumPy."""
    model, (data,) = tiny(1, 4)
    with no_grad(), precision(name):
        found = model.eval()(data.images)
    with no_grad():
        expected = copy.deepcopy(model).to("cpu").astype(np.float64)(exact(data.images))
    unit = {"fp32": 8 * UNIT["float32"], "tf32": 2.0**-11, "bf16": UNIT["bfloat16"]}[name]
    assert far(found.data, expected.data) < math.sqrt(10 * len(model.blocks)) * unit
