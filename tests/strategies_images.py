"""Cases of the ops that lay a window on images. ``tests/strategies.py`` has the vocabulary, and takes these in."""

from itertools import product

from hypothesis import strategies as st

from tests.strategies import Case, arrays, distinct, flags, normal, sizes

lengths = st.integers(1, 3)


def windows(largest_padding):
    """(image size, kernel, stride, padding), as pairs; the window has at least one place."""
    axes = [
        (length, kernel, stride, padding)
        for length, kernel, stride in product(range(1, 7), range(1, 6), [1, 1, 2, 3])
        for padding in range(largest_padding(kernel) + 1)
        if length + 2 * padding >= kernel
    ]
    axis = st.sampled_from(axes)
    return st.tuples(axis, axis).map(lambda pair: tuple(zip(*pair)))


def short(pair):
    """Two equal numbers as one."""
    return pair[0] if pair[0] == pair[1] else pair


@st.composite
def convolutions(draw):
    """With few inputs for many outputs, and with many for few: columns are made in two ways."""
    batch, groups, inputs, outputs = draw(sizes), draw(lengths), draw(lengths), draw(st.sampled_from([1, 2, 5]))
    size, kernel, stride, padding = draw(windows(lambda kernel: 3))
    x, weight = (batch, groups * inputs, *size), (groups * outputs, inputs, *kernel)
    bias = draw(arrays(weight[:1])) if draw(flags) else None
    options = {"stride": short(stride), "padding": short(padding), "groups": groups}
    return Case((draw(arrays(x)), draw(arrays(weight)), bias), options)


@st.composite
def poolings(draw, values=normal):
    batch, channels = draw(lengths), draw(lengths)
    size, kernel, stride, padding = draw(windows(lambda kernel: kernel // 2))
    stride = draw(st.sampled_from(3 * [short(stride)] + [None]))
    options = {"kernel_size": short(kernel), "stride": stride, "padding": short(padding)}
    return Case((draw(arrays((batch, channels, *size), values)),), options)


@st.composite
def averages(draw):
    case = draw(poolings())
    return Case(case.args, case.options | {"count_include_pad": draw(flags)})


CASES = {"avg_pool2d": averages(), "conv2d": convolutions(), "max_pool2d": poolings(distinct)}
