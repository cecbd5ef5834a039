"""Flat parameters: all weights side by side in one array, all gradients in another.

An optimizer does the same arithmetic to every number that it trains; which layer a number belongs to matters to the
forward and backward passes only. So the numbers lie in one array, and each Parameter keeps a window into it:

    data   │ fc1.weight ░│ fc2.weight │ fc1.bias ░│ fc2.bias ░│      Parameter.data and .grad are views
    grad   │ fc1.weight ░│ fc2.weight │ fc1.bias ░│ fc2.bias ░│      ░ zeros up to the next 64 bytes
            ╰─ group 0: weight decay ─╯╰─ group 1: none ──────╯

A step of AdamW, the norm of the gradient, an average of the weights, a sum over machines: each is one pass over an
array, and everything is written in place.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minivit.autograd import Parameter
from minivit.backend import Array, array_module, cache_blocks, device_of, to_device

ALIGNMENT = 16  # elements: in float32 64 bytes, where vector loads and the matrix products of a GPU are fastest
BLOCK_BYTES = 2**17  # of each of the five arrays of an update, which stay in the cache from one ufunc to the next
BEFORE_THE_BLOCKS = frozenset(
    {"patch_embed", "pos_embed", "cls_token", "dist_token", "reg_token", "mask_token", "norm_pre"}
)
NO_DECAY = frozenset(
    {
        "pos_embed", "cls_token", "dist_token", "reg_token",
        "relative_position_bias_table", "relative_attention_bias", "relative_keys", "relative_values", "freqs",
    }
)  # fmt: skip

Groups = Iterable[Parameter] | Iterable[tuple[str, Parameter]] | Iterable[Mapping[str, Any]]


Share = Callable[[Callable[[Any], object], Iterable[Any]], None]  # a function, and what it is to be called with


def one_by_one(function: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Call ``function`` with each item in turn, where threads could have shared them: see ``Layout.share``."""
    for item in items:
        function(item)


class FlatParameters:
    """Lays Parameters and their gradients out in two flat arrays, ``data`` and ``grad``, in groups.

    ``groups``: Parameters, (name, Parameter) pairs as ``model.named_parameters()`` gives them, or dicts with these
    under "params" and whatever options belong to the group. A group is a slice of the arrays (under "slice" in
    ``self.groups``). A Parameter that is shared between layers is laid out once; one that does not require a gradient
    is left out.

    Raises ValueError where there is nothing to train, for a Parameter in two groups and for two of one name, TypeError
    for what is no Parameter and for mixed devices or dtypes.

    >>> weight, bias = Parameter([[1.0, 2.0]]), Parameter([3.0])
    >>> flat = FlatParameters([("weight", weight), ("bias", bias)])
    >>> flat.data[:] = 5.0
    >>> weight.data, bias.data
    (array([[5., 5.]], dtype=float32), array([5.], dtype=float32))
    """

    def __init__(self, groups: Groups):
        listed = _listed(groups)
        named = [pair for pairs, _ in listed for pair in pairs]
        _check_alike(named)
        self._slices: dict[str, slice] = {}
        self.groups: list[dict[str, Any]] = []
        end = 0
        for pairs, options in listed:
            start = end
            for name, parameter in pairs:
                self._slices[name] = slice(end, end + parameter.size)
                end += -(-parameter.size // ALIGNMENT) * ALIGNMENT
            self.groups.append({**options, "params": [name for name, _ in pairs], "slice": slice(start, end)})
        xp = array_module(named[0][1].data)
        self.parameters: dict[str, Parameter] = dict(named)
        self.data: Array = xp.zeros(end, dtype=named[0][1].dtype)
        self.grad: Array = xp.zeros_like(self.data)
        self._more_grads: list[Array] = []  # of other threads
        self._data_views, self._grad_views = self.views(self.data), self.views(self.grad)
        for name, parameter in named:
            self._data_views[name][...] = parameter.data
            parameter.data = self._data_views[name]
        self.zero_grad()

    def views(self, buffer: Array) -> dict[str, Array]:
        """The part of each Parameter, in its shape, of an array that is laid out like ``data``."""
        return {name: buffer[self._slices[name]].reshape(p.shape) for name, p in self.parameters.items()}

    def blocks(self, whole: slice | None = None) -> Iterator[slice]:
        """Consecutive pieces of ``whole`` (default: everything): cache-sized on the CPU, in one on the GPU."""
        whole = whole or slice(0, self.data.size)
        for block in cache_blocks(self.data[whole], BLOCK_BYTES):
            yield slice(whole.start + block.start, whole.start + block.stop)

    def parts(self, least: int) -> list[tuple[slice, list[Parameter]]]:
        """Slices of at least ``least`` bytes (the last of a group: what is left) that cut through no Parameter."""
        parts: list[tuple[slice, list[Parameter]]] = []
        for group in self.groups:
            start = group["slice"].start
            for name in group["params"]:
                if self._slices[name].start == start:
                    parts.append((slice(start, start), []))
                part, parameters = parts[-1]
                end = part.start + -(-(self._slices[name].stop - part.start) // ALIGNMENT) * ALIGNMENT
                parts[-1] = slice(part.start, end), [*parameters, self.parameters[name]]
                if (end - part.start) * self.data.itemsize >= least:
                    start = end
        return parts

    def zero_grad(self) -> None:
        """Set every gradient to zero, ready for ``backward`` to add to."""
        self.grad[...] = 0
        self._point_to_grad()

    def _point_to_grad(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.grad = self._grad_views[name]

    def gradient_sinks(self, count: int, share: Share = one_by_one) -> list[dict[Parameter, Array]]:
        """For each of ``count`` threads what ``backward(into=…)`` adds to: zeros, the first of them ``grad`` itself."""
        while len(self._more_grads) < count - 1:
            self._more_grads.append(array_module(self.grad).empty_like(self.grad))
        share(lambda buffer: buffer.fill(0), [self.grad, *self._more_grads[: count - 1]])
        self._point_to_grad()
        sinks = []
        for buffer in [self.grad, *self._more_grads[: count - 1]]:
            views = self._grad_views if buffer is self.grad else self.views(buffer)
            sinks.append({self.parameters[name]: view for name, view in views.items()})
        return sinks

    def add_up_sinks(self, count: int, share: Share = one_by_one, whole: slice | None = None) -> None:
        """Add the other threads' gradients to ``grad``, or to a slice of it, always in the same order."""

        def add_up(block: slice) -> None:
            for buffer in self._more_grads[: count - 1]:
                self.grad[block] += buffer[block]

        share(add_up, self.blocks(whole))

    def check(self) -> None:
        """Raise RuntimeError with the first Parameter whose data or gradient no longer is a view of the flat arrays."""
        for name, parameter in self.parameters.items():
            if parameter.data is not self._data_views[name]:
                raise RuntimeError(
                    f"the data of {name} was replaced after it was laid out flat, and would not be trained: call "
                    "model.to() and model.astype() before making the optimizer, and write weights in place"
                )
            if parameter.grad is not self._grad_views[name]:
                raise RuntimeError(
                    f"the gradient of {name} was replaced after it was laid out flat, and would not be seen: "
                    "clear gradients with optimizer.zero_grad(), not with model.zero_grad()"
                )

    def export(self, buffer: Array) -> dict[str, np.ndarray]:
        """A copy, on the host and by name, of an array that is laid out like ``data``."""
        return {name: np.array(to_device(view, "cpu")) for name, view in self.views(buffer).items()}

    def load(self, buffer: Array, arrays: Mapping[str, np.ndarray], what: str) -> None:
        """Copy what ``export`` gave into ``buffer``. Raises ValueError, naming it ``what``, if it does not fit."""
        if lonely := self.parameters.keys() ^ arrays.keys():
            raise ValueError(f"{what} is for other parameters: {min(lonely)} is on one side only")
        for name, view in self.views(buffer).items():
            if arrays[name].shape != view.shape:
                raise ValueError(f"{what} of {name} has shape {arrays[name].shape}, the parameter {view.shape}")
        for name, view in self.views(buffer).items():
            view[...] = to_device(np.asarray(arrays[name], view.dtype), device_of(buffer))


def weight_decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: what weight decay shrinks, and what it does not.

    Decay is for matrices. Left out are vectors (biases, the gains of norms) and, as in timm, the class, distillation
    and register tokens and all tables of positions, whose length means something. ``model`` has ``named_parameters()``.

    >>> class Model:
    ...     def named_parameters(self):
    ...         matrix, vector, table = Parameter([[1.0]]), Parameter([1.0]), Parameter([[1.0]])
    ...         return [("fc.weight", matrix), ("fc.bias", vector), ("pos_embed", table)]
    >>> [([name for name, _ in g["params"]], g["weight_decay"]) for g in weight_decay_groups(Model(), 0.05)]
    [(['fc.weight'], 0.05), (['fc.bias', 'pos_embed'], 0.0)]
    """

    def decays(name: str, parameter: Parameter) -> bool:
        last = name.rpartition(".")[2]
        return parameter.ndim > 1 and last != "bias" and last not in NO_DECAY

    named = list(model.named_parameters())
    groups = [
        {"params": [pair for pair in named if decays(*pair)], "weight_decay": weight_decay},
        {"params": [pair for pair in named if not decays(*pair)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def layer_decay_groups(model: Any, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Groups for fine-tuning: the nearer a layer is to the images, the smaller its learning rate.

    In a network of L blocks, each layer l has a rate of lr · d^(L + 1 − l), with d = ``layer_decay``:

        l = 0         patches, positions, class, register and mask tokens
        l = i + 1     block i = 0 … L − 1
        l = L + 1     what is left: the last norm, and the head, which alone starts from nothing; its rate is lr

    What early layers see in images serves any task, and should move little. (Clark et al., "ELECTRA", 2020,
    arXiv:2003.10555; BEiT and MAE fine-tune with d = 0.65 to 0.75.) In each layer the parameters are split as
    ``weight_decay_groups`` does. ``model`` has ``named_parameters()``, with names as in timm. The rates reach the
    groups as ``lr_scale``, when ``optimizer.lr`` is set, as a schedule does before each step.

    Raises ValueError for a ``layer_decay`` outside (0, 1], and for a model without blocks.

    >>> class Model:
    ...     def named_parameters(self):
    ...         names = ["cls_token", "blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight", "head.weight"]
    ...         return [(name, Parameter([[1.0]])) for name in names]
    >>> for group in layer_decay_groups(Model(), 0.05, layer_decay=0.5):
    ...     print([name for name, _ in group["params"]], group["weight_decay"], group["lr_scale"])
    ['cls_token'] 0.0 0.125
    ['blocks.0.mlp.fc1.weight'] 0.05 0.25
    ['blocks.1.mlp.fc1.weight'] 0.05 0.5
    ['head.weight'] 0.05 1.0
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay}")
    depth = len({name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("blocks.")})
    if not depth:
        raise ValueError(
            f"layer_decay is for a model with blocks, but no parameter of {type(model).__name__} is in one"
        )

    def layer(name: str) -> int:
        first, *rest = name.split(".")
        if first in BEFORE_THE_BLOCKS:
            return 0
        return int(rest[0]) + 1 if first == "blocks" else depth + 1

    layers: dict[tuple[int, float], dict[str, Any]] = {}
    for group in weight_decay_groups(model, weight_decay):
        for name, parameter in group["params"]:
            key = layer(name), group["weight_decay"]
            scale = layer_decay ** (depth + 1 - key[0])
            layers.setdefault(key, {"params": [], "weight_decay": key[1], "lr_scale": scale})
            layers[key]["params"].append((name, parameter))
    return [layers[key] for key in sorted(layers)]


def _listed(groups: Groups) -> list[tuple[list[tuple[str, Parameter]], dict[str, Any]]]:
    """Each group as its (name, Parameter) pairs, every Parameter once, and its options."""
    groups = list(groups)
    if not groups or not isinstance(groups[0], Mapping):
        groups = [{"params": groups}]
    owner: dict[int, int] = {}  # of each Parameter its group
    names: set[str] = set()
    listed = []
    for number, group in enumerate(groups):
        pairs = []
        for entry in group["params"]:
            name, parameter = entry if isinstance(entry, tuple) else (str(len(names)), entry)
            if not isinstance(parameter, Parameter):
                raise TypeError(f"an optimizer trains Parameters, got {type(parameter).__name__} in group {number}")
            if owner.get(id(parameter), number) != number:
                raise ValueError(f"the parameter {name} is in group {owner[id(parameter)]} and in group {number}")
            if id(parameter) in owner or not parameter.requires_grad:
                continue
            if name in names:
                raise ValueError(f"two parameters are named {name}: give each a name of its own")
            owner[id(parameter)] = number
            names.add(name)
            pairs.append((name, parameter))
        listed.append((pairs, {key: value for key, value in group.items() if key != "params"}))
    if not owner:
        raise ValueError("there is nothing to train: no parameter with requires_grad was given")
    return listed


def _check_alike(named: list[tuple[str, Parameter]]) -> None:
    first_name, first = named[0]
    for name, parameter in named:
        if (parameter.device, parameter.dtype) != (first.device, first.dtype):
            raise TypeError(
                f"parameters must share one device and one dtype to lie in one array, but {first_name} is "
                f"{first.dtype} on {first.device} and {name} is {parameter.dtype} on {parameter.device}"
            )
