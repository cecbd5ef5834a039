"""The sum of the gradient over workers and ranks: after backward, or while it is still on its way.

Backward begins with the last layer. What it has found for that layer's weights is final long before it comes to the
first, and can be on its way to the other ranks meanwhile:

    backward   │ head, block 11 │ block 10 │ block 9  │ … │ block 0, patches │
    sum                         │ head, 11 │ block 10 │ … │ block 1 │        │ block 0, patches │

So the flat gradient is summed in parts, each as soon as it is final: when the last micro-batch of every worker has been
there (Li et al., "PyTorch Distributed", 2020, arXiv:2006.15704, section 3.2.3). The parts follow one another in the
same order in all ranks, from the end of the network to its start.

A thread does that beside the workers. On one machine the sum takes so little time that nothing is gained. Between
machines a slow network is hidden behind the computing (``benchmarks/overlap.py``), so there this is what ``Layout``
does, unless the gradient is so small that it would be cut into a few parts only.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from minivit.autograd import Parameter, Tensor
from minivit.backend import Array
from minivit.optim.parameters import FlatParameters
from minivit.training.layout import Layout

PART_BYTES = 2**21  # of a part: enough that the network's bandwidth counts, and not its latency
FEW = 4  # parts
Sink = dict[Tensor, Array]  # what ``backward`` adds to


@contextmanager
def summed_up(
    flat: FlatParameters, layout: Layout, size: int, order: Sequence[Parameter] | None = None
) -> Iterator[Callable[[int, slice, Tensor], Sink]]:
    """Inside, the function that says what a worker goes back into from the loss of a piece of ``size`` images.

    Afterwards ``flat.grad`` is the sum over workers and ranks. With ``order``, the Parameters from the network's start
    to its end, it is summed in parts on the way (those that are not among them come last).

    Raises RuntimeError as ``flat.check`` does, and whatever the sum over ranks raises.
    """
    sinks = flat.gradient_sinks(layout.workers, layout.share)
    flat.check()  # a model that was moved by now has its gradients elsewhere
    if order is None or flat.grad.nbytes < FEW * PART_BYTES:
        yield lambda worker, piece, loss: sinks[worker]
        flat.add_up_sinks(layout.workers, layout.share)
        layout.ranks.sum(flat.grad)
        return
    pieces = layout.pieces(size)
    last = pieces[-layout.workers :]  # of each worker that has any
    parts = _Parts(flat, layout, len(last), order)
    thread = threading.Thread(target=parts.sum, name="all-reduce", daemon=True)
    thread.start()
    try:
        yield lambda worker, piece, loss: parts.counting(sinks[worker], loss) if piece in last else sinks[worker]
    except BaseException:
        parts.give_up()  # and do not wait: other ranks may never come
        raise
    thread.join()
    if parts.error:
        raise parts.error


class _Parts:
    """The parts of a gradient, of each how many of its Parameters are not final yet, and who sums those that are."""

    def __init__(self, flat: FlatParameters, layout: Layout, workers: int, order: Sequence[Parameter]):
        place = {parameter: i for i, parameter in enumerate(order)}
        parts = flat.parts(PART_BYTES)
        parts.sort(key=lambda part: min(place.get(parameter, -1) for parameter in part[1]), reverse=True)
        self.flat, self.layout = flat, layout
        self.slices = [part for part, _ in parts]
        self.part_of = {parameter: i for i, (_, parameters) in enumerate(parts) for parameter in parameters}
        self.missing = [workers * len(parameters) for _, parameters in parts]
        self.final = [threading.Event() for _ in parts]
        self.lock = threading.Lock()
        self.given_up = False
        self.error: BaseException | None = None
        if not workers:  # no image for this rank, which the others' sums need all the same
            self.all_final()

    def counting(self, sink: Sink, loss: Tensor) -> Sink:
        """``sink``, which says when the last has arrived that ``loss`` has for a Parameter."""
        due = arrivals(loss)
        for parameter in self.part_of.keys() - due.keys():
            self.is_final(parameter)
        return _Counting(sink, due, self.is_final)

    def is_final(self, parameter: Tensor) -> None:
        """Of one worker."""
        if parameter in self.part_of:
            part = self.part_of[parameter]
            with self.lock:
                self.missing[part] -= 1
                if not self.missing[part]:
                    self.final[part].set()

    def sum(self) -> None:
        """Add up part after part, over workers and then ranks."""
        try:
            for part, final in zip(self.slices, self.final):
                final.wait()
                if self.given_up:
                    return
                self.flat.add_up_sinks(self.layout.workers, whole=part)
                self.layout.ranks.sum(self.flat.grad[part])
        except BaseException as error:
            self.error = error

    def give_up(self) -> None:
        """Let the thread end, if it is not waiting for other ranks."""
        self.given_up = True
        self.all_final()

    def all_final(self) -> None:
        for final in self.final:
            final.set()


class _Counting(dict):
    """A sink that counts what arrives at each leaf, and calls ``is_final`` with it after the last."""

    def __init__(self, sink: Sink, due: Counter, is_final: Callable[[Tensor], None]):
        super().__init__(sink)
        self.due, self.is_final = due, is_final

    def __setitem__(self, leaf: Tensor, total: Array) -> None:
        super().__setitem__(leaf, total)
        self.due[leaf] -= 1
        if not self.due[leaf]:
            self.is_final(leaf)


def arrivals(loss: Tensor) -> Counter:
    """How many cotangents ``loss.backward()`` will bring to each leaf: one for each use.

    >>> w, x = Parameter([1.0]), Parameter([2.0])
    >>> arrivals(w * w + w * x)[w]
    3
    """
    found, seen, waiting = Counter(), set(), [loss.node or loss]
    while waiting:
        node = waiting.pop()
        for x in node.parents if not isinstance(node, Tensor) else ():
            if isinstance(x, Tensor):
                found[x] += 1
            elif x is not None and x.birth not in seen:
                seen.add(x.birth)
                waiting.append(x)
    return found
