"""What does a training step keep in memory, and which op keeps it?

Nodes hold no data: what lives from forward to backward is what the pullbacks mention (see ``autograd.py``). A pullback
is a closure, and Python shows what a closure holds, so the list can be read off the graph:

    loss.node ──parents──▶ all nodes ──pullback.__closure__──▶ arrays, under their names in the code of the op

Arrays may be views of one buffer, as q, k and v are of qkv. It is the buffer that takes memory, and it is counted where
it is met first in the order of computation.
"""

import functools
import re
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np

from minivit.autograd import Node, Tensor
from minivit.backend import Array
from minivit.nn import Module, observe


@dataclass(frozen=True)
class Kept:
    """An array that a pullback keeps.

    ``name`` is that of the variable; ``bytes`` the size of the buffer, 0 where an earlier row has counted it. ``kind``
    is "activation", or else "parameter" or "input", which are in memory in any case.
    """

    layer: str
    op: str
    name: str
    shape: tuple[int, ...]
    bytes: int
    kind: str

    @property
    def block(self) -> str:
        """The layer's name up to its number, ``blocks.3`` of ``blocks.3.attn.qkv``, or its first part."""
        return re.match(r".*?\.\d+|[^.]*", self.layer).group()


@dataclass(frozen=True)
class MemoryReport:
    """All that is kept, in the order of computation, and what ``tracemalloc`` saw of the same step, in bytes.

    ``traced``: the arrays that were made on the way forward and are there at its end. ``peak``: the most that forward
    and backward needed above what was there before, with gradients and Python's own objects.
    """

    rows: list[Kept]
    traced: int
    peak: int

    @property
    def activations(self) -> list[Kept]:
        """The rows that are no parameters and no inputs."""
        return [row for row in self.rows if row.kind == "activation"]

    @property
    def kept(self) -> int:
        """Bytes of all activations."""
        return sum(row.bytes for row in self.activations)

    def totals(self, *by: str) -> dict:
        """Bytes of activations by "op", "block", "layer" or "name", or by several of these, as ``("block", "op")``."""
        totals: dict = {}
        for row in self.activations:
            key = tuple(getattr(row, name) for name in by)
            key = key[0] if len(by) == 1 else key
            totals[key] = totals.get(key, 0) + row.bytes
        return totals

    def __str__(self) -> str:
        lines = [("layer", "op", "variable", "shape", "bytes")]
        for row in self.activations:
            lines.append((row.layer, row.op, row.name, str(row.shape), f"{row.bytes:,}" if row.bytes else "(above)"))
        widths = [max(map(len, column)) for column in zip(*lines)]
        aligned = [(*map(str.ljust, line[:3], widths), *map(str.rjust, line[3:], widths[3:])) for line in lines]
        return "\n".join("  ".join(line) for line in aligned)


def training_memory(model: Module, loss_fn: Callable[[Tensor], Tensor], *inputs: Any) -> MemoryReport:
    """Run ``loss_fn(model(*inputs))`` forward and backward once; report what its graph keeps in between.

    No ``.grad`` is touched. For arrays on the CPU: ``tracemalloc`` sees no others.

    >>> from minivit.nn import Mlp
    >>> report = training_memory(Mlp(2, 8, act="relu"), ops.sum, np.ones((4, 2), np.float32))
    >>> report.totals("layer")  # relu's output, (4, 8) in float32, which fc2 needs too
    {'(model)': 128, 'fc2': 0}
    """
    with _tracing(), naming_layers(model) as layers:
        arrays, start = _traced_arrays(), tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        loss = loss_fn(model(*inputs))
        peak = tracemalloc.get_traced_memory()[1]
        traced = _traced_arrays() - arrays
        rows = graph_memory(loss, layers, model, inputs)
        tracemalloc.reset_peak()  # the report's own objects do not count
        loss.backward(into={})
        peak = max(peak, tracemalloc.get_traced_memory()[1])
    return MemoryReport(rows, traced, peak - start)


@contextmanager
def naming_layers(model: Module) -> Iterator[dict[Node, str]]:
    """Inside: a dict fills with the name of the layer of ``model`` that recorded each node.

    A layer's nodes are those between its inputs and its output. The parts of a layer end before it does, so they have
    named theirs when it is the layer's turn.
    """
    names = {id(module): name for name, module in model.named_modules()}
    layers: dict[Node, str] = {}

    def name_nodes(module: Module, inputs: tuple, output: Any) -> None:
        if id(module) in names and isinstance(output, Tensor):
            ends = {x.node for x in inputs if isinstance(x, Tensor)}
            for node in _history(output.node, ends):
                layers.setdefault(node, names[id(module)] or "(model)")

    with observe(name_nodes):
        yield layers


def graph_memory(y: Tensor, layers: dict[Node, str], model: Module, inputs: Sequence[Any] = ()) -> list[Kept]:
    """All that the graph of y keeps; ``layers`` from ``naming_layers``, ``inputs`` what the model was given."""
    names = {id(module): name for name, module in model.named_modules()}
    kinds = {id(_buffer(p.data)): "parameter" for p in model.parameters()}
    kinds |= {id(_buffer(x)): "input" for x in map(_array, inputs) if x is not None}
    rows, counted = [], set()
    for node in sorted(_history(y.node), key=lambda node: node.birth):
        contents = list(_contents(node.pullback))
        layer = layers.get(node, "(loss)")
        for _, thing in contents:
            if isinstance(thing, Module):  # the layer of a checkpoint, which ran where nothing was recorded
                layer = names.get(id(thing), layer)
        seen = set()
        for name, thing in contents:
            array = _array(thing)
            if array is not None and id(array) not in seen:  # two functions of one pullback may hold the same array
                seen.add(id(array))
                buffer = _buffer(array)
                size = 0 if id(buffer) in counted else buffer.nbytes
                counted.add(id(buffer))
                rows.append(Kept(layer, node.op, name, array.shape, size, kinds.get(id(buffer), "activation")))
    return rows


def _history(node: Node | Tensor | None, ends: set | frozenset = frozenset()) -> set[Node]:
    """The node and all nodes before it, as far as ``ends``."""
    found, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Node) and node not in ends and node not in found:
            found.add(node)
            waiting.extend(node.parents)
    return found


def _contents(thing: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, thing) for whatever a function holds in its closure, through functions, tuples, lists and dicts."""
    if isinstance(thing, FunctionType):
        for variable, cell in zip(thing.__code__.co_freevars, thing.__closure__ or ()):
            if cell.cell_contents is not thing:
                yield from _contents(cell.cell_contents, f"{name}.{variable}".lstrip("."))
    elif isinstance(thing, functools.partial):
        yield from _contents([thing.func, *thing.args, thing.keywords], name)
    elif isinstance(thing, dict):
        for key, entry in thing.items():
            yield from _contents(entry, f"{name}.{key}")
    elif isinstance(thing, (list, tuple)):
        for i, entry in enumerate(thing):
            yield from _contents(entry, f"{name}.{i}" if len(thing) > 1 else name)
    else:
        yield name, thing


def _array(thing: Any) -> Array | None:
    thing = thing.data if isinstance(thing, Tensor) else thing
    return thing if hasattr(thing, "strides") and not isinstance(thing, np.generic) else None


def _buffer(array: Array) -> Array:
    """The array that owns the memory which this one looks at."""
    while _array(array.base) is not None:
        array = array.base
    return array


@contextmanager
def _tracing() -> Iterator[None]:
    """Inside: ``tracemalloc`` is on. After: as it was."""
    was_on = tracemalloc.is_tracing()
    if not was_on:
        tracemalloc.start()
    try:
        yield
    finally:
        if not was_on:
            tracemalloc.stop()


def _traced_arrays() -> int:
    """Bytes of all NumPy arrays made since tracing began."""
    numpy_alone = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([numpy_alone]).traces)
