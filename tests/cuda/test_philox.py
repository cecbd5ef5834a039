"""Random numbers of the kernel: those of the formula on a CPU, to the last bit."""

import numpy as np
import pytest

from minivit import nn, random
from minivit.autograd import Tensor, no_grad
from minivit.backend import FUSED, to_device
from minivit.cuda.random import uniform

SAMPLES = np.array([0, 7, 2**32 - 1, 2**32, 2**40 + 3, 7])
SHAPES = [(), (1,), (3,), (4,), (2, 3), (5, 7, 11)]
KEYS = [(0, 0), (2**32 - 1, 2**31), random.key(3, "x")]


@pytest.fixture(autouse=True)
def kernel(xp, monkeypatch):
    monkeypatch.setitem(FUSED, uniform.formula, uniform)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_the_same_bits_as_the_formula(xp, shape, key):
    """With the key as an argument and in memory, and of samples of another type."""
    expected = random.uniform(key, SAMPLES, shape)
    in_memory = xp.asarray(np.array([key, key], np.uint32))[1]
    samples = xp.asarray(SAMPLES)
    for found in (
        uniform(key, samples, shape, xp),
        uniform(in_memory, samples, shape, xp),
        uniform(key, samples.astype("uint64"), shape, xp),
        random.uniform(in_memory, samples, shape, xp),
    ):
        assert found.dtype == "float32"
        np.testing.assert_array_equal(found.get(), expected)


def test_the_known_answers_of_its_authors(xp):
    """Their vectors have a counter of zeros, and the digits of π; here the counter is (block, 0, sample)."""
    found = uniform((0, 0), xp.zeros(1, "int64"), (4,), xp).get()[0]
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    np.testing.assert_array_equal(found, np.array([word >> 8 for word in words], np.float32) / 2**24)


def test_more_rows_than_a_block_of_threads(xp):
    samples = np.arange(1000, 1700)
    key = random.key(0, "rows")
    np.testing.assert_array_equal(uniform(key, xp.asarray(samples), (9,), xp).get(), random.uniform(key, samples, (9,)))


@pytest.mark.parametrize("samples, shape", [(0, (4,)), (3, (0,)), (3, (2, 0))])
def test_nothing_to_draw(xp, samples, shape, monkeypatch):
    monkeypatch.setattr("minivit.cuda.random.launch", None)  # would raise
    assert uniform((1, 2), xp.arange(samples), shape, xp).shape == (samples, *shape)


def test_a_key_in_memory_may_change(xp):
    keys = xp.zeros((3, 2), "uint32")
    with random.keyed_by(keys.__getitem__), random.sampling(0, 0, xp.arange(2)):
        first = random.layer_uniform(2, (4,), xp)
        keys[...] = 7
        random.layer_uniform(2, (4,), xp)
    np.testing.assert_array_equal(first.get(), random.uniform((0, 0), np.arange(2), (4,)))
    with random.keyed_by(keys.__getitem__), random.sampling(0, 0, xp.arange(2)):
        second = random.layer_uniform(2, (4,), xp)
    np.testing.assert_array_equal(second.get(), random.uniform((7, 7), np.arange(2), (4,)))


@pytest.mark.parametrize("layer", [nn.Dropout(0.3), nn.DropPath(0.3)], ids=lambda layer: type(layer).__name__)
def test_a_layer_drops_the_same_on_both_devices(xp, layer):
    x, samples = np.ones((6, 5, 8), np.float32), np.arange(40, 46)
    outputs = []
    for device in ("cpu", "cuda"):
        with no_grad(), random.sampling(1, 2, to_device(samples, device)):
            layer(Tensor(to_device(x, device)))
            outputs.append(layer(Tensor(to_device(x, device))).numpy())
    np.testing.assert_array_equal(*outputs)
    assert 0 < (outputs[0] == 0).sum() < x.size
