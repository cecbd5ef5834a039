"""Which patches speak for a class? Attention weights, weighed by the gradient of that class's logit (Chefer, Gur and
Wolf, "Generic Attention-model Explainability", ICCV 2021, arXiv:2103.15679, eq. 5 and 6).

An attention map says where a network looks, whatever it answers. The gradient ∇A = ∂y_c/∂A says what each weight does
to the logit y_c of class c, and ∇A ⊙ A, to first order, what the logit would lose without it. What speaks for the class
is kept, averaged over heads, and carried from layer to layer along the residual connection:

    Ā = E_h[(∇A ⊙ A)₊]
    R ← R + Ā R,   from R = I, first layer to last

Row n of R says how relevant each token of the input is for what token n is in the end. ``rollout.py`` asks the same
without a class. ``backward`` leaves gradients at leaves of the graph, and A is none. So zeros are added to it, which
are: the gradient with respect to them is that with respect to A.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from minivit.autograd import Tensor
from minivit.backend import Array, array_module, to_device
from minivit.nn import Module, check_device, frozen, on_device_of
from minivit.nn.heads import attention_layers, composed_attention


class Tapped(Module):
    """A part that is given attention weights A. It is given A + 0 instead; ``seen`` takes the pair of A and 0."""

    def __init__(self, part: Module, seen: list[tuple[Array, Tensor]]):
        self.part = part
        self.seen = seen

    def forward(self, weights: Tensor) -> Tensor:
        zeros = Tensor(array_module(weights.data).zeros_like(weights.data), requires_grad=True)
        self.seen.append((weights.data, zeros))
        return self.part(weights + zeros)


@contextmanager
def tapped(model: Module) -> Iterator[list[tuple[Array, Tensor]]]:
    """Inside: the list takes, of each attention layer that is run, A (B, H, Q, N) and zeros that are added to it.

    The layers are on their path of small ops meanwhile. Raises ValueError for a model without attention.

    >>> from minivit.nn import Attention
    >>> layer = Attention(dim=8, num_heads=2)
    >>> with tapped(layer) as seen:
    ...     y = layer(np.ones((1, 5, 8), np.float32))
    >>> [(weights.shape, zeros.shape) for weights, zeros in seen]
    [((1, 2, 5, 5), (1, 2, 5, 5))]
    """
    layers, seen = attention_layers(model), []
    parts = [layer.attn_drop for layer in layers]  # A passes through it: see nn/attention.py
    try:
        for layer, part in zip(layers, parts):
            layer.attn_drop = Tapped(part, seen)
        with composed_attention(model):
            yield seen
    finally:
        for layer, part in zip(layers, parts):
            layer.attn_drop = part


def attention_gradients(
    model: Module, images: Array, classes: Array | Sequence[int] | int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A and ∂y_c/∂A of every layer, first to last, for images (B, C, H, W): two lists of arrays (B, H, Q, N).

    y are the logits, before any softmax. ``classes`` c: a number for each image, or one for all; by default the answer
    of the model, its largest logit. Q is N, except in the last block of a network whose head reads no patch: there only
    the rows that it reads are computed, and the gradient of the others would be zero.

    The model is in evaluation mode meanwhile, and its Parameters receive no gradient. Raises ValueError for a model
    without attention, or that does not give one row of logits an image, and for classes that are not there; TypeError
    for images on another device than the model.

    >>> from minivit.models import create_model
    >>> model = create_model("vit_nano_patch7_28")
    >>> maps, gradients = attention_gradients(model, np.zeros((2, 1, 28, 28), np.float32), classes=[3, 7])
    >>> [gradient.shape for gradient in gradients]
    [(2, 4, 17, 17), (2, 4, 17, 17), (2, 4, 17, 17), (2, 4, 1, 17)]
    """
    check_device(model, images=images)
    gradients: dict[Tensor, Array] = {}
    with on_device_of(model), frozen(model), tapped(model) as seen:
        logits = model(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            given = logits.shape if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(f"{type(model).__name__} must give logits (B, K) of which to take one, but gave {given}")
        chosen = _chosen(logits.numpy(), classes)
        logits.backward(to_device(chosen, logits.device), into=gradients)  # Σ over images: each depends on its own maps
        layers = [(to_device(a, "cpu"), to_device(gradients[zeros], "cpu")) for a, zeros in seen]
    maps, slopes = zip(*layers)
    return list(maps), list(slopes)


def propagate(maps: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> np.ndarray:
    """R of the attention weights and their gradients in all layers, first to last, (B, H, Q, N) each → (B, N, N).

    Q ≤ N: rows of a map that are missing at its end count as rows whose gradient is zero. No number of R is negative.

    >>> a, gradient = np.array([[[[0.5, 0.5], [0.25, 0.75]]]]), np.array([[[[2.0, -2.0], [4.0, 0.0]]]])
    >>> propagate([a], [gradient])
    array([[[2., 0.],
            [1., 1.]]])
    """
    batch, _, _, tokens = maps[0].shape
    total = np.tile(np.eye(tokens, dtype=maps[0].dtype), (batch, 1, 1))
    for a, gradient in zip(maps, gradients):
        relevant = np.maximum(gradient * a, 0).mean(axis=1)  # (B, Q, N)
        total[:, : relevant.shape[1]] += relevant @ total
    return total


def relevance(model: Module, images: Array, classes: Array | Sequence[int] | int | None = None) -> np.ndarray:
    """How relevant each patch of images (B, C, H, W) is for the logit of a class: (B, grid height, grid width).

    The rows of R for the tokens that the head reads, their mean, over the patches: of the class token; of class and
    distillation token in a network with both; of all patches where the head reads their mean or maximum, each of which
    then has 1/N from the start, R = I. Numbers are ≥ 0, and no shares: they compare patches of an image, not images.
    ``classes`` and errors: see ``attention_gradients``.

    >>> from minivit.models import create_model
    >>> relevance(create_model("vit_nano_patch7_28"), np.zeros((2, 1, 28, 28), np.float32), classes=3).shape
    (2, 4, 4)
    """
    rows = propagate(*attention_gradients(model, images, classes))[:, _read_by_head(model)].mean(axis=1)
    return rows[:, model.num_prefix_tokens :].reshape(-1, *model.patch_embed.grid_size)


def _read_by_head(model: Module) -> slice:
    if model.global_pool != "token":
        return slice(model.num_prefix_tokens, None)
    return slice(2 if hasattr(model, "dist_token") else 1)


def _chosen(logits: np.ndarray, classes: Array | Sequence[int] | int | None) -> np.ndarray:
    """1 at the class of each image, and 0 elsewhere, (B, K)."""
    images, count = logits.shape
    if classes is None:
        classes = logits.argmax(axis=1)
    numbers = np.asarray(to_device(classes, "cpu") if hasattr(classes, "get") else classes)
    fits = numbers.dtype.kind in "iu" and numbers.shape in ((), (images,))
    if not fits or ((numbers < 0) | (numbers >= count)).any():
        raise ValueError(
            f"classes must be one number or {images}, one an image, in 0 … {count - 1}, got {numbers.tolist()}"
        )
    chosen = np.zeros_like(logits)
    chosen[np.arange(images), numbers] = 1
    return chosen
