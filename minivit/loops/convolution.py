"""Convolution with kernels of 3 × 3 pixels that leave the size of an image: see ``ops/convolution.py``.

The formula copies what a kernel sees at each place, for a product of matrices. With few channels copying costs as much
as multiplying. Here each channel is copied once, into one line: its pixels row after row and image after image, with a
zero behind each row and a row of zeros behind each image, which are the next one's padding too.

    a b c 0  d e f 0  0 0 0 0  g h i 0  …        two rows of three pixels, the row between images, the next image

In such a line a kernel's entry (i, j) lies (i − 1)(W + 1) + (j − 1) numbers to the right of the pixel in the middle, at
every pixel of every image. So a convolution is nine numbers times nine parts of a line, each moved by one pixel or one
row; and the cotangent of a kernel's entry is the product of such a part with a line of the other factor. What is
computed at the zeros is thrown away.

Reading is what takes time then. So four outputs are computed together, for one row of the kernel: three numbers read
make twelve multiplications, whose other factors, twelve numbers of the kernel, stay in the processor's registers.
"""

import numpy as np

from minivit.backend import Array
from minivit.loops.compiler import in_widest_vectors, inlined, known, loop, stands_in_for
from minivit.ops import convolution
from minivit.ops.shape import Size

LINE = 1024  # numbers of a line that are computed at a time, about: those of four outputs stay in the first cache


@stands_in_for(convolution.convolve)
def convolve(
    x: Array, kernel: Array, stride: Size, padding: Size, y: Array, other: Array | None = None
) -> Array | None:
    """Some images at a time, if they are small, so that their lines are long enough."""
    same_size = kernel.shape[3:] == (3, 3) and stride == padding == (1, 1)
    if not (same_size and known(x, kernel, y) and y.flags.c_contiguous and (other is None or known(other))):
        return convolution.convolve(x, kernel, stride, padding, y, other)
    groups, outputs, inputs = kernel.shape[:3]
    fours = np.zeros((groups, -(-outputs // 4), 4, inputs, 3, 3), kernel.dtype)  # the last made up with zeros
    fours.reshape(groups, -1, inputs, 3, 3)[:, :outputs] = kernel
    products = np.zeros_like(fours if other is not None else fours[:0])
    down = x.shape[3] + 1  # to the pixel below
    image = (x.shape[2] + 1) * down
    images = -(-LINE // image)
    parts = max(1, images * image // LINE)
    part = -(-images * image // parts)
    lines = np.zeros((x.shape[1], parts * part + 2 * down + 2), x.dtype)
    sums, others = np.empty((2, 4, parts, part), x.dtype)
    other = y if other is None else other
    _convolve(np.ascontiguousarray(x), fours, y, other, products, images, down, lines, sums, others)
    return products.reshape(groups, -1, inputs, 3, 3)[:, :outputs] if len(products) else None


@loop
def _convolve(x, kernel, y, other, products, images, down, lines, sums, others):
    in_widest_vectors()
    groups, inputs, outputs = len(kernel), kernel.shape[3], y.shape[1] // len(kernel)
    parts, part = sums.shape[1:]
    for start in range(0, len(x), images):
        some = slice(start, start + images)
        others[:] = 0
        for c in range(x.shape[1]):
            _lay_out(x[some, c], lines[c, down + 1 :])
        for g in range(groups):
            for four in range(kernel.shape[1]):
                sums[:] = 0
                for m in range(parts):
                    for c in range(inputs):
                        for i in range(3):
                            row = lines[g * inputs + c, m * part + i * down :]
                            _add_row(row, kernel[g, four, :, c, i], sums, m)
                for o in range(min(4, outputs - 4 * four)):
                    _take_up(sums[o].reshape(-1), y[some, g * outputs + 4 * four + o])
                if len(products):
                    for o in range(min(4, outputs - 4 * four)):
                        _lay_out(other[some, g * outputs + 4 * four + o], others[o].reshape(-1))
                    for m in range(parts):
                        for c in range(inputs):
                            for i in range(3):
                                row = lines[g * inputs + c, m * part + i * down :]
                                _add_products(row, others, m, products[g, four, :, c, i])


@inlined
def _lay_out(images, line):
    """Pixels (B, H, W) from the first number of the line on; the zeros between them are there."""
    height, width = images.shape[1:]
    for b in range(len(images)):
        for u in range(height):
            start = (b * (height + 1) + u) * (width + 1)
            for v in range(width):
                line[start + v] = images[b, u, v]


@inlined
def _take_up(line, images):
    """The way back."""
    height, width = images.shape[1:]
    for b in range(len(images)):
        for u in range(height):
            start = (b * (height + 1) + u) * (width + 1)
            for v in range(width):
                images[b, u, v] = line[start + v]


@inlined
def _add_row(row, k, sums, m):
    """sums[o, m, n] += Σ_j k[o, j] · row[n + j], for four outputs o."""
    p, q, r, s = sums[0, m], sums[1, m], sums[2, m], sums[3, m]
    for_p, for_q, for_r, for_s = _three(k[0], 0), _three(k[1], 0), _three(k[2], 0), _three(k[3], 0)
    for n in range(len(p)):
        seen = _three(row, n)
        p[n] += _product(for_p, seen)
        q[n] += _product(for_q, seen)
        r[n] += _product(for_r, seen)
        s[n] += _product(for_s, seen)


@inlined
def _add_products(row, others, m, products):
    """products[o, j] += Σ_n others[o, m, n] · row[n + j], likewise."""
    p, q, r, s = others[0, m], others[1, m], others[2, m], others[3, m]
    of_p, of_q = _three(products[0], 0), _three(products[1], 0)
    of_r, of_s = _three(products[2], 0), _three(products[3], 0)
    for n in range(len(p)):
        seen = _three(row, n)
        of_p = _plus(of_p, p[n], seen)
        of_q = _plus(of_q, q[n], seen)
        of_r = _plus(of_r, r[n], seen)
        of_s = _plus(of_s, s[n], seen)
    products[0, 0], products[0, 1], products[0, 2] = of_p
    products[1, 0], products[1, 1], products[1, 2] = of_q
    products[2, 0], products[2, 1], products[2, 2] = of_r
    products[3, 0], products[3, 1], products[3, 2] = of_s


@inlined
def _three(row, n):
    return row[n], row[n + 1], row[n + 2]


@inlined
def _product(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@inlined
def _plus(a, x, b):
    return a[0] + x * b[0], a[1] + x * b[1], a[2] + x * b[2]
