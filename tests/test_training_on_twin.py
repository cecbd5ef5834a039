"""Optimizers and a training step on the strict twin of CuPy: nothing that CuPy refuses, one wait, the same numbers.

With ``-m gpu`` the same on a GPU.
"""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import ops
from minivit.backend import to_device
from minivit.data import Batch
from minivit.models import VisionTransformer
from minivit.objective import Classification
from minivit.optim import EMA, SGD, AdamW, clip_grad_norm, warmup_cosine, weight_decay_groups
from minivit.training import Layout, train_step
from tests.cupy_twin import counted, twin
from tests.devices import cupy, no_waiting

pytestmark = pytest.mark.usefixtures("gpu")

OPTIMIZERS = {
    "SGD": lambda groups: SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "AdamW": lambda groups: AdamW(groups, lr=0.01, weight_decay=0.1),
}


def network(dtype=np.float64, **options):
    """Two blocks that drop all that can be dropped."""
    rates = dict.fromkeys(
        ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), options.pop("rate", 0.2)
    )
    model = VisionTransformer(4, 2, 2, 3, embed_dim=6, depth=2, num_heads=2, seed=1, **rates, **options)
    return model.astype(dtype)


def batch(size, soft=False, dtype=np.float64):
    rng = np.random.default_rng(0)
    labels = rng.dirichlet(np.ones(3), size).astype(dtype) if soft else rng.integers(0, 3, size)
    return Batch(rng.standard_normal((size, 2, 4, 4)).astype(dtype), labels, rng.permutation(100)[:size])


def assert_close(on_gpu, on_cpu):
    assert isinstance(on_gpu, cupy().ndarray)
    assert on_gpu.dtype == on_cpu.dtype
    np.testing.assert_allclose(on_gpu.get(), on_cpu, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_average_and_clipping(name):
    """Three updates with a schedule; the numbers are the same, and the host never waits."""

    def run(model):
        rng = np.random.default_rng(0)
        optimizer = OPTIMIZERS[name](weight_decay_groups(model, 0.05))
        ema = EMA(optimizer, decay=0.9, warmup=True)
        for step in range(3):
            gradients = to_device(rng.standard_normal(optimizer.flat.grad.shape), model.device)
            with no_waiting():
                optimizer.zero_grad()
                optimizer.flat.grad += gradients
                norm = clip_grad_norm(optimizer, max_norm=1.0)
                optimizer.lr = warmup_cosine(step, 3, 1, base_lr=0.1, start_lr=0.01)
                optimizer.step()
                ema.update()
                with ema.applied():
                    averaged = model.head.weight.data.copy()
        return optimizer, ema, float(norm), averaged

    host = network()
    gpu = copy.deepcopy(host).to("cuda")
    (ours, our_ema, our_norm, our_average), (theirs, their_ema, their_norm, their_average) = run(gpu), run(host)
    assert our_norm == pytest.approx(their_norm, rel=1e-12)
    assert_close(our_average, their_average)
    assert_close(ours.flat.data, theirs.flat.data)
    assert_close(ours.flat.grad, theirs.flat.grad)
    for got, expected in ((ours, theirs), (our_ema, their_ema)):
        state = got.state_dict()
        for key, array in expected.state_dict().items():
            np.testing.assert_allclose(state[key], array, rtol=1e-7, atol=1e-9)
        got.load_state_dict(expected.state_dict())
        for key, array in expected.state_dict().items():
            np.testing.assert_array_equal(got.state_dict()[key], array)


@settings(max_examples=10)
@given(st.integers(1, 4), st.booleans(), st.booleans(), st.sampled_from([None, 1, 3]), st.sampled_from([None, 0.5]))
def test_a_training_step(size, soft, checkpointing, micro_batch, max_norm):
    data, results, models = batch(size, soft), [], []
    for device in ("cpu", "cuda"):
        model = network().to(device)
        model.set_grad_checkpointing(checkpointing)
        optimizer = AdamW(model.named_parameters(), lr=0.01)
        for step in range(2):
            there = data.to(device)
            with Layout(micro_batch=micro_batch) as layout, counted() as waits:
                result = train_step(model, Classification(), there, optimizer, 0, step, layout, max_norm)
        results.append(result)
        models.append(model)
    assert dict(waits) == {"get": 1} or cupy() is not twin  # the loss and the norm, to see whether they are finite
    np.testing.assert_allclose(results[1], results[0], rtol=1e-9)
    for ours, theirs in zip(models[1].parameters(), models[0].parameters()):
        assert_close(ours.data, theirs.data)
        assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"qk_norm": True}, {"reg_tokens": 2, "rate": 0.0}])
def test_forward_and_backward_wait_for_nothing(options):
    model = network(np.float32, init_values=0.1, **options).to("cuda")
    data = batch(3, dtype=np.float32).to("cuda")
    with no_waiting():
        ops.cross_entropy(model(data.images), data.labels, label_smoothing=0.1).backward()
    assert all(isinstance(p.grad, cupy().ndarray) and p.grad.dtype == np.float32 for p in model.parameters())
