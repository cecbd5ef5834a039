"""Convolution and pooling: the same little sum, or maximum, at every place of an image.

A kernel of kh rows and kw columns is laid on the image at the places (s u, t v), u = 0, 1, …, v = 0, 1, …, for a stride
(s, t). Its entry (i, j) then lies on the pixel (s u + i − p, t v + j − q), for a padding (p, q). Beyond the edge there
are zeros, which need not be stored: ``_taps`` says of each entry at which places it lies on a pixel.

Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016 (arXiv:1603.07285), has pictures of it.
"""

import math
from collections.abc import Iterator

from minivit.autograd import op, wanted
from minivit.backend import Array, array_module, cache_blocks, implementation
from minivit.ops.shape import Size, pair

Slices = tuple[slice, slice]
COLUMNS_BYTES = 5 * 2**18  # of the columns that are made at a time: they stay in the cache of a core


@op
def conv2d(x, weight, bias=None, stride=1, padding=0, groups=1):
    """y[b, o, u, v] = bias[o] + Σ_c Σ_ij weight[o, c, i, j] · x[b, c, s u + i − p, t v + j − q], as PyTorch's.

    x (B, C, H, W), weight (O, C/groups, kh, kw), bias (O,) or None → (B, O, ⌊(H + 2p − kh)/s⌋ + 1,
    ⌊(W + 2q − kw)/t⌋ + 1). ``stride`` (s, t) and ``padding`` (p, q) are pairs, or one number for both. Input and output
    channels are cut into ``groups``, and an output sees the inputs of its own group only.

    Forwards it is a product of two matrices: the weight, (O, C·kh·kw), and the *columns* (C·kh·kw, places), which hold
    what the kernel sees at each place (Chellapilla, Puri and Simard, "High performance convolutional neural networks
    for document processing", 2006). ``_columns`` makes them, with few copies.

    Backwards, the cotangent of each factor is dy times the other factor, summed wherever the two met:

        dx[b, c, m, n] = Σ_o Σ_ij weight[o, c, i, j] · dy[b, o, u, v],  where s u + i − p = m and t v + j − q = n
        dW[o, c, i, j] = Σ_b Σ_mn x[b, c, m, n] · dy[b, o, u, v],       where the same holds
        db[o] = Σ_b Σ_uv dy[b, o, u, v]

    With stride 1, u = m + p − i and v = n + q − j: dx is a convolution of dy, whose kernel is the weight turned by half
    a turn, its inputs and outputs exchanged; and dW is the product of x with the columns of this convolution. With
    stride s, the rows e, e + s, e + 2s, … of x meet only the rows r, r + s, … of the kernel, r = (e + p) mod s. So dx
    and dW fall into s·t parts that have nothing to do with one another, and each goes as with stride 1; no zeros are
    put between the rows of dy. Where dx is not wanted, as at the images, dW is cheaper as the product of dy with the
    columns of x, which are fewer.

    Raises ValueError where the shapes do not fit, and for strides and paddings that cannot be.

    >>> conv2d(Tensor([[[[1.0, 2.0, 4.0, 7.0]]]]), Tensor([[[[-1.0, 1.0]]]])).numpy()
    array([[[[1., 2., 3.]]]], dtype=float32)
    """
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[1] * groups or len(weight) % groups:
        raise ValueError(
            "conv2d needs x (B, C, H, W) and weight (O, C/groups, kh, kw), O a multiple of groups; "
            f"got x {x.shape}, weight {weight.shape} and groups {groups}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"conv2d needs bias of shape {weight.shape[:1]}, got {bias.shape}")
    shape, stride, padding = x.shape, pair(stride), pair(padding)
    size = _output_size("conv2d", shape, weight.shape[2:], stride, padding)
    kernel = weight.reshape(groups, -1, *weight.shape[1:])  # (G, O/G, C/G, kh, kw)
    y = array_module(x).empty((len(x), len(weight), *size), x.dtype)
    implementation(convolve, x)(x, kernel, stride, padding, y)
    if bias is not None:
        y += bias[:, None, None]
    x_kept, kernel_kept = x if wanted(1) else None, kernel if wanted(0) else None
    weight_shape, kernel_shape, bias_wanted = weight.shape, kernel.shape, bias is not None and wanted(2)

    def pullback(dy):
        dx, dkernel = None, None
        if kernel_kept is not None:
            dx, dkernel = _cotangents(dy, x_kept, kernel_kept, stride, padding, shape)
        elif x_kept is not None:
            dkernel = _kernel_cotangent(dy, x_kept, kernel_shape, stride, padding)
        dweight = None if dkernel is None else dkernel.reshape(weight_shape)
        dbias = dy.sum((2, 3)) if bias_wanted else None  # (B, O): the walk back sums over the images
        return dx, dweight, dbias

    return y, pullback


def convolve(
    x: Array, kernel: Array, stride: Size, padding: Size, y: Array, other: Array | None = None
) -> Array | None:
    """Write into y (B, O, rows, columns) what the kernel (G, O/G, C/G, kh, kw) makes of x.

    A negative padding takes rows or columns away. With ``other``, of y's shape: return the product of the same columns
    with it as well, in the kernel's shape.
    """
    groups, outputs = kernel.shape[:2]
    products = None if other is None else array_module(x).zeros(kernel.shape, x.dtype)
    for piece, seen in _columns(x, kernel.shape, stride, padding, y.shape[2:]):
        parts = _by_rows(seen, kernel.shape[3], y.shape[2])
        terms = (kernel[:, :, :, rows].reshape(groups, outputs, -1) @ columns for rows, columns in parts)
        total = next(terms)
        for term in terms:
            total += term
        y[piece] = total.reshape(*y.shape[1:3], -1, y.shape[3]).transpose(2, 0, 1, 3)
        if other is not None:
            _add_products(products, other[piece], seen)
    return products


def _cotangents(
    dy: Array, x: Array | None, kernel: Array, stride: Size, padding: Size, shape: tuple[int, ...]
) -> tuple[Array, Array | None]:
    """dx and, where x is given, dW: one part for each remainder (e, f) of the rows and columns of x by the stride.

    With e + p = s a + r, the pixel s m + e meets the kernel's entry s i + r at u = m + a − i. Numbered from the other
    end, as the turned kernel is, that entry is k = n − 1 − i of n, and u = m + k − (n − 1 − a): n − 1 − a is a padding.
    """
    (s, t), (p, q) = stride, padding
    xp = array_module(dy)
    dx, dkernel = xp.zeros(shape, dy.dtype), None if x is None else xp.zeros(kernel.shape, dy.dtype)
    for e in range(s):
        for f in range(t):
            (above, row), (before, column) = divmod(e + p, s), divmod(f + q, t)
            turned = _turned(kernel[..., row::s, column::t])
            part = dx[:, :, e::s, f::t]
            if turned.size * part.size:  # where the kernel is smaller than the stride, some pixels meet none of it
                inner = turned.shape[3] - 1 - above, turned.shape[4] - 1 - before
                other = None if x is None else x[:, :, e::s, f::t]
                products = implementation(convolve, dy)(dy, turned, (1, 1), inner, part, other)
                if x is not None:
                    dkernel[..., row::s, column::t] = _turned(products)
    return dx, dkernel


def _turned(kernel: Array) -> Array:
    """A kernel turned by half a turn, its inputs and outputs exchanged."""
    return kernel.swapaxes(1, 2)[..., ::-1, ::-1]


def _kernel_cotangent(dy: Array, x: Array, shape: tuple[int, ...], stride: Size, padding: Size) -> Array:
    """dW alone, of this shape: (G, O/G, C/G, kh, kw)."""
    dkernel = array_module(dy).zeros(shape, dy.dtype)
    for piece, seen in _columns(x, shape, stride, padding, dy.shape[2:]):
        _add_products(dkernel, dy[piece], seen)
    return dkernel


def _add_products(products: Array, y: Array, seen: Array) -> None:
    """Add to ``products`` (G, O/G, C/G, kh, kw), row by row, those of y (B, O, rows, columns) with the columns."""
    groups, outputs, inputs, height, width = products.shape
    rows = y.shape[2]
    y = y.transpose(1, 2, 0, 3).reshape(groups, outputs, -1).swapaxes(1, 2)  # (G, places, O/G)
    for some, columns in _by_rows(seen, height, rows):
        product = (columns @ y).swapaxes(1, 2)  # in this order BLAS is faster
        products[:, :, :, some] += product.reshape(groups, outputs, inputs, -1, width)


def _columns(
    x: Array, shape: tuple[int, ...], stride: Size, padding: Size, size: Size
) -> Iterator[tuple[slice, Array]]:
    """What a kernel of this shape sees at size[0]·size[1] places of x: for each piece of the images, the piece and all
    that is seen, (G, C/G·rows·kw, rows of places, places of a row).

    With stride 1, a kernel is taken row by row. For each of its kw entries a copy of the image is made, moved to the
    left by one pixel more; then all that row i sees lies i rows further down in the same copies (``_by_rows``). These
    are kw copies in place of kh·kw. All rows at once are taken with a larger stride, and of a kernel with few inputs,
    where to copy costs less than to add a product to those before.

    Places are ordered (row, image, column), for all images of a piece to be one matrix, and its rows to be views. The
    next piece is written over the last.
    """
    groups, _, inputs, height, width = shape
    at_once = _rows_at_once(shape, stride)
    rows, seen = size[0] + height - at_once, None
    taps = list(_taps((at_once, width), stride, padding, (rows, size[1]), x.shape[2:]))
    for piece in _pieces(x, shape):
        seen = _seen(x[piece].transpose(1, 2, 0, 3), taps, (rows, size[1]), seen)
        yield piece, seen.reshape(groups, inputs * len(taps), rows, -1)


def _by_rows(seen: Array, height: int, rows: int) -> Iterator[tuple[slice, Array]]:
    """Rows of a kernel of this height, and the columns, (G, C/G·rows·kw, places), that they are multiplied with."""
    at_once = height + rows - seen.shape[2]
    for i in range(0, height, at_once):
        yield slice(i, i + at_once), seen[:, :, i : i + rows].reshape(*seen.shape[:2], -1)


def _seen(pixels: Array, taps: list[tuple[Slices, Slices]], size: Size, before: Array | None) -> Array:
    """The pixel of (C, H, B, W) on which each tap lies at each place, or 0: (C, taps, rows, B, columns).

    What was seen ``before``, of as many images, is written over; it has zeros at the same places.
    """
    if _is_view(taps, size):
        ((_, (rows, columns)),) = taps
        return pixels[:, rows, :, columns]
    channels, _, images, _ = pixels.shape
    seen = before
    if seen is None or seen.shape[3] != images:
        seen = array_module(pixels).zeros((channels, len(taps), size[0], images, size[1]), pixels.dtype)
    for n, (places, under) in enumerate(taps):
        seen[:, n, places[0], :, places[1]] = pixels[:, under[0], :, under[1]]
    return seen


def _is_view(taps: list[tuple[Slices, Slices]], size: Size) -> bool:
    """Is it one tap, which lies on pixels everywhere, as that of a 1 × 1 kernel? It has them where they are."""
    return [places for places, _ in taps] == [(slice(0, size[0]), slice(0, size[1]))]


def _rows_at_once(shape: tuple[int, ...], stride: Size) -> int:
    """How many rows of a kernel have the same columns: one, or all."""
    _, outputs, inputs, height, width = shape
    return height if stride[0] > 1 or width * inputs < 2 * outputs else 1


def _pieces(x: Array, shape: tuple[int, ...]) -> list[slice]:
    """Slices of images: their columns stay in the cache, or are four times the kernel, which is read for each piece."""
    numbers = shape[-1] * math.prod(x.shape[1:])  # in the columns of an image, about
    return cache_blocks(x[:, 0, 0, 0], max(COLUMNS_BYTES, 16 * math.prod(shape)) // numbers)


@op
def max_pool2d(x, kernel_size, stride=None, padding=0):
    """y[b, c, u, v] = max over ij of x[b, c, s u + i − p, t v + j − q], the pixels of the image only, as PyTorch's.

    x (B, C, H, W) → (B, C, ⌊(H + 2p − kh)/s⌋ + 1, ⌊(W + 2q − kw)/t⌋ + 1); ``stride`` is by default the kernel's size.
    dy goes to the largest pixel, to the first where several are equal; where windows overlap, a pixel adds up what it
    gets. Raises ValueError where a kernel, stride or padding cannot be.

    >>> max_pool2d(Tensor([[[[1.0, 3.0, 2.0, 0.0]]]]), (1, 2)).numpy()
    array([[[[3., 2.]]]], dtype=float32)
    """
    xp = array_module(x)
    taps, y_shape = _pool("max_pool2d", x.shape, kernel_size, stride, padding)
    y = xp.full(y_shape, -math.inf, x.dtype)
    for places, seen in taps:
        xp.maximum(y[places], x[seen], out=y[places])

    def pullback(dy):
        dx = xp.zeros(x.shape, dy.dtype)
        waiting = xp.ones(y.shape, bool)  # windows whose largest pixel has not been found
        for places, seen in taps:
            found = x[seen] == y[places]
            found &= waiting[places]
            waiting[places] &= ~found
            dx[seen] += dy[places] * found
        return dx

    return y, pullback


@op
def avg_pool2d(x, kernel_size, stride=None, padding=0, count_include_pad=True):
    """y[b, c, u, v] = 1/n Σ_ij x[b, c, s u + i − p, t v + j − q], as PyTorch's.

    Shapes are those of ``max_pool2d``. n is kh·kw, or with ``count_include_pad=False`` the number of pixels among them,
    which is smaller at a padded edge. Each of these gets dy/n. Raises ValueError where a kernel, stride or padding
    cannot be.

    >>> avg_pool2d(Tensor([[[[1.0, 3.0, 2.0, 0.0]]]]), (1, 2)).numpy()
    array([[[[2., 1.]]]], dtype=float32)
    """
    xp, shape = array_module(x), x.shape
    taps, y_shape = _pool("avg_pool2d", shape, kernel_size, stride, padding)
    y = xp.zeros(y_shape, x.dtype)
    pixels = xp.zeros(y_shape[2:], x.dtype)
    for places, seen in taps:
        y[places] += x[seen]
        pixels[places] += 1
    count = len(taps) if count_include_pad else pixels
    y /= count

    def pullback(dy):
        share = dy / count
        dx = xp.zeros(shape, dy.dtype)
        for places, seen in taps:
            dx[seen] += share[places]
        return dx

    return y, pullback


def _pool(
    name: str, shape: tuple[int, ...], kernel_size: int | Size, stride: int | Size | None, padding: int | Size
) -> tuple[list[tuple], tuple[int, ...]]:
    """For each entry of the kernel, the places where it lies on a pixel, and the pixels, as indices; the shape of y."""
    if len(shape) != 4:
        raise ValueError(f"{name} needs x (B, C, H, W), got {shape}")
    kernel, padding = pair(kernel_size), pair(padding)
    stride = kernel if stride is None else pair(stride)
    if any(2 * p > k for p, k in zip(padding, kernel)):
        raise ValueError(f"{name} needs a padding of at most half the kernel {kernel}, got {padding}")
    size = _output_size(name, shape, kernel, stride, padding)
    taps = [((..., *places), (..., *seen)) for places, seen in _taps(kernel, stride, padding, size, shape[2:])]
    return taps, (*shape[:2], *size)


def _taps(kernel: Size, stride: Size, padding: Size, places: Size, pixels: Size) -> Iterator[tuple[Slices, Slices]]:
    """For each entry of the kernel, row by row: the places where it lies on a pixel, and these pixels."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows, seen_rows = _inside(i - padding[0], stride[0], places[0], pixels[0])
            columns, seen_columns = _inside(j - padding[1], stride[1], places[1], pixels[1])
            yield (rows, columns), (seen_rows, seen_columns)


def _inside(start: int, step: int, count: int, length: int) -> Slices:
    """Which of the numbers start, start + step, … (count of them) lie in 0 … length − 1: their places, and they."""
    first = max(0, -(start // step))
    last = max(first, min(count, (length - 1 - start) // step + 1))
    start += step * first
    return slice(first, last), slice(start, start + step * (last - first), step)


def _output_size(name: str, shape: tuple[int, ...], kernel: Size, stride: Size, padding: Size) -> Size:
    """How many places there are: (rows, columns)."""
    if not len(kernel) == len(stride) == len(padding) == 2:
        raise ValueError(
            f"{name} takes a number or a pair each, got kernel {kernel}, stride {stride} and padding {padding}"
        )
    if min(kernel) < 1 or min(stride) < 1 or min(padding) < 0:
        raise ValueError(
            f"{name} needs a kernel and a stride of at least 1 and a padding of at least 0, "
            f"got kernel {kernel}, stride {stride} and padding {padding}"
        )
    if any(n + 2 * p < k for n, k, p in zip(shape[2:], kernel, padding)):
        raise ValueError(f"{name} was given a kernel {kernel}, larger than x {shape} with padding {padding}")
    rows, columns = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape[2:], kernel, stride, padding))
    return rows, columns
