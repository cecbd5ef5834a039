"""Every op once more, by other means: ``TWINS`` are made of smaller ops, ``FORMULAS`` of plain NumPy.

A twin has to give the same value and the same gradients, a formula the same value. They may be slow.
"""

import math

import numpy as np

from minivit import Tensor, op, ops


@op
def erf(x):
    """From the C library, by way of ``math``; d erf(x) / dx = 2 e^(−x²) / √π."""
    return np.vectorize(math.erf, otypes=[float])(x), lambda dy: dy * (2 / math.sqrt(math.pi) * np.exp(-x * x))


def relu(x):
    return (x + (x * x).sqrt()) / 2


def gelu(x, approximate="none"):
    if approximate == "none":
        return x * (1 + erf(x / math.sqrt(2))) / 2
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x * (1 + tanh(u)) / 2


def tanh(x):
    return 1 - 2 / ((2 * x).exp() + 1)


def softmax(x, axis=-1):
    powers = (x - x.data.max(axis, keepdims=True)).exp()
    return powers / powers.sum(axis, keepdims=True)


def log_softmax(x, axis=-1):
    """Not the logarithm of softmax, which may be 0."""
    x = x - x.data.max(axis, keepdims=True)
    return x - x.exp().sum(axis, keepdims=True).log()


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred / (variance + eps).sqrt() * weight + bias


def add_layer_norm(x, branch, weight, bias, eps):
    """Both results side by side: see ``rules.one_result``."""
    z = x + branch
    return ops.concatenate(layer_norm(z, weight, bias, eps).reshape(-1), z.reshape(-1))


def rms_norm(x, weight, eps):
    return x / ((x * x).mean(-1, keepdims=True) + eps).sqrt() * weight


def batch_norm(x, weight=None, bias=None, eps=1e-5):
    """By layer_norm, of channels as rows."""
    others = (0, *range(2, x.ndim))
    x = x.transpose(1, *others)
    rows = x.reshape(len(x), -1)
    rows = layer_norm(rows, np.ones(rows.shape[1]), np.zeros(rows.shape[1]), eps)
    rows = rows if weight is None else rows * weight[:, None]
    rows = rows if bias is None else rows + bias[:, None]
    return rows.reshape(x.shape).transpose(1, 0, *range(2, x.ndim))


def linear(x, weight, bias=None):
    """Row by row: the element-wise product with each row of the weight, summed."""
    y = (x.reshape(*x.shape[:-1], 1, -1) * weight).sum(-1)
    return y if bias is None else y + bias


def mlp(x, weight1, bias1, weight2, bias2):
    return linear(gelu(linear(x, weight1, bias1)), weight2, bias2)


def scaled_dot_product_attention(q, k, v, bias=None, scale=None):
    scores = q @ k.transpose(0, 1, 3, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return softmax(scores if bias is None else scores + bias) @ v


def self_attention(qkv, num_heads, scale=None):
    """The book's way: cut into q, k and v, then into heads, attend head by head, and put side by side."""
    d = qkv.shape[2] // (3 * num_heads)

    def head(part, h):
        start = (part * num_heads + h) * d
        return qkv[:, None, :, start : start + d]  # (B, 1, N, d)

    outs = [scaled_dot_product_attention(*(head(part, h) for part in range(3)), scale=scale) for h in range(num_heads)]
    return ops.concatenate(*outs, axis=-1)[:, 0]


def cross_entropy(logits, target, label_smoothing=0.0, reduction="mean"):
    classes = logits.shape[-1]
    t = target if isinstance(target, Tensor) else np.eye(classes)[target]
    losses = -(((1 - label_smoothing) * t + label_smoothing / classes) * log_softmax(logits)).sum(-1)
    return reduced(losses, reduction)


def mse_loss(x, target, reduction="mean"):
    return reduced((x - target) ** 2, reduction)


def reduced(losses, reduction):
    return {"none": lambda: losses, "sum": losses.sum, "mean": losses.mean}[reduction]()


def mean(x, axis=None, keepdims=False):
    return x.sum(axis, keepdims) * (np.sum(np.ones(x.shape), axis).size / x.size)


def take_tokens(x, ids):
    rows = [ops.concatenate(*(x[b : b + 1, int(i)] for i in row)) for b, row in enumerate(ids)]
    return ops.concatenate(*(row.reshape(1, *row.shape) for row in rows))


def put_tokens(x, ids, num_tokens):
    return (np.arange(num_tokens)[:, None] == ids[:, None, :]).astype(float) @ x  # (B, T, K) @ (B, K, D)


def shift(x, down, right):
    """By way of a frame of zeros, wide enough for any move."""
    rows, columns = x.shape[-2:]
    framed = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(abs(down),) * 2, (abs(right),) * 2])
    top, left = abs(down) - down, abs(right) - right
    return framed[..., top : top + rows, left : left + columns]


def relative_bias(table, grid, prefix_tokens=0):
    """One pair of tokens at a time; None is a token that has no place."""
    (rows, columns), width = grid, 2 * grid[1] - 1
    extra = (2 * rows - 1) * width
    places = [None] * prefix_tokens + [(y, x) for y in range(rows) for x in range(columns)]

    def row(query, key):
        if query and key:
            return table[(query[0] - key[0] + rows - 1) * width + query[1] - key[1] + columns - 1]
        return table[extra if key else extra + 1 if query else extra + 2]

    pairs = ops.concatenate(*(row(query, key)[None] for query in places for key in places))
    return pairs.reshape(len(places), len(places), -1).transpose(2, 0, 1)


def by_distance(x, tokens):
    return (x[..., None, :] * which_distance(x.shape[-2], tokens, x.shape[-1] // 2)).sum(-1)


def sum_by_distance(w, reach):
    return (w[..., None] * which_distance(*w.shape[-2:], reach)).sum(-2)


def which_distance(rows, tokens, reach):
    """(rows, tokens, 2 reach + 1): one for the clipped distance of token j from token i, else zero."""
    one_hot = np.eye(2 * reach + 1)
    return np.array([[one_hot[max(0, min(j - i + reach, 2 * reach))] for j in range(tokens)] for i in range(rows)])


def rotate(x, angles):
    """As complex numbers."""
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(*turned.shape[:-1], x.shape[-1])


def patchify(images, patch_size):
    """One patch after the other, cut out of all images."""
    (batch, _, *size), (p, q) = images.shape, patch_size
    corners = [(i, j) for i in range(0, size[0], p) for j in range(0, size[1], q)]
    return np.stack([images[:, :, i : i + p, j : j + q].reshape(batch, -1) for i, j in corners], axis=1)


def place_by_place(f, x, kernel, stride, padding):
    """f of what the window sees, (B, C, kh, kw) → (B, outputs), at each place of an image framed by zeros."""
    (h, w), (kh, kw), (s, t) = x.shape[2:], both(kernel), both(stride)
    (p, q) = both(padding)
    x = np.eye(h + 2 * p, h, -p) @ x @ np.eye(w, w + 2 * q, q)

    def row(u):
        return ops.concatenate(
            *(f(x[:, :, u : u + kh, v : v + kw])[..., None, None] for v in range(0, x.shape[3] - kw + 1, t)), axis=3
        )

    return ops.concatenate(*map(row, range(0, x.shape[2] - kh + 1, s)), axis=2)


def both(size):
    return size if isinstance(size, tuple) else (size, size)


def conv2d(x, weight, bias=None, stride=1, padding=0, groups=1):
    def at_a_place(window):
        products = window.reshape(len(x), groups, 1, -1) * weight.reshape(groups, len(weight) // groups, -1)
        return products.sum(-1).reshape(len(x), -1)

    y = place_by_place(at_a_place, x, weight.shape[2:], stride, padding)
    return y if bias is None else y + bias[:, None, None]


def max_pool2d(x, kernel_size, stride=None, padding=0):
    """All numbers are made positive for the time being, so that zeros around them are never the largest."""
    below = x.data.min() - 1
    return place_by_place(lambda w: w.amax((2, 3)), x - below, kernel_size, stride or kernel_size, padding) + below


def avg_pool2d(x, kernel_size, stride=None, padding=0, count_include_pad=True):
    window = kernel_size, stride or kernel_size, padding
    total, pixels = (place_by_place(lambda w: w.sum((2, 3)), y, *window) for y in (x, x * 0 + 1))
    return total / (math.prod(both(kernel_size)) if count_include_pad else pixels)


TWINS = {
    "add_layer_norm": add_layer_norm,
    "avg_pool2d": avg_pool2d,
    "batch_norm": batch_norm,
    "by_distance": by_distance,
    "broadcast_to": lambda x, shape: x * np.ones(shape),
    "conv2d": conv2d,
    "cross_entropy": cross_entropy,
    "div": lambda x, y: x * y**-1,
    "gelu": gelu,
    "layer_norm": layer_norm,
    "linear": linear,
    "log_softmax": log_softmax,
    "max_pool2d": max_pool2d,
    "mean": mean,
    "mlp": mlp,
    "mse_loss": mse_loss,
    "neg": lambda x: 0.0 - x,
    "put_tokens": put_tokens,
    "relative_bias": relative_bias,
    "relu": relu,
    "rms_norm": rms_norm,
    "scale": lambda x, factor: x * np.asarray(factor, float),
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "self_attention": self_attention,
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "softmax": softmax,
    "sqrt": lambda x: x**0.5,
    "sub": lambda x, y: x + -y,
    "sum_by_distance": sum_by_distance,
    "take_tokens": take_tokens,
}
FORMULAS = {
    "add": np.add,
    "amax": np.max,
    "concatenate": lambda *arrays, axis: np.concatenate(arrays, axis),
    "exp": np.exp,
    "getitem": lambda x, index: x[index],
    "log": np.log,
    "matmul": lambda x, y: (x[..., :, :, None] * y[..., None, :, :]).sum(-2),
    "mul": np.multiply,
    "patchify": patchify,
    "power": np.float_power,
    "reshape": np.reshape,
    "rotate": rotate,
    "shift": shift,
    "sum": np.sum,
    "transpose": np.transpose,
}
