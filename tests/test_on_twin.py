"""Ops, layers and networks on the strict twin of CuPy: nothing that CuPy refuses, no waiting, and NumPy's numbers.

With ``-m gpu`` the same on a GPU, where kernels stand in for the formulas.
"""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import Tensor, gradcheck, nn, no_grad, ops
from minivit.analysis import attention_maps
from minivit.autograd import detect_anomaly, op
from minivit.backend import array_module, to_device
from minivit.nn import init
from minivit.random import layer_uniform, sampling, uniform
from tests.devices import cupy, moved, no_waiting
from tests.models.test_vit import networks, small
from tests.nn import test_gradients as layers
from tests.rules import cotangent, one_result
from tests.strategies import CASES, Case, flags, generators

pytestmark = pytest.mark.usefixtures("gpu")


def assert_same(on_gpu, on_cpu):
    """Up to rounding: where the order in memory is another (see ``cupy_twin.py``), NumPy adds in another order."""
    assert (type(on_gpu), type(on_cpu)) == (cupy().ndarray, np.ndarray)
    assert (on_gpu.dtype, on_gpu.shape) == (on_cpu.dtype, on_cpu.shape)
    tolerance = (1e-12 if on_cpu.dtype == np.float64 else 1e-5) * max(1, abs(on_cpu).max(initial=0))
    np.testing.assert_allclose(on_gpu.get(), on_cpu, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ops.__all__)
@given(data=st.data(), single=flags)
def test_ops(name, data, single):
    """Value and gradients. The arguments cannot be written to, as in all cases of ``tests/strategies.py``."""
    function, case = one_result(getattr(ops, name)), data.draw(CASES[name])
    case = case.astype(np.float32) if single else case

    def value_and_gradients(case, array):
        args = [Tensor(x, requires_grad=True) if hasattr(x, "dtype") and x.dtype.kind == "f" else x for x in case.args]
        y = function(*args, **case.options)
        y.backward(array(cotangent(y.data)))
        return [y.data, *(x.grad for x in args if isinstance(x, Tensor))]

    on_gpu = Case(tuple(map(moved, case.args)), {name: moved(option) for name, option in case.options.items()})
    with no_waiting():
        results = value_and_gradients(on_gpu, moved)
    for got, expected in zip(results, value_and_gradients(case, np.asarray)):
        assert_same(got, expected)


@pytest.mark.parametrize("name", ops.__all__)
@settings(max_examples=10)
@given(data=st.data())
def test_gradients_of_ops(name, data):
    case = data.draw(CASES[name])
    options = {name: moved(option) for name, option in case.options.items()}
    function = one_result(getattr(ops, name))
    assert gradcheck(lambda *args: function(*args, **options), *map(moved, case.args)) <= 1e-7


def test_a_wrong_gradient_is_found_and_its_place_told():
    @op
    def wrong(x):
        return x * x, lambda dy: dy * x

    with pytest.raises(AssertionError, match=r"the gradient of argument 0, shape \(3,\), is wrong.*element \[2\]"):
        gradcheck(wrong, moved(np.array([0.1, 0.2, 3.0])))


def run(module, x):
    """Output, all gradients and what layers wrote down, with the same masks on either side."""
    x = Tensor(x, requires_grad=True)
    samples = to_device(np.arange(len(x)), x.device)
    with no_waiting():
        with sampling(seed=0, step=0, samples=samples):
            y = module(x + 0)
        if isinstance(x.data, np.ndarray):
            y.backward(cotangent(y.data))
        else:
            y.backward(moved(cotangent(y.data)))
    return [y.data, x.grad, *(p.grad for p in module.parameters()), *(b.data for b in module.buffers())]


def check_module(module, x):
    on_gpu = copy.deepcopy(module).to("cuda")
    for got, expected in zip(run(on_gpu, moved(x)), run(module, x)):
        assert (got is None) == (expected is None)
        if got is not None:
            assert_same(got, expected)


@pytest.mark.parametrize("kind", layers.CASES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_layers(kind, data):
    layer, x = data.draw(layers.CASES[kind])
    check_module(layers.randomise(layer.train(data.draw(flags)), data.draw(generators)), x)


@given(networks(), flags, flags)
def test_networks(model_and_images, training, checkpointing):
    model, images = model_and_images
    model.train(training).set_grad_checkpointing(checkpointing)
    check_module(model, images)


@settings(max_examples=5)
@given(networks(num_classes=2, act="gelu", global_pool="avg"))
def test_gradients_of_networks(model_and_images):
    model, images = model_and_images
    model = copy.deepcopy(model).to("cuda").eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert gradcheck(model, moved(images), parameters=trained, eps=1e-5) <= 1e-6


def test_weights_travel_and_are_saved_on_the_host():
    model = small()
    state = model.state_dict()
    model.to("cuda")
    assert model.head.weight.device == "cuda:0"
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[name])
    model.load_state_dict({name: array + 1 for name, array in state.items()})
    assert_same(model.head.weight.data, state["head.weight"] + 1)
    model.to("cpu")
    np.testing.assert_array_equal(model.head.weight.data, state["head.weight"] + 1)


@pytest.mark.parametrize("preset", init.PRESETS)
def test_initial_weights_are_the_same_everywhere(preset):
    host, gpu = small(), small().to("cuda")
    for model in (host, gpu):
        init.init_weights(model, preset, seed=3)
    for p, q in zip(gpu.parameters(), host.parameters()):
        assert_same(p.data, q.data)


def test_arrays_on_two_sides_are_told_apart():
    model = small().astype(np.float32).to("cuda")
    with pytest.raises(TypeError, match=r"different devices \(cpu, cuda:0, cuda:0\): move them with .to\(device\)"):
        model(np.zeros((1, 1, 8, 12), np.float32))
    with pytest.raises(TypeError, match="the arguments of cross_entropy are on different devices"):
        ops.cross_entropy(model(moved(np.zeros((1, 1, 8, 12), np.float32))), np.array([0]))
    with pytest.raises(TypeError, match="the arguments of take_tokens are on different devices"):
        ops.take_tokens(Tensor(moved(np.zeros((1, 2, 3)))), np.array([[0]]))


def test_ids_and_labels_are_looked_at_on_the_host_only():
    """On a GPU that would make the host wait; shapes and types are known without."""
    with no_waiting():
        loss = ops.cross_entropy(Tensor(moved(np.zeros((1, 2)))), moved(np.array([7])))
        ops.take_tokens(Tensor(moved(np.zeros((1, 2, 3)))), moved(np.array([[1, 1]])))
        with pytest.raises(ValueError, match=r"labels must have shape \(1,\)"):
            ops.cross_entropy(Tensor(moved(np.zeros((1, 2)))), moved(np.array([0, 1])))
        with pytest.raises(ValueError, match=r"ids must be integers of shape \(1, K\)"):
            ops.take_tokens(Tensor(moved(np.zeros((1, 2, 3)))), moved(np.array([1, 1])))
    assert loss.item() == 0  # and not what lies behind the end of a row


def test_a_tensor_on_the_gpu():
    x = Tensor(moved(np.array([1.0, 2.0])), requires_grad=True)
    (x * x).sum().backward()
    assert x.device == "cuda:0"
    assert repr(x) == "Tensor([1., 2.], requires_grad=True)"
    np.testing.assert_array_equal(x.numpy(), [1.0, 2.0])
    assert (x * x).sum().item() == 5.0
    assert isinstance(x.sum().data, cupy().ndarray)
    with no_grad():
        assert_same((2 / x - x / 2).data, np.array([1.5, 0.0]))


def test_anomalies_are_found():
    with detect_anomaly(), pytest.raises(FloatingPointError, match="1 of 2 values are not finite in the forward pass"):
        Tensor(moved(np.array([0.0, 1.0]))).log()


@given(st.integers(0, 5), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_random_numbers_are_those_of_the_host(batch, size, seed):
    samples, key = np.arange(batch) * 2**33, (seed, 7)
    expected = uniform(key, samples, (size,))
    on_gpu = to_device(samples, "cuda")
    with no_waiting():
        got = uniform(key, on_gpu, (size,), xp=array_module(on_gpu))
    np.testing.assert_array_equal(got.get(), expected)
    assert got.dtype == np.float32


def test_unnamed_samples_are_numbered_on_the_gpu(gpu):
    with no_waiting():
        assert isinstance(layer_uniform(3, (2,), gpu), gpu.ndarray)


def test_a_second_gpu_is_used_where_it_is_current(gpu):
    if gpu.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU only")
    with gpu.cuda.Device(1):
        model = small().astype(np.float32).to("cuda:1")
        y = model(to_device(np.zeros((1, 1, 8, 12), np.float32), "cuda:1"))
        y.sum().backward()
    assert y.device == model.head.weight.device == "cuda:1"
    with pytest.raises(ValueError, match=r"resides \(1\) is different from the current device \(0\)"):
        y.data + 1


def test_attention_maps_are_read_from_the_gpu():
    model, images = small(), np.random.default_rng(0).standard_normal((2, 1, 8, 12))
    on_gpu = attention_maps(copy.deepcopy(model).to("cuda"), moved(images))
    for got, expected in zip(on_gpu, attention_maps(model, images)):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_recomputation_hands_zeros_to_parameters_that_make_no_difference():
    class Idle(nn.Module):
        def __init__(self):
            self.fc, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x)

    layer = Idle().to("cuda")
    nn.checkpoint(layer, Tensor(moved(np.ones((1, 2), np.float32)))).sum().backward()
    assert_same(layer.idle.weight.grad, np.zeros((2, 2), np.float32))
