import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.interpolation import KERNELS, REACH, keys_cubic, resampling_weights, triangle
from tests.devices import moved, no_waiting

kernels = st.sampled_from(list(KERNELS))


@st.composite
def stretches(draw):
    """An axis, a stretch of it in whole pixels, and how many new ones show it."""
    old = draw(st.integers(1, 12))
    start = draw(st.integers(0, old - 1))
    return old, start, draw(st.integers(1, old - start)), draw(st.integers(1, 12))


def weights_of(old, start, length, new, kernel, dtype=np.float64):
    new_pixels, old_pixels = np.arange(new, dtype=dtype)[:, None], np.arange(old, dtype=dtype)
    return resampling_weights(new_pixels, old_pixels, dtype(start), dtype(length), new, kernel)


@given(stretches(), kernels)
def test_weights_one_by_one(stretch, kernel):
    old, start, length, new = stretch
    expected = np.zeros((new, old))
    wide = max(length / new, 1)
    for i in range(new):
        centre = start + (i + 0.5) * length / new
        for j in range(start, start + length):
            t = abs(j + 0.5 - centre) / wide
            if kernel == "bilinear":
                expected[i, j] = max(1 - t, 0)
            elif t < 2:
                expected[i, j] = 1.5 * t**3 - 2.5 * t**2 + 1 if t < 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        expected[i] /= expected[i].sum()
    np.testing.assert_allclose(weights_of(*stretch, kernel), expected, atol=1e-12)


@given(stretches(), kernels)
def test_single_precision_stays_and_is_as_good(stretch, kernel):
    weights = weights_of(*stretch, kernel, np.float32)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, weights_of(*stretch, kernel), atol=1e-5)


def test_each_image_of_a_batch_has_its_own_stretch():
    start, length = (np.array(x)[:, None, None] for x in ([0.0, 2.0], [4.0, 3.0]))
    together = resampling_weights(np.arange(3.0)[:, None], np.arange(5.0), start, length, 3, "bicubic")
    alone = [weights_of(5, 0, 4, 3, "bicubic"), weights_of(5, 2, 3, 3, "bicubic")]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("a", [-0.5, -0.75])
def test_the_cubic_kernel_is_smooth_and_keeps_pixels(a):
    np.testing.assert_array_equal(keys_cubic(np.array([0.0, 1, -1, 2, -2, 3]), a), [1, 0, 0, 0, 0, 0])
    h = 1e-6
    for t, slope in [(0.0, 0.0), (1.0, a), (2.0, 0.0)]:
        for side in (-h, h):
            [there], [here] = keys_cubic(np.array([t + side]), a), keys_cubic(np.array([t]), a)
            np.testing.assert_allclose((there - here) / side, slope, atol=1e-5)


def test_the_linear_kernel():
    np.testing.assert_array_equal(triangle(np.array([-2, -1, -0.25, 0, 0.5, 1, 3])), [0, 0, 0.75, 1, 0.5, 0, 0])


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_kernels_end_where_it_is_said(kernel):
    reach = REACH[kernel]
    assert (KERNELS[kernel](np.array([-reach, reach, reach + 0.1, 9.0])) == 0).all()
    assert (KERNELS[kernel](np.array([0.01 - reach, reach - 0.01])) != 0).all()


@given(stretches(), kernels)
def test_on_a_gpu(gpu, stretch, kernel):
    old, start, length, new = stretch
    arguments = np.arange(new, dtype=np.float32)[:, None], np.arange(old, dtype=np.float32)
    arguments += tuple(np.full((2, 1, 1), x, np.float32) for x in (start, length))
    on_cpu, arguments = resampling_weights(*arguments, new, kernel), [moved(x) for x in arguments]
    with no_waiting():
        on_gpu = resampling_weights(*arguments, new, kernel)
    np.testing.assert_allclose(on_gpu.get(), on_cpu, atol=1e-6)
