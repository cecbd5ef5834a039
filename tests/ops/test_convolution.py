import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.ops import avg_pool2d, conv2d, convolution, linear, max_pool2d
from tests.rules import cotangent, kept
from tests.strategies import CASES, arrays, flags, sizes


def value_and_cotangents(case):
    value, pullback = conv2d.raw(*case.args, **case.options)
    return [value, *(dx for dx in pullback(cotangent(value)) if dx is not None)]


@given(CASES["conv2d"], st.sampled_from([1, 2, 1000]), flags)
def test_the_order_of_the_work_does_not_matter(case, size, all_rows):
    """Images in pieces or all together, kernels row by row or at once, pixels copied or not: the same sums."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_pieces", lambda x, shape: [slice(i, i + size) for i in range(0, len(x), size)])
        if all_rows:
            patch.setattr(convolution, "_rows_at_once", lambda shape, stride: shape[3])
            patch.setattr(convolution, "_is_view", lambda taps, size: False)
        results = value_and_cotangents(case)
    for ours, theirs in zip(results, value_and_cotangents(case)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


@given(CASES["conv2d"])
def test_a_group_sees_its_own_channels_only(case):
    """One group whose weight is zero wherever an output meets the inputs of another group."""
    (x, weight, bias), groups = case.args, case.options["groups"]
    outputs, inputs, *kernel = weight.shape
    spread = np.zeros((groups, outputs // groups, groups, inputs, *kernel))
    for group in range(groups):
        spread[group, :, group] = weight.reshape(groups, -1, inputs, *kernel)[group]
    one = case.options | {"groups": 1}
    got = conv2d.raw(x, spread.reshape(outputs, -1, *kernel), bias, **one)[0]
    np.testing.assert_allclose(got, conv2d.raw(*case.args, **case.options)[0], rtol=1e-11, atol=1e-12)


@given(CASES["conv2d"], st.integers(1, 2), st.integers(0, 2))
def test_what_moves_in_the_image_moves_in_the_result(case, down, right):
    """Equivariance: cutting rows and columns off an image, as many as the stride, cuts off the first places."""
    x, weight, bias = case.args
    x = np.pad(x, [(0, 0), (0, 0), (6, 4), (6, 4)])
    y = conv2d.raw(x, weight, bias, 2, 0, case.options["groups"])[0]
    moved = conv2d.raw(x[:, :, 2 * down :, 2 * right :], weight, bias, 2, 0, case.options["groups"])[0]
    np.testing.assert_allclose(moved, y[:, :, down:, right:], rtol=1e-11, atol=1e-12)


@given(st.tuples(*[sizes] * 4).flatmap(arrays), sizes)
def test_a_kernel_of_one_pixel_is_a_matrix_product_of_the_channels(x, outputs):
    weight = cotangent(np.empty((outputs, x.shape[1])))
    expected, back = linear.raw(x.transpose(0, 2, 3, 1), weight)
    y, pullback = conv2d.raw(x, weight[:, :, None, None])
    np.testing.assert_allclose(y, expected.transpose(0, 3, 1, 2), rtol=1e-11, atol=1e-13)
    dx, dweight, _ = back(cotangent(y).transpose(0, 2, 3, 1))
    got = pullback(cotangent(y))
    np.testing.assert_allclose(got[0], dx.transpose(0, 3, 1, 2), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(got[1][..., 0, 0], dweight, rtol=1e-11, atol=1e-12)


def test_a_known_convolution():
    """An edge from dark to bright, seen by Sobel's kernel, which is not turned: this is a correlation, as PyTorch's."""
    image = np.tile([0.0, 0.0, 1.0, 1.0], (3, 1))[None, None]
    sobel = np.array([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])[None, None]
    np.testing.assert_array_equal(conv2d.raw(image, sobel)[0], [[[[4, 4]]]])
    padded = conv2d.raw(image, sobel, padding=1)[0]
    np.testing.assert_array_equal(padded, [[[[0, 3, 3, -3], [0, 4, 4, -4], [0, 3, 3, -3]]]])
    np.testing.assert_array_equal(conv2d.raw(image, sobel, stride=(1, 2), padding=(0, 1))[0], [[[[0, 4]]]])


def columns(x, shape, stride=(1, 1), padding=(0, 0)):
    size = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], shape[3:], stride, padding)]
    ((_, seen),) = convolution._columns(x, shape, stride, padding, size)
    return [matrix for _, matrix in convolution._by_rows(seen, shape[3], size[0])]


def test_what_can_be_a_view_is_not_copied():
    """A kernel of one pixel sees an image as it is; and the rows of a larger one see the same three copies."""
    x = np.ones((1, 4, 6, 6))
    (pixels,) = columns(x, (1, 2, 4, 1, 1))
    assert np.shares_memory(pixels, x)
    (pixels,) = columns(x, (2, 3, 2, 1, 1), stride=(2, 2))
    assert pixels.shape == (2, 2, 9)
    first, second, third = columns(x, (1, 4, 4, 3, 3), padding=(1, 1))
    assert first.shape == (1, 4 * 3, 6 * 6)
    assert np.shares_memory(first, second)
    assert np.shares_memory(second, third)
    assert first.base.size == 4 * 3 * (6 + 2) * 6


def test_the_columns_are_not_kept():
    x, weight = np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3))
    _, pullback = conv2d.raw(x, weight, padding=1)
    assert sum(array.nbytes for array in kept(pullback)) == x.nbytes + weight.nbytes


def test_the_bias_may_be_named_or_left_out():
    x, weight, bias = (Tensor(np.full(s, 2.0), requires_grad=True) for s in ((1, 1, 1, 2), (1, 1, 1, 2), (1,)))
    assert conv2d(x, weight).item() == conv2d(x, weight, bias=None).item() == 8
    conv2d(x, weight=weight, bias=bias).backward()
    assert (weight.grad.tolist(), bias.grad.tolist()) == ([[[[2, 2]]]], [1])


def test_no_images():
    y, pullback = conv2d.raw(np.ones((0, 2, 4, 4)), np.ones((3, 2, 3, 3)), np.ones(3), 2, 1)
    dx, dweight, _ = pullback(y)
    assert (y.shape, dx.shape) == ((0, 3, 2, 2), (0, 2, 4, 4))
    assert not dweight.any()


@pytest.mark.parametrize(
    ("x", "weight", "bias", "groups"),
    [
        ((2, 4, 8), (6, 4, 3, 3), None, 1),
        ((2, 4, 8, 8), (6, 4, 3), None, 1),
        ((2, 4, 8, 8), (6, 3, 3, 3), None, 1),
        ((2, 4, 8, 8), (6, 4, 3, 3), None, 2),
        ((2, 4, 8, 8), (3, 2, 3, 3), None, 2),
        ((2, 4, 8, 8), (6, 4, 3, 3), None, 0),
        ((2, 4, 8, 8), (6, 4, 3, 3), (4,), 1),
        ((2, 4, 8, 8), (6, 4, 3, 3), (1, 6), 1),
    ],
)
def test_convolution_names_the_shapes_that_do_not_fit(x, weight, bias, groups):
    words = r"weight \(O, C/groups, kh, kw\).*; got x \(2, 4" if bias is None else r"bias of shape \(6,\), got"
    with pytest.raises(ValueError, match=words):
        conv2d.raw(np.ones(x), np.ones(weight), None if bias is None else np.ones(bias), groups=groups)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 0}, r"got kernel \(3, 3\), stride \(0, 0\) and padding \(0, 0\)"),
        ({"stride": (1, -1)}, "stride of at least 1"),
        ({"padding": -1}, "padding of at least 0"),
        (
            {"padding": (1, 1, 1)},
            r"a number or a pair each, got kernel \(3, 3\), stride \(1, 1\) and padding \(1, 1, 1\)",
        ),
        ({"stride": (1,)}, "a number or a pair each"),
    ],
)
def test_strides_and_paddings_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        conv2d.raw(np.ones((1, 1, 8, 8)), np.ones((1, 1, 3, 3)), **options)


def test_a_kernel_larger_than_the_image():
    with pytest.raises(ValueError, match=r"conv2d was given a kernel \(3, 5\), larger than x \(1, 1, 2, 2\)"):
        conv2d.raw(np.ones((1, 1, 2, 2)), np.ones((1, 1, 3, 5)), padding=1)


# --- pooling -------------------------------------------------------------------------------------------------------


def test_of_equal_pixels_the_first_is_the_largest():
    """Reading each window row by row; a pixel that is the first of two windows gets both cotangents."""
    x = np.zeros((1, 1, 3, 4))
    x[0, 0, 1, 1:3] = 1
    y, pullback = max_pool2d.raw(x, 2, 1)
    np.testing.assert_array_equal(y, np.ones((1, 1, 2, 3)))
    dy = np.array([[[[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]]])
    np.testing.assert_array_equal(pullback(dy)[0, 0], [[0, 0, 0, 0], [0, 1 + 2 + 8 + 16, 4 + 32, 0], [0, 0, 0, 0]])


def test_a_window_at_the_edge_looks_at_pixels_only():
    x = np.array([[[[-3.0, -1.0], [-2.0, -4.0]]]])
    np.testing.assert_array_equal(max_pool2d.raw(x, 2, padding=1)[0], x)
    np.testing.assert_array_equal(avg_pool2d.raw(x, 2, padding=1)[0], x / 4)
    np.testing.assert_array_equal(avg_pool2d.raw(x, 2, padding=1, count_include_pad=False)[0], x)


def test_what_is_not_a_number_is_seen():
    y = max_pool2d.raw(np.array([[[[1.0, np.nan, 2.0, 3.0]]]]), (1, 2))[0]
    np.testing.assert_array_equal(y, [[[[np.nan, 3]]]])


@given(sizes, sizes, arrays((2, 3, 4, 4)))
def test_pools_of_whole_tiles_are_reductions(rows, columns, x):
    x = np.tile(x, (1, 1, rows, columns))
    tiles = x.reshape(2, 3, 4 * rows, 1, columns, 4)
    np.testing.assert_array_equal(max_pool2d.raw(x, (1, 4))[0], tiles.max((3, 5)))
    np.testing.assert_allclose(avg_pool2d.raw(x, (1, 4))[0], tiles.mean((3, 5)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
def test_pools_that_cannot_be(pool):
    name = pool.__name__
    with pytest.raises(ValueError, match=rf"{name} needs x \(B, C, H, W\), got \(4, 4\)"):
        pool(Tensor(np.ones((4, 4))), 2)
    with pytest.raises(ValueError, match=rf"{name} needs a padding of at most half the kernel \(3, 3\), got \(2, 2\)"):
        pool(Tensor(np.ones((1, 1, 4, 4))), 3, padding=2)
    with pytest.raises(
        ValueError, match=rf"{name} was given a kernel \(5, 5\), larger than x \(1, 1, 4, 4\) with padding"
    ):
        pool(Tensor(np.ones((1, 1, 4, 4))), 5)
    with pytest.raises(ValueError, match=rf"{name} needs a kernel and a stride of at least 1"):
        pool(Tensor(np.ones((1, 1, 4, 4))), 0)
