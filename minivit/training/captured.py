"""``train_step`` as a CUDA graph: for networks whose kernels are so short that the GPU waits for Python."""

import math
from typing import Any, NamedTuple

import numpy as np

from minivit.backend import Array, array_module, implementation
from minivit.cuda.capture import Captured
from minivit.data.loader import Batch
from minivit.nn import Module, check_device, on_device_of
from minivit.objective import Objective
from minivit.optim import Optimizer, norm_and_scale
from minivit.random import keyed_by, layer_key
from minivit.training.layout import Layout
from minivit.training.step import NonFiniteLoss, StepResult, buffers_of, count_of, forward_and_backward, train_step


class _Unread(NamedTuple):
    """A step whose numbers have not been looked at yet."""

    batch: Batch
    step: int
    steps: int  # of the optimizer, before it
    seen: Array  # (3,) loss, correct (see ``seen_of``), norm of the gradient
    done: Any  # an event in the stream


class CapturedStep:
    """Steps like those of ``train_step``, recorded at the first call and launched at each. Results come a step late.

    ``step(batch, number)`` gives the ``StepResult`` of the call before, None the first time, and ``finish()`` that of
    the last call. So Python prepares a step while the GPU is at work on the one before. The weights stay as they were
    before a failing step all the same: where a loss or a gradient is not finite, the GPU makes no step, nor any after
    it, until that has been looked at.

    The model's mode (training), the precision in force and the shapes are those of the first call. Learning rates,
    weight decay and the other options of ``optimizer.param_groups`` may change between calls.

    Raises NonFiniteLoss, a call late; ValueError for a batch of another shape than the first (make a ``Loader`` with
    ``drop_last=True``), and for a model on the CPU; TypeError for a batch on another device than the model.

    >>> step = CapturedStep(model, Classification(), optimizer, seed=0, max_norm=1.0)           # doctest: +SKIP
    >>> results = [step(batch, number) for number, batch in enumerate(loader.epoch(0))]         # doctest: +SKIP
    >>> results = [*results[1:], step.finish()]                                                 # doctest: +SKIP
    """

    def __init__(
        self,
        model: Module,
        objective: Objective,
        optimizer: Optimizer,
        seed: int,
        layout: Layout | None = None,
        max_norm: float | None = None,
    ):
        if model.device == "cpu":
            raise ValueError("a CUDA graph is recorded on a GPU: call model.to('cuda') before making the optimizer")
        self.model, self.objective, self.optimizer, self.seed = model, objective, optimizer, seed
        self.layout = layout or Layout()
        self.max_norm = math.inf if max_norm is None else max_norm
        self._buffers = [buffer.data for buffer in buffers_of(model, objective)]
        self._xp = array_module(optimizer.flat.data)
        self._graph: Captured | None = None
        self._unread: _Unread | None = None
        with on_device_of(model):
            self._keys = self._xp.zeros((0, 2), "uint32")  # a row for each layer that draws
            self._going = self._xp.ones((), "float32")  # 0 after a step that failed
            self._reader = self._xp.cuda.Stream(non_blocking=True)

    def __call__(self, batch: Batch, step: int) -> StepResult | None:
        check_device(self.model, images=batch.images, labels=batch.labels, samples=batch.samples)
        with on_device_of(self.model):
            if self._graph is None:
                self._record(batch)
            self._fill(batch, step)
            steps = self.optimizer.steps
            self.optimizer.prepare()
            seen = self._graph().copy()  # the graph's own will be written to again
            unread = _Unread(batch, step, steps, seen, self._xp.cuda.get_current_stream().record())
            return self._read(unread)

    def finish(self) -> StepResult | None:
        """The result of the last call; None where it has been read. Call it before saving or evaluating."""
        with on_device_of(self.model):
            return self._read(None)

    def _record(self, batch: Batch) -> None:
        self._batch = Batch(*(array.copy() for array in batch[:3]), batch.total)
        optimizer, steps = self.optimizer, self.optimizer.steps
        optimizer.prepare()  # numbers for the warm-up
        try:
            kept = [optimizer.flat.data, *optimizer.state.values(), *self._buffers, self._going]
            self._graph = Captured(self._step, kept=kept)
        finally:
            optimizer.steps = steps

    def _step(self) -> Array:
        """What is recorded: a step of the batch, keys and numbers that lie in memory."""
        xp, ranks = self._xp, self.layout.ranks
        before = [buffer.copy() for buffer in self._buffers]
        with keyed_by(self._key):
            arguments = self.model, self.objective, self._batch, self.optimizer
            seen = forward_and_backward(*arguments, self.seed, 0, self.layout).sum(0)
        ranks.sum(seen)
        gradient = self.optimizer.flat.grad
        norm, scale = implementation(norm_and_scale, gradient)(gradient, self.max_norm)
        self._going *= xp.isfinite(seen[0]) & (scale > 0)
        self.optimizer.apply(scale * self._going)
        for buffer, old in zip(self._buffers, before):
            buffer[...] = xp.where(self._going > 0, buffer, old)
        return xp.append(seen, norm)

    def _key(self, n: int) -> Array:
        """Row n of the keys. How many there are is found out in the warm-up."""
        if n >= len(self._keys):
            self._keys = self._xp.zeros((n + 1, 2), "uint32")
        return self._keys[n]

    def _fill(self, batch: Batch, step: int) -> None:
        for name, own, given in zip(batch._fields, self._batch[:3], batch[:3]):
            if (own.shape, own.dtype) != (given.shape, given.dtype):
                raise ValueError(
                    f"the step was recorded with {name} of shape {own.shape} and {own.dtype}, got {given.shape} and "
                    f"{given.dtype}: make a Loader with drop_last=True, and steps of other shapes with train_step"
                )
            own[...] = given
        if batch.total != self._batch.total:
            raise ValueError(f"the step was recorded with a total of {self._batch.total} images, got {batch.total}")
        if len(self._keys):
            self._keys.set(np.array([layer_key(self.seed, step, n) for n in range(len(self._keys))], np.uint32))

    def _read(self, following: _Unread | None) -> StepResult | None:
        unread, self._unread = self._unread, following
        if unread is None:
            return None
        self._reader.wait_event(unread.done)  # in a stream of its own: reading does not wait for the step after it
        loss, correct, norm = unread.seen.get(stream=self._reader).tolist()
        if not math.isfinite(loss + norm):
            self._fail(unread)
        return StepResult(loss, count_of(correct), norm)

    def _fail(self, unread: _Unread) -> None:
        """The failing step once more, op by op, which finds out what the first was to be not finite."""
        self._unread = None  # the step after it was not made
        self._going[...] = 1
        self.optimizer.steps = unread.steps
        batch, step, layout = unread.batch, unread.step, self.layout
        bound = None if self.max_norm == math.inf else self.max_norm
        result = train_step(self.model, self.objective, batch, self.optimizer, self.seed, step, layout, bound)
        raise NonFiniteLoss(f"step {step} was not finite as a CUDA graph; made op by op it gave {result}", "the graph")
