"""The vocabulary of the property tests: for every op, the calls it may receive.

A strategy draws shapes, flags and one seed, never numbers one by one: the seed makes the numbers, so that an example
is small to print and quick to draw. All arrays are float64, for gradient checks; some are not contiguous in memory,
and none can be written to, so an op that writes to an argument fails wherever a case is used. The numbers stay away
from kinks (relu at 0, amax at ties), where a function has no derivative to compare with.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


class Case:
    """One call: ``op(*args, **options)``. The floating-point arrays among ``args`` are those to differentiate."""

    def __init__(self, args: tuple, options: dict | None = None):
        self.args = args
        self.options = options or {}

    def __repr__(self) -> str:
        given = [*map(_brief, self.args), *(f"{name}={_brief(value)}" for name, value in self.options.items())]
        return f"Case({', '.join(given)})"

    def astype(self, dtype) -> "Case":
        """The same call with its floating-point arrays in another precision."""

        def convert(x):
            return x.astype(dtype) if is_float(x) else x

        return Case(tuple(map(convert, self.args)), {name: convert(value) for name, value in self.options.items()})


def on_drawn(strategy: st.SearchStrategy, count: int, function: Callable[[Any], Any]) -> list:
    """What ``function`` makes of ``count`` draws, the same in every run and every environment.

    Each is the last of a run of its own: a run begins with the simplest case, and repeats parts of one in the next.
    """
    results = {}
    for number in range(count):

        @seed(number)
        @settings(
            max_examples=2, database=None, phases=[Phase.generate], deadline=None,
            suppress_health_check=[HealthCheck.filter_too_much],  # near a kink of relu a network has no gradient
        )  # fmt: skip
        @given(strategy, st.just(number))
        def run(drawn, number):
            results[number] = function(drawn)

        run()
    return [results[number] for number in range(count)]


def is_float(x) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _brief(x) -> str:
    return f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else repr(x)


# Numbers: functions of a generator and a shape.


def normal(rng, shape):
    return rng.standard_normal(shape)


def wide(rng, shape):
    return rng.uniform(-3, 3, shape)


def positive(rng, shape):
    return rng.uniform(0.5, 2, shape)


def normal_or_zero(rng, shape):
    return rng.standard_normal(shape) * rng.integers(2, size=shape)


def nonzero(rng, shape):
    """Of either sign, at least 0.2 away from 0."""
    return rng.choice([-1, 1], shape) * rng.uniform(0.2, 2, shape)


def distinct(rng, shape):
    """In random order, at least 0.06 away from one another."""
    count = int(np.prod(shape))
    return (0.1 * (rng.permutation(count) - count / 2) + rng.uniform(-0.02, 0.02, count)).reshape(shape)


# Arrays, and the shapes, axes and flags that ops take.

sizes = st.integers(1, 4)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, max_side=4)
some_axes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
flags = st.booleans()
reductions = st.sampled_from(["mean", "sum", "none"])
generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)
layouts = st.sampled_from(["rows first", "columns first", "every other", "backwards"])


@st.composite
def arrays(draw, shape, values=normal):
    """A read-only array of this shape, in one of four layouts in memory."""
    x = np.asarray(values(draw(generators), shape), np.float64)
    layout = draw(layouts) if x.ndim else "rows first"
    if layout == "columns first":
        x = np.asfortranarray(x)
    elif layout == "every other":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    elif layout == "backwards":
        x = x[..., ::-1]
    x.flags.writeable = False
    return x


def broadcastable(count, signature=None):
    """That many shapes that fit together, such as (3, 1) and (2, 1, 4)."""
    how = {"signature": signature} if signature else {"num_shapes": count}
    return hnp.mutually_broadcastable_shapes(**how, max_dims=3, max_side=4).map(lambda drawn: drawn.input_shapes)


@st.composite
def axes(draw, ndim):
    """None, an axis or a tuple of axes; negative ones too."""
    return draw(st.none() | hnp.valid_tuple_axes(ndim) | (st.integers(-ndim, ndim - 1) if ndim else st.nothing()))


# Cases: one strategy an op, or a family of ops.


@st.composite
def elementwise(draw, values=normal):
    return Case((draw(arrays(draw(shapes), values)),))


@st.composite
def pairs(draw, second=normal):
    x, y = draw(broadcastable(2))
    return Case((draw(arrays(x)), draw(arrays(y, second))))


@st.composite
def scalings(draw):
    """The factor is a constant: it is given by name, where no gradient is looked for."""
    x, factor = draw(broadcastable(2))
    return Case((draw(arrays(x)),), {"factor": draw(st.sampled_from([-2, 0.3]) | arrays(factor))})


@st.composite
def powers(draw):
    """x⁰ is smooth, and 1, at 0 too."""
    exponent = draw(st.sampled_from([2, 3, -1, 1, 0, 0.5, -1.5]))
    values = normal_or_zero if exponent == 0 else nonzero if isinstance(exponent, int) else positive
    return Case((draw(arrays(draw(shapes), values)), exponent))


@st.composite
def gelus(draw):
    return Case((draw(arrays(draw(shapes), wide)),), {"approximate": draw(st.sampled_from(["none", "tanh"]))})


@st.composite
def along_an_axis(draw):
    shape = draw(some_axes)
    return Case((draw(arrays(shape)),), {"axis": draw(st.integers(-len(shape), len(shape) - 1))})


@st.composite
def over_axes(draw, values=normal):
    shape = draw(shapes)
    return Case((draw(arrays(shape, values)),), {"axis": draw(axes(len(shape))), "keepdims": draw(flags)})


@st.composite
def matmuls(draw):
    x, y = draw(broadcastable(2, "(m,k),(k,n)->(m,n)"))
    return Case((draw(arrays(x)), draw(arrays(y))))


@st.composite
def linears(draw):
    shape, outputs = draw(some_axes), draw(sizes)
    bias = draw(arrays((outputs,))) if draw(flags) else None
    return Case((draw(arrays(shape)), draw(arrays((outputs, shape[-1]))), bias))


@st.composite
def perceptrons(draw):
    shape, hidden, outputs = draw(some_axes), draw(sizes), draw(sizes)
    first, second = (hidden, shape[-1]), (outputs, hidden)
    return Case(tuple(draw(arrays(s)) for s in (shape, first, first[:1], second, second[:1])))


@st.composite
def layer_norms(draw):
    """With a smaller eps two almost equal numbers would be a kink."""
    shape, eps = draw(some_axes), draw(st.sampled_from([0.1, 1.0]))
    return Case((draw(arrays(shape)), draw(arrays(shape[-1:])), draw(arrays(shape[-1:]))), {"eps": eps})


@st.composite
def sums_and_norms(draw):
    """A smaller eps than in ``layer_norms`` would be a kink here too."""
    norm = draw(layer_norms())
    return Case((draw(arrays(norm.args[0].shape)), *norm.args), norm.options)


@st.composite
def rms_norms(draw):
    shape = draw(some_axes)
    return Case((draw(arrays(shape)), draw(arrays(shape[-1:]))), {"eps": draw(st.sampled_from([0.1, 1.0]))})


@st.composite
def batch_norms(draw):
    """Channels are the second axis, and have two values each or more."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=4).filter(lambda s: np.prod(s) > s[1]))
    weight, bias = (draw(arrays(shape[1:2])) if draw(flags) else None for _ in range(2))
    return Case((draw(arrays(shape)), weight, bias), {"eps": draw(st.sampled_from([0.1, 1.0]))})


@st.composite
def attentions(draw):
    batch, heads, queries, keys, width = draw(st.tuples(*[sizes] * 5))
    shapes = [(batch, heads, n, width) for n in (queries, keys, keys)]
    scores = batch, heads, queries, keys
    bias = draw(st.sampled_from([None, scores, scores[1:], scores[2:], (1, heads, queries, 1), (batch, 1, 1, keys)]))
    args = [*(draw(arrays(shape)) for shape in shapes), None if bias is None else draw(arrays(bias))]
    return Case(tuple(args), {"scale": draw(st.sampled_from([None, 0.7]))})


@st.composite
def self_attentions(draw):
    batch, tokens, heads, width = draw(st.tuples(*[sizes] * 4))
    options = {"num_heads": heads, "scale": draw(st.sampled_from([None, 0.7]))}
    return Case((draw(arrays((batch, tokens, 3 * heads * width))),), options)


@st.composite
def cross_entropies(draw):
    """Labels, or weights of the classes that need not sum to 1."""
    shape = draw(some_axes)
    if draw(flags):
        target = np.asarray(draw(generators).integers(shape[-1], size=shape[:-1]), draw(st.sampled_from("iqB")))
    else:
        target = draw(arrays(shape, positive))
    options = {"label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])), "reduction": draw(reductions)}
    return Case((draw(arrays(shape)), target), options)


@st.composite
def squared_errors(draw):
    shape = draw(shapes)
    return Case((draw(arrays(shape)), draw(arrays(shape))), {"reduction": draw(reductions)})


@st.composite
def reshapings(draw):
    shape = draw(some_axes)
    joined = (*shape[:-2], -1)
    return Case((draw(arrays(shape)), draw(st.sampled_from([-1, joined, shape[::-1], (1, *shape), (*shape, 1)]))))


@st.composite
def cuttings(draw):
    """Images of any number of channels; neither they nor their patches need be square."""
    batch, channels, rows, columns, p, q = draw(st.tuples(*[sizes] * 6))
    return Case((draw(arrays((batch, channels, rows * p, columns * q))),), {"patch_size": (p, q)})


@st.composite
def permutations(draw):
    shape = draw(shapes)
    order = draw(st.permutations(range(len(shape))))
    return Case((draw(arrays(shape)), tuple(draw(st.sampled_from([a, a - len(shape)])) for a in order)))


@st.composite
def broadcasts(draw):
    x, y = draw(broadcastable(2))
    return Case((draw(arrays(x)), np.broadcast_shapes(x, y)))


@st.composite
def concatenations(draw):
    shape, count = draw(some_axes), draw(st.integers(1, 3))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    parts = [tuple(draw(sizes) if a == axis % len(shape) else n for a, n in enumerate(shape)) for _ in range(count)]
    return Case(tuple(draw(arrays(part)) for part in parts), {"axis": axis})


@st.composite
def indexings(draw):
    shape = draw(some_axes)
    return Case((draw(arrays(shape)), draw(hnp.basic_indices(shape, allow_newaxis=True))))


@st.composite
def shifts(draw):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=4))
    return Case((draw(arrays(shape)), draw(st.integers(-5, 5)), draw(st.integers(-5, 5))))


@st.composite
def token_ids(draw, batch, count, tokens):
    """(batch, count): in each row different numbers below ``tokens``."""
    return draw(generators).permuted(np.tile(np.arange(tokens), (batch, 1)), axis=1)[:, :count]


@st.composite
def takings(draw):
    batch, width, tokens = draw(st.tuples(*[sizes] * 3))
    ids = draw(token_ids(batch, draw(st.integers(1, tokens)), tokens))
    return Case((draw(arrays((batch, tokens, width))), ids))


@st.composite
def puttings(draw):
    batch, width, tokens = draw(st.tuples(*[sizes] * 3))
    ids = draw(token_ids(batch, draw(st.integers(1, tokens)), tokens))
    return Case((draw(arrays((*ids.shape, width))), ids, tokens))


@st.composite
def relative_biases(draw):
    rows, columns, heads = draw(st.tuples(*[sizes] * 3))
    prefix = draw(st.integers(0, 2))
    length = (2 * rows - 1) * (2 * columns - 1) + (3 if prefix else 0)
    return Case((draw(arrays((length, heads))),), {"grid": (rows, columns), "prefix_tokens": prefix})


@st.composite
def distances(draw):
    """(…, n, 2k + 1), laid out over fewer or more tokens than rows."""
    *batch, reach = draw(some_axes)
    shape = (*batch, draw(sizes), 2 * reach + 1)
    return Case((draw(arrays(shape)),), {"tokens": draw(st.integers(1, 7))})


@st.composite
def weights_by_distance(draw):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=6))
    return Case((draw(arrays(shape)),), {"reach": draw(sizes)})


@st.composite
def rotations(draw):
    x, angles = draw(broadcastable(2))
    pairs = draw(sizes)
    return Case((draw(arrays((*x, 2 * pairs))), draw(arrays((*angles, pairs)))))


CASES: dict[str, st.SearchStrategy[Case]] = {
    "add": pairs(), "add_layer_norm": sums_and_norms(), "amax": over_axes(distinct),
    "batch_norm": batch_norms(), "broadcast_to": broadcasts(),
    "by_distance": distances(),
    "concatenate": concatenations(), "cross_entropy": cross_entropies(), "div": pairs(nonzero), "exp": elementwise(),
    "gelu": gelus(), "getitem": indexings(), "layer_norm": layer_norms(), "linear": linears(),
    "log": elementwise(positive), "log_softmax": along_an_axis(), "matmul": matmuls(), "mean": over_axes(),
    "mlp": perceptrons(), "mse_loss": squared_errors(), "mul": pairs(), "neg": elementwise(), "patchify": cuttings(),
    "power": powers(), "put_tokens": puttings(), "relative_bias": relative_biases(), "relu": elementwise(nonzero),
    "reshape": reshapings(), "rms_norm": rms_norms(), "rotate": rotations(), "scale": scalings(),
    "scaled_dot_product_attention": attentions(),
    "self_attention": self_attentions(), "shift": shifts(), "sigmoid": elementwise(nonzero),
    "softmax": along_an_axis(), "sqrt": elementwise(positive), "sub": pairs(), "sum": over_axes(),
    "sum_by_distance": weights_by_distance(), "take_tokens": takings(), "transpose": permutations(),
}  # fmt: skip

from tests.strategies_images import CASES as IMAGE_CASES  # noqa: E402 (it needs what stands above)

CASES |= IMAGE_CASES
