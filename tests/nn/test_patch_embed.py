"""Cutting an image into patches and projecting them is a convolution whose kernel does not overlap itself."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, gradcheck
from minivit.nn import PatchEmbed
from minivit.ops import patchify
from tests.nn.test_gradients import randomise
from tests.rules import cotangent
from tests.strategies import arrays, generators, sizes


@st.composite
def images(draw):
    """Images (B, C, H, W), and the height and width of patches that divide them."""
    b, c, rows, columns, p, q = draw(st.tuples(*[sizes] * 6))
    return draw(arrays((b, c, rows * p, columns * q))), (p, q)


def windows(x, patch_size):
    """(place, the window of all images there) in reading order: where a convolution of that stride looks."""
    p, q = patch_size
    corners = [(i, j) for i in range(0, x.shape[2], p) for j in range(0, x.shape[3], q)]
    return [(n, (slice(None), slice(None), slice(i, i + p), slice(j, j + q))) for n, (i, j) in enumerate(corners)]


def convolution(x, weight, bias):
    """y[b, n, d] = bias[d] + Σ_cpq weight[d, c, p, q] · x[b, c, i + p, j + q], (i, j) the n-th corner."""
    return np.stack(
        [np.tensordot(x[at], weight, ([1, 2, 3], [1, 2, 3])) + bias for _, at in windows(x, weight.shape[2:])], 1
    )


def convolution_backward(x, weight, dy):
    """dx, dweight and dbias, straight from the sum above."""
    dx, dweight = np.zeros(x.shape), np.zeros(weight.shape)
    for n, at in windows(x, weight.shape[2:]):
        dx[at] += np.tensordot(dy[:, n], weight, (1, 0))
        dweight += np.tensordot(dy[:, n], x[at], (0, 0))
    return dx, dweight, dy.sum((0, 1))


@given(images(), sizes, generators)
def test_it_is_the_strided_convolution_forward_and_backward(drawn, width, rng):
    x, patch_size = drawn
    layer = randomise(PatchEmbed(x.shape[2:], patch_size, x.shape[1], width), rng)
    weight, bias, image = layer.proj.weight, layer.proj.bias, Tensor(x, requires_grad=True)
    y = layer(image)
    np.testing.assert_allclose(y.data, convolution(x, weight.data, bias.data), rtol=1e-10, atol=1e-12)
    y.backward(dy := cotangent(y.data))
    expected = convolution_backward(x, weight.data, dy)
    for ours, theirs in zip((image.grad, weight.grad, bias.grad), expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@given(images())
def test_patches_come_row_by_row_each_flattened_as_channel_row_column(drawn):
    x, patch_size = drawn
    expected = np.stack([x[at].reshape(len(x), -1) for _, at in windows(x, patch_size)], axis=1)
    np.testing.assert_array_equal(patchify(Tensor(x), patch_size).data, expected)


def test_the_patches_of_a_small_image():
    image = np.arange(2 * 4 * 6, dtype=float).reshape(1, 2, 4, 6)
    patches = patchify(Tensor(image), (2, 3)).data
    assert patches.shape == (1, 4, 12)
    assert patches[0, 1].tolist() == [3, 4, 5, 9, 10, 11, 27, 28, 29, 33, 34, 35]  # top right: both rows, both channels
    assert patches[0, 2, 0] == 12


@given(images())
def test_gradient_of_cutting(drawn):
    x, patch_size = drawn
    gradcheck(lambda x: patchify(x, patch_size), x)


@given(images(), sizes)
def test_the_grid_and_the_number_of_tokens(drawn, width):
    x, (p, q) = drawn
    layer = PatchEmbed(x.shape[2:], (p, q), x.shape[1], width).astype(np.float64)
    assert layer.grid_size == (x.shape[2] // p, x.shape[3] // q)
    assert layer.num_patches == math.prod(layer.grid_size)
    assert layer(x).shape == (len(x), layer.num_patches, width)


def test_one_number_is_both_sides_and_the_weight_has_the_shape_of_a_convolutions():
    layer = PatchEmbed(32, 8, 3, 16)
    assert (layer.img_size, layer.patch_size, layer.grid_size) == ((32, 32), (8, 8), (4, 4))
    assert {name: p.shape for name, p in layer.named_parameters()} == {"proj.weight": (16, 3, 8, 8), "proj.bias": (16,)}
    assert [name for name, _ in PatchEmbed(32, 8, 3, 16, bias=False).named_parameters()] == ["proj.weight"]


@pytest.mark.parametrize(
    ("img_size", "patch_size"), [(30, 8), ((32, 30), 8), ((30, 32), 8), (32, (8, 5)), (32, (8, 0))]
)
def test_a_patch_that_does_not_divide_the_image_gets_a_sentence(img_size, patch_size):
    with pytest.raises(ValueError, match=r"patch_size \(8, [850]\) must divide img_size \(3[02], 3[02]\)"):
        PatchEmbed(img_size, patch_size)


@pytest.mark.parametrize("size", [(6, 8), (8, 6)])
def test_cutting_refuses_what_it_cannot_cut(size):
    with pytest.raises(ValueError, match=r"patch_size \(4, 4\) must divide the image size \("):
        patchify(Tensor(np.zeros((1, 1, *size))), (4, 4))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 4), (2, 1, 16, 16), (1, 8, 8), (1, 1, 1, 8, 8)])
def test_images_of_another_shape_get_a_sentence(shape):
    with pytest.raises(ValueError, match=r"images must have shape \(B, 1, 8, 8\), got \("):
        PatchEmbed(8, 4, 1, 2)(np.zeros(shape, np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64, np.float16])
def test_images_of_another_type_get_a_sentence(dtype):
    with pytest.raises(TypeError, match=f"images are {np.dtype(dtype)}, the weights float32: normalise"):
        PatchEmbed(8, 4, 1, 2)(np.zeros((2, 1, 8, 8), dtype))
