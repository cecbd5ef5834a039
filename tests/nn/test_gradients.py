"""The gradients of every layer, through its input and every parameter, against central differences."""

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from minivit import Tensor, gradcheck, nn, ops
from minivit.autograd import Buffer
from minivit.random import sampling
from tests.strategies import CASES as OPS
from tests.strategies import arrays, flags, generators, sizes, some_axes

EPS = 0.1  # of layer norms: with a small one, tokens of almost equal channels would be a kink
ACTIVATIONS = ["gelu", "gelu_tanh", "relu"]
rates = st.sampled_from([0.0, 0.3, 0.8])


def randomise(module, rng):
    """Weights of standard deviation 0.3 in float64: with much smaller ones gradients are lost in rounding.

    Buffers are positive, as a running variance is.
    """
    for parameter in module.parameters():
        if isinstance(parameter, Buffer):
            parameter.data = np.asarray(rng.uniform(0.2, 2, parameter.shape))
        else:
            parameter.data = np.asarray(0.3 * rng.standard_normal(parameter.shape))
    return module


def check_gradients(module, x):
    """The worst relative error, with the same random masks in all evaluations; draws near a corner are passed over.

    Steps are ten times longer than gradcheck's own, which are for single ops: through many layers more digits of the
    difference are lost to rounding, while the curve still costs far less.
    """

    def run(x):
        with sampling(seed=0, step=0, samples=np.arange(len(x))):
            return module(x + 0)  # a sum, so that Identity too returns the result of an op

    if distance_from_corners(module, run, x) < 1e-4:
        reject()
    return gradcheck(run, x, parameters={n: p for n, p in module.named_parameters() if p.requires_grad}, eps=1e-5)


def distance_from_corners(module, run, x):
    """How near relu comes to 0, or a maximum over tokens to a tie: there they have no derivative."""
    relus = {id(part.fc1) for _, part in module.named_modules() if isinstance(part, nn.Mlp) and part.act == "relu"}
    pooled = id(module.norm) if "max" in getattr(module, "global_pool", "") else None
    distances = [np.inf]

    def look(part, inputs, output):
        if id(part) in relus:
            distances.append(abs(output.data).min())
        if id(part) == pooled:
            patches = np.sort(output.data[:, module.num_prefix_tokens :], axis=1)
            distances.extend(np.diff(patches[:, -2:], axis=1).ravel())

    rectified = [part for _, part in module.named_modules() if isinstance(part, nn.RectifiedAttention)]
    for part in rectified:
        part.weights = lambda scores: distances.append(abs(scores.data).min()) or ops.relu(scores)
    with nn.observe(look):
        run(Tensor(x))
    for part in rectified:
        del part.weights
    return min(distances)


# Cases: a layer and its input, one strategy a layer.


@st.composite
def tokens(draw, width):
    """(B, N, width)"""
    return draw(arrays((draw(sizes), draw(sizes), width)))


@st.composite
def on_any_shape(draw, make):
    """A layer made for the width of its input, which may have any number of axes."""
    shape = draw(some_axes)
    return make(draw, shape[-1]), draw(arrays(shape))


@st.composite
def batch_norms(draw, kind):
    """A layer, and x of several values a channel."""
    ndims = st.sampled_from(kind.ndims).flatmap(lambda n: st.tuples(st.integers(2, 4), *[sizes] * (n - 1)))
    shape = draw(ndims)
    return kind(shape[1], EPS, affine=draw(flags)), draw(arrays(shape))


@st.composite
def convolutions(draw):
    """A layer made for the arguments of the op."""
    case = draw(OPS["conv2d"])
    x, weight, bias = case.args
    channels, kernel = (x.shape[1], len(weight)), weight.shape[2:]
    return nn.Conv2d(*channels, kernel, **case.options, bias=bias is not None), x


def poolings(kind, name):
    return OPS[name].map(lambda case: (kind(**case.options), *case.args))


@st.composite
def patch_embeddings(draw, kind=nn.PatchEmbed, **options):
    (b, c), grid, patch = (draw(st.tuples(sizes, sizes)) for _ in range(3))
    image = (grid[0] * patch[0], grid[1] * patch[1])
    return kind(image, patch, c, draw(sizes), bias=draw(flags), **options), draw(arrays((b, c, *image)))


@st.composite
def attentions(draw, kind=nn.Attention):
    heads, width = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dim = draw(sizes) if (own := draw(flags)) else heads * width
    options = {"norm_eps": EPS, "head_dim": width if own else None}
    layer = kind(dim, heads, draw(flags), draw(flags), draw(rates), draw(rates), **options)
    layer.fused_attn = draw(flags)
    return layer, draw(tokens(dim))


@st.composite
def mlps(draw):
    dim = draw(sizes)
    return nn.Mlp(dim, draw(sizes), draw(st.sampled_from(ACTIVATIONS)), draw(rates)), draw(tokens(dim))


@st.composite
def blocks(draw):
    heads = draw(st.integers(1, 2))
    dim = heads * draw(st.integers(1, 3))
    layer = nn.Block(
        dim, heads, draw(st.sampled_from([1.0, 2.5])), draw(flags), draw(flags), draw(rates), draw(rates),
        draw(st.sampled_from([None, 0.1])), draw(rates), EPS, draw(st.sampled_from(ACTIVATIONS)),
        draw(st.sampled_from(["softmax", "rela", "lsa"])),
    )  # fmt: skip
    return layer, draw(tokens(dim))


CASES = {
    nn.Attention: attentions(),
    nn.AvgPool2d: poolings(nn.AvgPool2d, "avg_pool2d"),
    nn.BatchNorm1d: batch_norms(nn.BatchNorm1d),
    nn.BatchNorm2d: batch_norms(nn.BatchNorm2d),
    nn.Block: blocks(),
    nn.Conv2d: convolutions(),
    nn.Dropout: on_any_shape(lambda draw, width: nn.Dropout(draw(rates))),
    nn.DropPath: on_any_shape(lambda draw, width: nn.DropPath(draw(rates))),
    nn.GatedRMSNorm: on_any_shape(lambda draw, width: nn.GatedRMSNorm(width, EPS)),
    nn.Identity: on_any_shape(lambda draw, width: nn.Identity()),
    nn.LayerNorm: on_any_shape(lambda draw, width: nn.LayerNorm(width, EPS)),
    nn.LayerScale: on_any_shape(lambda draw, width: nn.LayerScale(width)),
    nn.Linear: on_any_shape(lambda draw, width: nn.Linear(width, draw(sizes), bias=draw(flags))),
    nn.LocalitySelfAttention: attentions(nn.LocalitySelfAttention),
    nn.MaxPool2d: poolings(nn.MaxPool2d, "max_pool2d"),
    nn.Mlp: mlps(),
    nn.PatchEmbed: patch_embeddings(),
    nn.RectifiedAttention: attentions(nn.RectifiedAttention),
    nn.ShiftedPatchEmbed: patch_embeddings(nn.ShiftedPatchEmbed, norm_eps=EPS),
}


def test_every_layer_has_a_case():
    exported = {x for x in map(vars(nn).get, nn.__all__) if isinstance(x, type) and issubclass(x, nn.Module)}
    assert set(CASES) == exported - {nn.Module}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_gradients(kind, data):
    layer, x = data.draw(CASES[kind])
    assert type(layer) is kind
    randomise(layer.train(data.draw(flags)), data.draw(generators))
    assert check_gradients(layer, x) <= 1e-7


def test_a_path_that_the_gradient_does_not_take_is_found(monkeypatch):
    def forward(block, z):
        z = z + block.attn(block.norm1(z))
        return z + block.mlp(block.norm2(z.detach()))

    block = randomise(nn.Block(4, 2, norm_eps=EPS), np.random.default_rng(0))
    monkeypatch.setattr(nn.Block, "forward", forward)
    with pytest.raises(AssertionError, match=r"the gradient of argument 0, .*, is wrong"):
        check_gradients(block, np.random.default_rng(1).standard_normal((1, 2, 4)))
