"""Losses that keep the heads of an attention layer apart, and how a training run adds them.

Three penalties of what heads say, means over the images of a batch, so that a batch may be cut anywhere:

    mean_cosine     1/H² Σ_ij cos(xⁱ, xʲ)               of values V or outputs O
    overlap         1/H² Σ_ij Σ_m aⁱ_m aʲ_m             of attention weights A
    margin_excess   mean_{i≠j} [cos(oⁱ, oʲ) − m]₊       of outputs O

The first two are the disagreement regularisation of Li et al., "Multi-Head Attention with Disagreement
Regularization", EMNLP 2018 (arXiv:1810.10183). They maximise the likelihood plus λD, where D_subspace, D_position and
D_output are minus the means above; a loss is minimised, so it is −D that is computed here and added. The third is in
the spirit of Huang et al., "Multi-Head Attention with Diversity for Learning Grounded Multilingual Multimodal
Representations", EMNLP-IJCNLP 2019: pairs that are closer than a margin are pushed apart, all others are left alone.

A mean over all pairs of heads needs no pairs. With unit vectors uⁱ = xⁱ / ‖xⁱ‖,

    Σ_ij uⁱ · uʲ = (Σ_i uⁱ) · (Σ_j uʲ) = ‖Σ_i uⁱ‖²,

which costs as much as one addition of the heads.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from minivit.autograd import Tensor, op
from minivit.backend import Array, array_module
from minivit.nn import Module
from minivit.nn.heads import Heads, observe_heads

SHORTEST = 1e-6  # shorter vectors point nowhere


@op
def mean_cosine(x, per_token=False, include_diagonal=True):
    """The mean cosine of all pairs of heads, of x (B, H, N, d): a number in [0, 1], 1 where all heads agree.

    The vectors are the heads' matrices (N, d), read as one long vector each, or with ``per_token`` the rows of each
    token, whose cosines are then averaged. ``include_diagonal`` counts each head's cosine with itself, which is 1, and
    divides by H² as the paper does; without, the H (H − 1) true pairs are averaged (0 for a single head), and the
    result may be as low as −1/(H − 1). The gradients differ by the factor H / (H − 1) only.

    With s = Σ_i uⁱ the sum over all pairs is ‖s‖², over true pairs ‖s‖² − Σ_i ‖uⁱ‖², and duⁱ = 2 s, or 2 (s − uⁱ), over
    the number of pairs. As uⁱ does not change when xⁱ grows, only the part of duⁱ across uⁱ arrives, so 2 s does for
    both:

        dxⁱ = (duⁱ − uⁱ (uⁱ · duⁱ)) / ‖xⁱ‖

    A vector shorter than 1e-6 has no direction: its cosines are 0, and it receives no gradient.

    >>> east, north = [[1.0, 0.0]], [[0.0, 3.0]]  # two heads, of one token
    >>> mean_cosine(Tensor([[east, north]])).item(), mean_cosine(Tensor([[east, north]]), include_diagonal=False).item()
    (0.5, 0.0)
    """
    u, pull_back = directions(x, per_token)
    s = u.sum(1, keepdims=True)  # (B, 1, N, d)
    count = _groups(x, per_token) * _pairs(x, include_diagonal)
    total = (s * s).sum()
    if not include_diagonal:
        total = total - (u * u).sum()

    def pullback(dy):
        return pull_back(s * (2 / count * dy))

    return total / count, pullback


@op
def overlap(a, include_diagonal=True):
    """How much heads look at the same places: the mean of aⁱ · aʲ over pairs of heads and queries, of a (B, H, Q, N).

    For rows that sum to 1, it lies between 0 (no token is seen by two heads) and 1 (all heads look at the same one
    token). The product of a head with itself is no constant here: it is large where a head looks at few tokens, so with
    ``include_diagonal``, as in the paper, sharp maps are penalised too. The paper's sum over all of Aⁱ ⊙ Aʲ is Q times
    this; its absolute value is left out, because weights are not negative.

    With s = Σ_i aⁱ the sum over pairs is s · s, from which aⁱ · aⁱ is taken away for true pairs:
    daⁱ = 2 s, or 2 (s − aⁱ), over the number of pairs and queries.

    >>> left, right = [[1.0, 0.0]], [[0.0, 1.0]]  # two heads, of one query
    >>> overlap(Tensor([[left, right]])).item(), overlap(Tensor([[left, right]]), include_diagonal=False).item()
    (0.5, 0.0)
    """
    s = a.sum(1, keepdims=True)  # (B, 1, Q, N)
    count = _groups(a, True) * _pairs(a, include_diagonal)
    total = (s * s).sum()
    if include_diagonal:
        shape = a.shape
        return total / count, lambda dy: array_module(dy).broadcast_to(s * (2 / count * dy), shape)
    return (total - (a * a).sum()) / count, lambda dy: (s - a) * (2 / count * dy)


@op
def margin_excess(x, margin=0.0, per_token=False):
    """By how much pairs of heads are closer than a margin: mean_{i≠j} [cos(xⁱ, xʲ) − margin]₊, of x (B, H, N, d).

    ``per_token`` as in ``mean_cosine``; 0 for a single head. C = U Uᵀ holds the cosines of all pairs, U (H, …) the unit
    vectors. Its cotangent dC is 1 over the number of pairs where a pair is too close, else 0, and dU = (dC + dCᵀ) U. So
    where all pairs are beyond the margin the gradient is exactly zero.

    >>> east, north = [[1.0, 0.0]], [[0.0, 3.0]]
    >>> margin_excess(Tensor([[east, east]]), margin=0.25).item(), margin_excess(Tensor([[east, north]])).item()
    (0.75, 0.0)
    """
    xp = array_module(x)
    batch, heads, tokens, width = x.shape
    u, pull_back = directions(x, per_token)
    rows = u.transpose(0, 2, 1, 3) if per_token else u.reshape(batch, 1, heads, -1)  # (B, N or 1, H, c)
    excess = rows @ rows.swapaxes(-1, -2)  # (B, N or 1, H, H)
    excess -= margin
    excess *= (excess > 0) * (1 - xp.eye(heads, dtype=x.dtype))
    count = _groups(x, per_token) * _pairs(x, include_diagonal=False)

    def pullback(dy):
        dc = (excess > 0) * (dy / count)
        du = (dc + dc.swapaxes(-1, -2)) @ rows
        return pull_back(du.transpose(0, 2, 1, 3) if per_token else du.reshape(batch, heads, tokens, width))

    return excess.sum() / count, pullback


def directions(x: Array, per_token: bool = False) -> tuple[Array, Callable[[Array], Array]]:
    """u = x / ‖x‖ for heads x (B, H, N, d), and its pullback; ‖·‖ of each head's matrix, or of each of its rows.

    What is shorter than 1e-6 becomes 0.

    >>> directions(np.array([[[[3.0], [4.0]]]]))[0].ravel()
    array([0.6, 0.8])
    """
    xp = array_module(x)
    axes = -1 if per_token else (-2, -1)
    length = xp.sqrt((x * x).sum(axes, keepdims=True))
    inverse = (length > SHORTEST) / xp.maximum(length, SHORTEST)
    u = x * inverse
    return u, lambda du: (du - u * (u * du).sum(axes, keepdims=True)) * inverse


def _groups(x: Array, per_token: bool) -> int:
    """Over how many images, or tokens, the pairs are averaged."""
    return x.shape[0] * (x.shape[2] if per_token else 1)


def _pairs(x: Array, include_diagonal: bool) -> int:
    heads = x.shape[1]
    return heads * heads if include_diagonal else max(heads * (heads - 1), 1)


# --- in training ----------------------------------------------------------------------------------------------------

PENALTIES: dict[str, Callable[[Heads, "HeadPenalties"], Tensor]] = {
    "disagreement_subspace": lambda heads, how: mean_cosine(heads.values, how.per_token, how.include_diagonal),
    "disagreement_position": lambda heads, how: overlap(heads.weights, how.include_diagonal),
    "disagreement_output": lambda heads, how: mean_cosine(heads.outputs, how.per_token, how.include_diagonal),
    "margin": lambda heads, how: margin_excess(heads.outputs, how.margin, how.per_token),
}


@dataclass(frozen=True)
class HeadPenalties:
    """Penalties by name, each with its weight, for all attention layers of a model.

    - ``weights``: of "disagreement_subspace", "disagreement_position", "disagreement_output" and "margin"
    - ``margin``: the cosine from which on two heads are too close
    - ``per_token``, ``include_diagonal``: see ``mean_cosine``

    They are read in the forward pass of training, which goes on as it is; only "disagreement_position" takes the layers
    off their fused path. In the last block of a network whose head reads the class token alone, that token is all there
    is. Any number of threads may read at a time. Raises ValueError for no penalty, for an unknown name and for a weight
    that is negative.

    >>> from minivit.models import create_model
    >>> model = create_model("vit_nano_patch7_28")
    >>> penalties = HeadPenalties({"disagreement_output": 0.1, "margin": 0.05}, margin=0.5)
    >>> with penalties.reading(model) as read:
    ...     logits = model(np.zeros((2, 1, 28, 28), np.float32))
    >>> loss = ops.cross_entropy(logits, np.array([0, 1])) + read.total()
    >>> loss.backward()
    >>> len(read.terms["margin"])  # one for each layer
    4
    """

    weights: Mapping[str, float]
    margin: float = 0.0
    per_token: bool = False
    include_diagonal: bool = True

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError(f"HeadPenalties needs at least one of {', '.join(PENALTIES)}, got none")
        for name, weight in self.weights.items():
            if name not in PENALTIES:
                raise ValueError(f"there is no head penalty {name!r}: choose from {', '.join(PENALTIES)}")
            if not weight >= 0:
                raise ValueError(f"the weight of {name} must be at least 0, got {weight}")

    @contextmanager
    def reading(self, model: Module) -> Iterator["Reading"]:
        """Inside: whatever this thread computes with ``model`` is read. Use the Reading after the forward pass.

        Raises ValueError for a model without attention, and for one that is set to recompute its activations: its
        first pass leaves no graph, so the penalties would have no gradient.
        """
        if model.training and getattr(model, "grad_checkpointing", False):
            raise ValueError(
                "head penalties need the graph of the forward pass, which recomputation does not keep: "
                "call model.set_grad_checkpointing(False)"
            )
        read = Reading(self.weights)

        def look(layer: int, heads: Heads) -> None:
            for name in self.weights:
                read.terms.setdefault(name, []).append(PENALTIES[name](heads, self))

        with observe_heads(model, look, weights="disagreement_position" in self.weights):
            yield read


@dataclass
class Reading:
    """What was read: in ``terms``, for each penalty, one unweighted Tensor a layer, from first to last."""

    weights: Mapping[str, float]
    terms: dict[str, list[Tensor]] = field(default_factory=dict)

    def total(self) -> Tensor:
        """Σ over penalties of weight · Σ over layers, a number to add to the loss.

        Raises RuntimeError where no forward pass was read.
        """
        if not self.terms:
            raise RuntimeError("no penalty was read: run the model inside of reading(model), in the same thread")
        return sum(term * self.weights[name] for name, terms in self.terms.items() for term in terms)
