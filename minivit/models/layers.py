"""The layers of a network by name, and what each of them gives, read while the network runs.

Names are those of ``named_modules``: ``patch_embed``, ``blocks.3``, ``blocks.3.attn``, ``layer2.1``, ``norm``. Two
states of a network are no module's output, so they have names of their own:

    embedding   what the first block is given: tokens with their positions, or what a CNN's stem makes of an image
    pooled      what the classifier, ``head_dist``, ``head`` or ``fc``, is given
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minivit.nn import Identity, Module, observe

EMBEDDING, POOLED = "embedding", "pooled"
CLASSIFIERS = ("head_dist", "head", "fc")  # in order of preference


def layers_of(model: Module) -> list[str]:
    """The states of a network on its way from the image to the classifier, by name, in their order.

    The embedding, what each block gives, and what the last norm gives, or what the classifier is given where no norm
    comes before pooling. Blocks are those of ``model.blocks`` (a Transformer) or of ``model.stages`` (a ResNet). Raises
    ValueError for a network without: its layers can be named one by one.

    >>> from minivit.models import create_model
    >>> layers_of(create_model("vit_nano_patch7_28"))
    ['embedding', 'blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'norm']
    >>> layers_of(create_model("resnet8"))
    ['embedding', 'layer1.0', 'layer2.0', 'layer3.0', 'pooled']
    """
    if not (blocks := _blocks(model)):
        raise ValueError(
            f"{type(model).__name__} has neither blocks nor stages, so its layers must be named one by one"
        )
    normalised = not isinstance(getattr(model, "norm", Identity()), Identity)
    return [EMBEDDING, *blocks, "norm" if normalised else POOLED]


def find_layers(model: Module, layers: Sequence[str]) -> dict[str, Module]:
    """Each of ``layers`` with its module; with "embedding" and "pooled" the module that is given it.

    Raises ValueError for a layer that is not there, with names that are near, and for none; TypeError for one string.

    >>> from minivit.models import create_model
    >>> find_layers(create_model("vit_nano_patch7_28"), ["block.3"])
    Traceback (most recent call last):
    ValueError: VisionTransformer has no layer 'block.3'; perhaps blocks.3, ...
    """
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of names, got the string {layers!r}: write [{layers!r}]")
    if not layers:
        raise ValueError("layers must be the names of one layer or more, got none")
    modules = dict(model.named_modules())
    given = {EMBEDDING: _blocks(model), POOLED: [name for name in CLASSIFIERS if name in modules]}
    named = modules | {state: modules[parts[0]] for state, parts in given.items() if parts}
    for layer in layers:
        if layer not in named:
            near = difflib.get_close_matches(layer, named) or [name for name in modules if name and "." not in name]
            hint = f"; perhaps {', '.join(near)}" if near else ""
            raise ValueError(f"{type(model).__name__} has no layer {layer!r}{hint}")
    return {layer: named[layer] for layer in layers}


@contextmanager
def observe_layers(model: Module, layers: Sequence[str], look: Callable[[str, Any], None]) -> Iterator[None]:
    """Inside: ``look(layer, x)`` is called when this thread has run one of ``layers`` of ``model``, and it gave x.

    Raises ValueError for a layer that is not there; on leaving, for one that has not run.

    >>> from minivit.models import create_model
    >>> model = create_model("vit_nano_patch7_28")
    >>> with observe_layers(model, ["embedding", "pooled"], lambda layer, x: print(layer, x.shape)):
    ...     y = model(np.zeros((2, 1, 28, 28), np.float32))
    embedding (2, 17, 64)
    pooled (2, 64)
    """
    wanted, seen = find_layers(model, layers), set()

    def keep(module: Module, inputs: tuple, output: Any) -> None:
        for layer, part in wanted.items():
            if part is module:
                seen.add(layer)
                look(layer, inputs[0] if layer in (EMBEDDING, POOLED) else output)

    with observe(keep):
        yield
    if unseen := [layer for layer in wanted if layer not in seen]:
        raise ValueError(f"{type(model).__name__} did not run its layer {unseen[0]!r}: nothing could be read")


def _blocks(model: Module) -> list[str]:
    """The names of the blocks, from first to last."""
    lists = ["blocks"] if hasattr(model, "blocks") else getattr(model, "stages", [])
    return [f"{name}.{i}" for name in lists for i in range(len(getattr(model, name)))]
