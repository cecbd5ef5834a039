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


def linear(x, weight, bias=None):
    """Row by row: the element-wise product with each row of the weight, summed."""
    y = (x.reshape(*x.shape[:-1], 1, -1) * weight).sum(-1)
    return y if bias is None else y + bias


def scaled_dot_product_attention(q, k, v, scale=None):
    scores = q @ k.transpose(0, 1, 3, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return softmax(scores) @ v


def self_attention(qkv, num_heads, scale=None):
    """The book's way: cut into q, k and v, then into heads, attend head by head, and put side by side."""
    d = qkv.shape[2] // (3 * num_heads)

    def head(part, h):
        start = (part * num_heads + h) * d
        return qkv[:, None, :, start : start + d]  # (B, 1, N, d)

    outs = [scaled_dot_product_attention(*(head(part, h) for part in range(3)), scale) for h in range(num_heads)]
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


TWINS = {
    "broadcast_to": lambda x, shape: x * np.ones(shape),
    "cross_entropy": cross_entropy,
    "div": lambda x, y: x * y**-1,
    "gelu": gelu,
    "layer_norm": layer_norm,
    "linear": linear,
    "log_softmax": log_softmax,
    "mean": mean,
    "mse_loss": mse_loss,
    "neg": lambda x: 0.0 - x,
    "put_tokens": put_tokens,
    "relu": relu,
    "scale": lambda x, factor: x * np.asarray(factor, float),
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "self_attention": self_attention,
    "softmax": softmax,
    "sqrt": lambda x: x**0.5,
    "sub": lambda x, y: x + -y,
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
    "power": np.float_power,
    "reshape": np.reshape,
    "sum": np.sum,
    "transpose": np.transpose,
}
