"""Principal components of filters: planted ones are found, and the picture is the same every time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.analysis import patch_filters
from minivit.analysis.filters import first_filters
from minivit.models import VisionTransformer
from minivit.models.resnet import ResNet
from minivit.nn import Linear
from tests.models.test_vit import close, small
from tests.strategies import generators

shapes = st.tuples(st.integers(2, 12), *[st.integers(1, 3)] * 3)  # (D, C, P, Q)


def with_filters(weight):
    """A network with these filters in its patch embedding, (D, C, P, Q)."""
    width, channels, *patch = weight.shape
    options = dict(in_chans=channels, embed_dim=width, depth=1, num_heads=1, num_classes=2, weight_init="skip")
    model = VisionTransformer(tuple(patch), tuple(patch), **options)
    model.patch_embed.proj.weight.data = weight
    return model


@given(shapes, generators, st.data())
def test_a_planted_embedding_of_few_components_is_found(shape, rng, data):
    """W = mean + Σ s_k u_k v_kᵀ, with u orthonormal and of mean 0, and v orthonormal images."""
    width, pixels = shape[0], math.prod(shape[1:])
    rank = data.draw(st.integers(1, min(width - 1, pixels)))
    scales = 2.0 ** -np.arange(rank)
    mixed = rng.standard_normal((width, rank))
    u = np.linalg.qr(mixed - mixed.mean(0))[0]
    v = np.linalg.qr(rng.standard_normal((pixels, rank)))[0]
    weight = rng.standard_normal(pixels) + (u * scales) @ v.T
    components, shares = patch_filters(with_filters(weight.reshape(shape)), rank)
    assert components.shape == (rank, *shape[1:])
    close(shares, scales**2 / (scales**2).sum())
    for found, planted in zip(components, v.T):
        close(abs((found.ravel() * planted).sum()), 1)


@given(shapes, generators)
def test_components_are_orthonormal_and_explain_all_of_the_variance(shape, rng):
    weight = rng.standard_normal(shape)
    components, shares = patch_filters(with_filters(weight), count=1000)
    assert len(components) == len(shares) == min(shape[0], math.prod(shape[1:]))
    flat, filters = components.reshape(len(components), -1), weight.reshape(len(weight), -1)
    close(flat @ flat.T, np.eye(len(flat)))
    close(shares.sum(), 1)
    assert (shares >= 0).all() and (np.diff(shares) <= 1e-15).all()
    centred = filters - filters.mean(0)
    close(centred @ flat.T @ flat, centred)
    close(((centred @ flat.T) ** 2).sum(0) / (centred**2).sum(), shares)


@given(shapes, generators, st.integers(1, 30))
def test_fewer_components_are_the_first_of_more(shape, rng, count):
    model = with_filters(rng.standard_normal(shape))
    few, all_ = patch_filters(model, count), patch_filters(model, 1000)
    np.testing.assert_array_equal(few.images, all_.images[:count])
    np.testing.assert_array_equal(few.shares, all_.shares[:count])
    assert few.shares.sum() <= 1 + 1e-12


@given(generators)
def test_the_sign_is_fixed(rng):
    """It does not hang on the sign or the order of filters, which the decomposition feels."""
    weight = rng.standard_normal((12, 3, 2, 2))
    components = patch_filters(with_filters(weight), 11).images  # the twelfth explains nothing, and may be anything
    for other in (-weight, weight[rng.permutation(12)], 3 * weight):
        np.testing.assert_allclose(patch_filters(with_filters(other), 11).images, components, atol=1e-6)
    assert (components.max((1, 2, 3)) >= abs(components.min((1, 2, 3)))).all()


def test_filters_that_are_all_zero_explain_nothing():
    components, shares = patch_filters(with_filters(np.zeros((4, 1, 2, 2))), 3)
    assert components.shape == (3, 1, 2, 2) and (shares == 0).all()


def test_filters_of_each_kind_of_first_layer():
    resnet = ResNet("basic", (1,), (8,), stem="7x7", in_chans=2)
    np.testing.assert_array_equal(first_filters(resnet), resnet.conv1.weight.data)
    assert patch_filters(resnet, 5).images.shape == (5, 2, 7, 7)
    model = small()
    np.testing.assert_array_equal(first_filters(model), model.patch_embed.proj.weight.data)
    assert patch_filters(model).images.shape == (12, 1, 4, 4)
    assert patch_filters(small(embed_layer="spt"), 3).images.shape == (3, 5, 4, 4)


def test_what_cannot_be_gets_a_sentence():
    with pytest.raises(ValueError, match="Linear has neither a patch embedding nor a first convolution, conv1"):
        patch_filters(Linear(2, 2))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        patch_filters(small(), 0)


def test_on_the_twin_of_a_gpu(cupy_twin):
    here = patch_filters(small())
    for one, other in zip(patch_filters(small().to("cuda")), here):
        assert type(one) is np.ndarray
        close(one, other)
