"""Steps as CUDA graphs, on the twin with a graph that is a list of calls, and with ``-m gpu`` on a GPU."""

import gc
import math

import numpy as np
import pytest

from minivit import ops
from minivit.autograd import Parameter
from minivit.backend import FUSED, to_device
from minivit.cuda.capture import Captured
from minivit.cuda.normalization import layer_norm
from minivit.cuda.random import uniform
from minivit.data.loader import Batch
from minivit.models import VisionTransformer
from minivit.nn import BatchNorm1d, Module, init
from minivit.objective import Classification
from minivit.optim import SGD, AdamW, weight_decay_groups
from minivit.training.captured import CapturedStep
from minivit.training.layout import Layout
from minivit.training.step import NonFiniteLoss, train_step
from tests.compare import exact, numbers
from tests.cuda.graph import Stream, graphs
from tests.cuda.test_optim import KERNELS
from tests.cupy_twin import twin


@pytest.fixture
def gpu(xp, monkeypatch):
    """The twin with graphs and some kernels, or CuPy with all."""
    if xp is not twin:
        yield xp
    else:
        for kernel in (*KERNELS, uniform, layer_norm):
            monkeypatch.setitem(FUSED, kernel.formula, kernel)
        with graphs():
            yield xp


# --- Captured --------------------------------------------------------------------------------------------------------


def test_a_graph_repeats_the_step_with_the_numbers_that_lie_there(gpu):
    x, total = gpu.arange(4.0), gpu.zeros(())
    calls = []

    def step():
        calls.append(1)
        y = gpu.maximum(x * x, 1.0)[1:].reshape(3, 1)
        total.__iadd__(y.sum())
        return y

    graph = Captured(step, warmup=2)
    assert float(total) == 2 * (1 + 4 + 9)  # recording does nothing
    for i in range(3):
        x[...] = i
        np.testing.assert_array_equal(graph().get(), np.full((3, 1), max(1, i * i)))
    assert len(calls) == 3
    assert float(total) == 28 + 3 + 3 + 12


def test_arrays_that_are_kept_get_back_what_they_held(gpu):
    x, y = gpu.arange(4.0), gpu.ones(4)

    def step():
        x.__imul__(2)
        y.__imul__(2)

    graph = Captured(step, kept=[x], warmup=3)
    np.testing.assert_array_equal(x.get(), np.arange(4.0))
    np.testing.assert_array_equal(y.get(), 8)
    graph()
    np.testing.assert_array_equal(x.get(), 2 * np.arange(4.0))


def test_the_order_of_things(gpu):
    if gpu is not twin:
        pytest.skip("only the twin keeps a log")
    collecting = []
    Captured(lambda: (Stream.log.append("step"), collecting.append(gc.isenabled())), warmup=2)
    assert Stream.log == ["synchronize", "pool", "step", "step", "synchronize", "begin", "step", "end", "default pool"]
    assert collecting == [True, True, False]
    assert gc.isenabled()


def test_a_step_that_reads_a_number_cannot_be_recorded(gpu):
    x, y = gpu.arange(4.0), gpu.ones(4)
    with pytest.raises(Exception) as error:
        Captured(lambda: y.__imul__(float(x.sum())), kept=[y])
    assert gpu is not twin or "the host waits" in str(error.value)
    assert gc.isenabled()
    np.testing.assert_array_equal(y.get(), 1)
    assert float(Captured(lambda: x.sum())()) == 6  # nothing was left behind


# --- CapturedStep ----------------------------------------------------------------------------------------------------


class Affine(Module):
    """A network without products of matrices, which cuBLAS would be asked for."""

    def __init__(self):
        self.weight, self.bias = Parameter(numbers(0, 1, 4)), Parameter(np.zeros((1, 4), np.float32))

    def forward(self, x):
        return ops.add(ops.mul(x, self.weight), self.bias)


def vit(xp):
    """A small network; on a GPU large enough for heads that all kernels know."""
    model = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=4, embed_dim=16 if xp is twin else 128, depth=2, num_heads=2,
        drop_path_rate=0.3, proj_drop_rate=0.2,
    )  # fmt: skip
    init.init_weights(model, seed=0)
    return model.to("cpu" if xp is np else "cuda")


def batches(count, size=4, shape=(1, 8, 8), device="cuda"):
    for i in range(count):
        images = numbers(i, size, *shape)
        labels = np.random.default_rng(i).integers(0, 4, size)
        yield Batch(images, labels, np.arange(size * i, size * (i + 1)), size).to(device)


def trained(model, step_function, count=5, **options):
    """The results of some steps under a schedule, and the optimizer."""
    optimizer = AdamW(weight_decay_groups(model, 0.1), lr=0.01)
    step = step_function(model, optimizer)
    results = []
    for i, batch in enumerate(batches(count, **options)):
        optimizer.lr = 0.01 / (i + 1)
        results.append(step(batch, 10 + i))
    if isinstance(step, CapturedStep):
        results = [*results[1:], step.finish()]
        assert step.finish() is None
    return results, optimizer


def captured(max_norm=0.5, **options):
    return lambda model, optimizer: CapturedStep(
        model, Classification(), optimizer, seed=3, max_norm=max_norm, **options
    )


def op_by_op(max_norm=0.5, **options):
    def step_function(model, optimizer):
        return lambda batch, step: train_step(
            model, Classification(), batch, optimizer, 3, step, max_norm=max_norm, **options
        )

    return step_function


@pytest.mark.parametrize("layout", [None, Layout(micro_batch=2)], ids=["whole", "micro-batches"])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_the_same_steps_as_op_by_op(gpu, max_norm, layout):
    """With the masks, rates, weight decay and clipping of each step; and the warm-up leaves no trace."""
    found, optimizer = trained(vit(gpu), captured(max_norm, layout=layout))
    expected, other = trained(vit(gpu), op_by_op(max_norm, layout=layout))
    assert optimizer.steps == other.steps == 5
    for a, b in zip(found, expected):
        assert (a.correct, a.loss) == (b.correct, pytest.approx(b.loss, rel=1e-6))
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
    for a, b in zip((optimizer.flat.data, *optimizer.state.values()), (other.flat.data, *other.state.values())):
        np.testing.assert_allclose(exact(a), exact(b), rtol=1e-5, atol=1e-7)


def test_many_micro_batches_are_recorded(gpu):
    """Ten pieces: more than CuPy puts together without the host."""
    layout = Layout(micro_batch=1)
    (found,), _ = trained(vit(gpu), captured(layout=layout), count=1, size=10)
    (expected,), _ = trained(vit(gpu), op_by_op(layout=layout), count=1, size=10)
    assert (found.correct, found.loss) == (expected.correct, pytest.approx(expected.loss, rel=1e-6))


def test_masks_change_from_step_to_step(gpu):
    """The same batch under two keys, and with a rate of zero: only the masks can make the difference."""
    model = vit(gpu)
    optimizer = SGD(model.named_parameters(), lr=0.0)
    step = captured()(model, optimizer)
    (batch,) = batches(1)
    losses = [step(batch, number) for number in (0, 1, 0)][1:] + [step.finish()]
    assert losses[0].loss == losses[2].loss != losses[1].loss


def test_nothing_around_the_network_asks_for_cublas(gpu, monkeypatch):
    """CuPy refuses it during a capture. The formulas of layers have products, which cublasLt stands in for."""
    monkeypatch.setattr(Stream, "products", False)
    results, _ = trained(Affine().to("cuda"), captured(), shape=(4,))
    assert all(math.isfinite(result.loss) for result in results)


def test_a_launch_waits_for_nothing_but_the_step_before(gpu):
    """Keys are copied to the GPU, which is not waited for, and one result is read, in a stream of its own."""
    if gpu is not twin:
        pytest.skip("only the twin counts")
    from tests.cupy_twin import counted

    model = vit(gpu)
    step = captured()(model, AdamW(model.named_parameters()))
    first, *others = batches(3)
    step(first, 0)
    with counted() as waits:
        for number, batch in enumerate(others, start=1):
            step(batch, number)
    assert waits == {"set": 2, "get": 2}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_failing_step_leaves_the_weights_and_is_told_a_call_late(gpu, bad):
    """And so does the step after it, which was launched before anyone looked."""
    model = vit(gpu)
    optimizer = AdamW(model.named_parameters(), lr=0.01)
    step = captured()(model, optimizer)
    good, failing, after, last = batches(4)
    failing.images[2, 0, 3, 3] = bad
    step(good, 0)
    weights = exact(optimizer.flat.data)
    assert step(failing, 1) is not None
    with pytest.raises(NonFiniteLoss, match="in step 1: the first to be not finite is the input images") as error:
        step(after, 2)
    assert error.value.first == "the input images"
    np.testing.assert_array_equal(exact(optimizer.flat.data), weights)
    assert optimizer.steps == 1
    assert step(last, 1) is None  # from here it goes on
    assert math.isfinite(step.finish().loss)
    assert (exact(optimizer.flat.data) != weights).any()


class Normalised(Module):
    def __init__(self):
        self.norm = BatchNorm1d(4)

    def forward(self, x):
        return self.norm(x)


def test_running_estimates_follow_each_step_that_is_made(gpu):
    """As op by op, though the warm-up and the recording go forward four times; and a failing step leaves them."""
    model, other = Normalised().to("cuda"), Normalised().to("cuda")
    trained(model, captured(), shape=(4,))
    trained(other, op_by_op(), shape=(4,))
    for ours, theirs in zip(model.buffers(), other.buffers()):
        np.testing.assert_allclose(exact(ours.data), exact(theirs.data), rtol=1e-6)
    assert model.norm.num_batches_tracked.item() == 5

    step = captured()(model, SGD(model.named_parameters()))
    good, failing, after = batches(3, shape=(4,))
    failing.images[1, 2] = math.inf
    step(good, 0)
    before = model.state_dict()
    step(failing, 1)
    with pytest.raises(NonFiniteLoss):
        step(after, 2)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_bad_batches_and_devices_get_a_sentence(gpu):
    with pytest.raises(ValueError, match=r"call model.to\('cuda'\) before"):
        CapturedStep(vit(np), Classification(), SGD(vit(np).named_parameters()), 0)
    model = vit(gpu)
    step = captured()(model, SGD(model.named_parameters()))
    (batch,) = batches(1)
    step(batch, 0)
    with pytest.raises(ValueError, match=r"images of shape \(4, 1, 8, 8\) and float32, got \(3, 1, 8, 8\)"):
        step(Batch(batch.images[:3], batch.labels[:3], batch.samples[:3], 3), 1)
    with pytest.raises(ValueError, match="recorded with a total of 4 images, got 8"):
        step(batch._replace(total=8), 1)
    with pytest.raises(TypeError, match="the images are on cpu, the model is on cuda:0"):
        step(batch.to("cpu"), 1)
    with pytest.raises(ValueError, match=r"recorded with images of shape .* float32, got .* float64"):
        step(batch._replace(images=to_device(np.zeros((4, 1, 8, 8)), "cuda")), 1)
