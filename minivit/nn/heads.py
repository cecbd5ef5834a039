"""What each head of a network says, read while it runs: its values, its attention weights and its output.

Nothing in the layers' code knows of this. ``observe`` sees every part of an attention layer run before the layer
itself has run, and the layer's parts are always the same:

    qkv         its last columns are the heads' values side by side               V (B, H, N, d)
    attn_drop   is given the attention weights, on the path of small ops only     A (B, H, Q, N)
    proj        is given the heads' outputs side by side                          O (B, H, Q, d)

Rectified attention normalises all outputs together before ``proj``: there it is ``norm`` that is given O. Q queries
look at N tokens: as many, except in the last block of a network whose head reads the class token alone. There the model
computes that token's row and no other (``VisionTransformer.forward_features`` computes them all).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from minivit.autograd import Tensor
from minivit.nn.attention import Attention
from minivit.nn.module import Module, observe


class Heads(NamedTuple):
    """The heads of one attention layer in one forward pass, as Tensors of the graph."""

    values: Tensor  # V (B, H, N, d)
    weights: Tensor | None  # A (B, H, Q, N), before dropout; None where they were not asked for
    outputs: Tensor  # O = A V, and what Shaw's positions add (B, H, Q, d)


def attention_layers(model: Module) -> list[Attention]:
    """The attention layers of a model, from first to last. Raises ValueError where it has none.

    >>> from minivit.nn import Block
    >>> len(attention_layers(Block(dim=8, num_heads=2)))
    1
    """
    layers = [module for _, module in model.named_modules() if isinstance(module, Attention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no attention layer")
    return layers


def outlet(layer: Attention) -> str:
    """The name of the part that is given the outputs of all heads side by side: ``proj``, or a ``norm`` before it.

    >>> from minivit.nn import Attention
    >>> outlet(Attention(dim=8, num_heads=2))
    'proj'
    """
    return "norm" if hasattr(layer, "norm") else "proj"


@contextmanager
def observe_heads(model: Module, look: Callable[[int, Heads], None], weights: bool = False) -> Iterator[None]:
    """Inside: ``look(layer, heads)`` is called after each attention layer of ``model`` that this thread has run.

    ``layer`` is its number, from 0. With ``weights`` the layers are on their path of small ops meanwhile, the only one
    on which attention weights exist as such. Raises ValueError for a model without attention.

    >>> from minivit.nn import Attention
    >>> layer = Attention(dim=8, num_heads=2)
    >>> with observe_heads(layer, lambda i, heads: print(i, heads.values.shape, heads.weights.shape), weights=True):
    ...     y = layer(Tensor(np.ones((1, 5, 8), np.float32)))
    0 (1, 2, 5, 4) (1, 2, 5, 5)
    """
    layers = attention_layers(model)
    numbers = {id(layer): number for number, layer in enumerate(layers)}
    parts = {id(part) for layer in layers for part in (layer.qkv, layer.attn_drop, getattr(layer, outlet(layer)))}
    seen: dict[int, tuple] = {}

    def keep(module: Module, inputs: tuple, output: Tensor) -> None:
        if id(module) in parts:
            seen[id(module)] = (inputs[0], output)  # of q, k and v computed one by one, v is the last
        elif id(module) in numbers:
            heads = _heads(module, seen, weights)
            seen.clear()
            look(numbers[id(module)], heads)

    with composed_attention(model) if weights else nullcontext(), observe(keep):
        yield


def _heads(layer: Attention, seen: dict[int, tuple], weights: bool) -> Heads:
    def split(x: Tensor) -> Tensor:  # (B, N, H d) → (B, H, N, d)
        return x.reshape(*x.shape[:2], layer.num_heads, -1).transpose(0, 2, 1, 3)

    outputs, projections = seen[id(getattr(layer, outlet(layer)))][0], seen[id(layer.qkv)][1]
    values = projections[..., projections.shape[-1] - outputs.shape[-1] :]
    if weights and id(layer.attn_drop) not in seen:
        raise RuntimeError(f"{type(layer).__name__} computed no attention weights that could be read")
    return Heads(split(values), seen[id(layer.attn_drop)][0] if weights else None, split(outputs))


_lock = threading.Lock()
_held: dict[Attention, tuple[int, bool]] = {}  # how many threads hold a layer on its path of small ops; how it was


@contextmanager
def composed_attention(model: Module) -> Iterator[None]:
    """Inside: the attention layers of ``model`` compute in small ops, where attention weights exist as such.

    The numbers are the same. Threads share the layers: the last one to leave puts each back as it was.

    >>> from minivit.nn import Attention
    >>> layer = Attention(dim=8, num_heads=2)
    >>> with composed_attention(layer):
    ...     layer.fused_attn
    False
    >>> layer.fused_attn
    True
    """
    layers = attention_layers(model)
    with _lock:
        for layer in layers:
            count, fused = _held.get(layer, (0, layer.fused_attn))
            _held[layer] = (count + 1, fused)
            layer.fused_attn = False
    try:
        yield
    finally:
        with _lock:
            for layer in layers:
                count, fused = _held.pop(layer)
                if count > 1:
                    _held[layer] = (count - 1, fused)
                else:
                    layer.fused_attn = fused
