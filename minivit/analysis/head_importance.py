"""How much does a network need each head? (Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?",
NeurIPS 2019, arXiv:1905.10650.)

Put a gate on the output of every head, O_h ↦ ξ_h O_h: at 1 nothing changes, at 0 the head is gone. Two questions:

    leave one out     the loss, or accuracy, with one ξ_h = 0                    a forward pass for each head
    importance        I_h = E_x |∂ℓ(x)/∂ξ_h| at ξ = 1, with ℓ the loss of x      a backward pass for all heads

The second is the first order of the first. By the chain rule it is an inner product, over tokens and channels,

    ∂ℓ/∂ξ_h = Σ_{n,c} O_h[n, c] · ∂ℓ/∂O_h[n, c],

which could be read off without gates. The absolute value is taken of every image before the mean: a head that helps
with some images and hurts with as many others is not idle. For that each image has gates of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from minivit.analysis.batches import each_batch
from minivit.autograd import Tensor
from minivit.backend import Array, array_module, to_device
from minivit.data import Batch, Loader
from minivit.nn import Module, frozen, on_device_of
from minivit.nn.heads import attention_layers, outlet
from minivit.nn.module import as_tensor
from minivit.ops import cross_entropy

Result = TypeVar("Result")


class Gated(Module):
    """A part that is given all heads side by side, (B, N, H d), behind gates: (H,), or (B, H) for each image."""

    def __init__(self, part: Module, gates: Tensor):
        self.part = part
        self.gates = gates

    def forward(self, x: Tensor) -> Tensor:
        heads = self.gates.shape[-1]
        gated = x.reshape(*x.shape[:2], heads, -1) * self.gates.reshape(-1, 1, heads, 1)
        return self.part(gated.reshape(x.shape))


@contextmanager
def gated(model: Module, gates: Sequence[Tensor | Array]) -> Iterator[None]:
    """Inside: the output of each head is multiplied by its gate; ``gates`` has (H,) or (B, H) numbers for each layer.

    Raises ValueError for another number of layers or heads.

    >>> from minivit.nn import Attention
    >>> layer, x = Attention(dim=8, num_heads=2), Tensor(np.ones((1, 5, 8), np.float32))
    >>> with gated(layer, [np.zeros(2, np.float32)]):
    ...     y = layer(x)
    >>> bool((y.numpy() == layer.proj.bias.numpy()).all())  # without its heads the layer says the same of everything
    True
    """
    layers = attention_layers(model)
    tensors = [as_tensor(gate) for gate in gates]
    shapes, heads = [gate.shape for gate in tensors], [layer.num_heads for layer in layers]
    if [shape[-1] for shape in shapes] != heads:
        raise ValueError(f"gates of shapes {shapes} do not fit a model whose layers have {heads} heads")
    parts = [getattr(layer, outlet(layer)) for layer in layers]
    try:
        for layer, part, gate in zip(layers, parts, tensors):
            setattr(layer, outlet(layer), Gated(part, gate))
        yield
    finally:
        for layer, part in zip(layers, parts):
            setattr(layer, outlet(layer), part)


def head_importance(
    model: Module, batches: Loader | Iterable[Batch], normalise: bool = True, loss_fn: Callable = cross_entropy,
    progress: bool = True,
) -> list[np.ndarray]:  # fmt: skip
    """I_h = E_x |∂ℓ(x)/∂ξ_h| of every head, one array (H,) a layer, over the images of a Loader or of batches.

    Divided by its L2 norm in each layer, as the paper does before comparing heads of different layers, unless
    ``normalise`` is off. ``loss_fn(logits, labels, reduction="sum")`` adds up the losses of single images. The model is
    in evaluation mode meanwhile, and its Parameters receive no gradient.

    >>> from minivit.models import create_model
    >>> model = create_model("vit_nano_patch7_28")
    >>> batch = Batch(np.ones((2, 1, 28, 28), np.float32), np.array([0, 1]), np.arange(2))
    >>> scores = head_importance(model, [batch])
    >>> len(scores), scores[0].shape, round(float((scores[0] ** 2).sum()), 6)
    (4, (4,), 1.0)
    """
    layers, images = attention_layers(model), 0
    sums = [np.zeros(layer.num_heads) for layer in layers]
    with on_device_of(model), frozen(model):
        for batch in each_batch(model, batches, "importance of heads", progress):
            xp = array_module(batch.images)
            gates = [
                Tensor(xp.ones((len(batch.images), layer.num_heads), layer.proj.weight.dtype), requires_grad=True)
                for layer in layers
            ]
            gradients: dict[Tensor, Array] = {}
            with gated(model, gates):
                loss_fn(model(batch.images), batch.labels, reduction="sum").backward(into=gradients)
            for total, gate in zip(sums, gates):
                total += to_device(xp.abs(gradients[gate]).sum(0), "cpu")
            images += len(batch.images)
    means = [total / images for total in sums]
    return [mean / (np.linalg.norm(mean) or 1.0) for mean in means] if normalise else means


def leave_one_out(model: Module, measure: Callable[[], Result], progress: bool = True) -> list[list[Result]]:
    """What ``measure()`` gives without each head in turn: ``results[layer][head]``.

    ``measure`` may be any function of no arguments that uses the model, such as ``lambda: evaluate(model, test)``.

    >>> from minivit.nn import Attention, evaluating
    >>> layer, x = Attention(dim=8, num_heads=2), Tensor(np.ones((1, 5, 8), np.float32))
    >>> results = leave_one_out(layer, lambda: layer(x).shape)
    >>> results
    [[(1, 5, 8), (1, 5, 8)]]
    """
    layers = attention_layers(model)
    results: list[list[Result]] = [[] for _ in layers]
    places = [(number, head) for number, layer in enumerate(layers) for head in range(layer.num_heads)]
    for number, head in tqdm(places, desc="heads left out", leave=False, disable=None if progress else True):
        xp, dtype = array_module(layers[number].proj.weight.data), layers[number].proj.weight.dtype
        gates = [xp.ones(layer.num_heads, dtype) for layer in layers]
        gates[number][head] = 0
        with gated(model, gates):
            results[number].append(measure())
    return results
