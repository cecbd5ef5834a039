"""Position embeddings to compare: the numbers that go in, and what minivit makes of them. No PyTorch is needed here.

``ours()`` has the same names as the golden file ``positions.npz``, which ``positions.py`` makes with timm, transformers
and PyTorch.
"""

import numpy as np

from minivit import Parameter, Tensor
from minivit.nn.position import AxialRope, BiasTable, MixedRope, RelativePosition, T5Bias, sincos_2d
from minivit.nn.position.resize import resize_grid, resize_rel_pos_bias_table
from minivit.nn.position.t5 import buckets
from minivit.random import generator
from tests.golden import cases

GRID, SQUARE = (3, 4), 4
WIDTH, HEADS, HEAD = 8, 2, 8
FAR, LONG = 300, 40  # distances and tokens for T5
Q_SHAPE = (2, HEADS, 1 + GRID[0] * GRID[1], HEAD)
RESIZES = {
    "resize_smaller": ((14, 14), (9, 6), True),
    "resize_larger": ((5, 7), (12, 8), True),
    "resize_both": ((4, 11), (9, 3), True),
    "resize_plain_smaller": ((14, 14), (9, 6), False),
    "resize_plain_larger": ((5, 7), (12, 8), False),
}
BIAS_RESIZE = ((3, 3), (5, 4))


def numbers(name: str, *shape: int) -> np.ndarray:
    """Normal numbers in float64, a stream for each name."""
    return generator(0, "golden", "positions", name).standard_normal(shape)


def bias_rows(grid: tuple[int, int]) -> int:
    """The length of a bias table with the three rows for a class token."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def ours() -> dict[str, np.ndarray]:
    """minivit's values and gradients, computed in float64."""
    results = {
        "sincos_mae": sincos_2d(WIDTH, (SQUARE, SQUARE), 1)[0],
        "sincos_timm": sincos_2d(WIDTH, GRID, form="timm")[0],
        "t5_buckets": buckets(np.arange(-FAR, FAR + 1)),
        **_bias("rel_bias", BiasTable(GRID, 1, HEADS, HEAD), "relative_position_bias_table"),
        **_bias("rel_bias_no_prefix", BiasTable(GRID, 0, HEADS, HEAD), "relative_position_bias_table"),
        **_bias("rel_t5", T5Bias((1, LONG - 1), 1, HEADS, HEAD), "relative_attention_bias"),
        **_turned("rope_axial", AxialRope(GRID, 1, HEADS, HEAD)),
        **_turned("rope_mixed", _mixed()),
        **_turned("rope_mixed.float32", _mixed()),
    }
    for name, (old, new, antialias) in RESIZES.items():
        results[name] = resize_grid(numbers(f"{name} image", *old, WIDTH), new, antialias)
    (old, new), table = BIAS_RESIZE, numbers("bias_resize table", bias_rows(BIAS_RESIZE[0]), HEADS)
    results["bias_resize"] = resize_rel_pos_bias_table(table, old, new, antialias=False)
    return results


def _mixed() -> MixedRope:
    rope = MixedRope(GRID, 1, HEADS, HEAD)
    rope.freqs = Parameter(numbers("freqs", 2, HEADS, HEAD // 2))
    return rope


def _bias(name: str, layer: RelativePosition, parameter: str) -> dict[str, np.ndarray]:
    table = Parameter(numbers(f"{name} table", *getattr(layer, parameter).shape))
    setattr(layer, parameter, table)
    bias = layer.bias()
    bias.backward(numbers(f"{name} cotangent", *bias.shape))
    return {name: bias.numpy(), f"{name}.grad": table.grad}


def _turned(name: str, layer: RelativePosition) -> dict[str, np.ndarray]:
    q = Tensor(numbers("q", *Q_SHAPE), requires_grad=True)
    out = layer.turn(q)
    out.backward(numbers("q cotangent", *Q_SHAPE))
    gradients = {f"{name}.{n}.grad": p.grad for n, p in layer.named_parameters()}
    return {name: out.numpy(), f"{name}.grad": q.grad} | gradients


def differences() -> dict[str, float]:
    """As ``cases.differences`` has it."""
    return cases.differences("positions", ours())
