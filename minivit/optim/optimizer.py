"""What all optimizers share: flat parameters, groups with options, state that can be saved.

A step has two parts. What changes from step to step, rates and corrections, is a handful of numbers that Python works
out; the arithmetic on the parameters is a formula that reads these numbers. On a GPU they lie in its memory, so that
the kernels of a step, once recorded as a CUDA graph, step with the numbers of each time.
"""

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minivit.backend import Array, array_module, implementation
from minivit.optim.parameters import FlatParameters, Groups, Share, one_by_one


class Optimizer:
    """Base of the optimizers. A subclass names its state arrays, its ``formula``, and the ``numbers`` that it reads.

    The formula steps one block: ``formula(numbers, scale, p, g, *state, scratch)`` changes p (n,) and its state in
    place, along the gradient g (n,); ``scratch`` (n,) may be overwritten, or is None.

    ``param_groups`` is a list of dicts with the options of each group (``lr``, ``weight_decay``, …), free to be
    changed between steps. Setting ``optimizer.lr`` sets the learning rate of every group, times its ``lr_scale``
    (default 1), which is how a schedule and layer-wise rates go together.

    Raises ValueError for options that the optimizer does not have, and for negative ones.
    """

    state_names: tuple[str, ...] = ()
    formula: Callable

    def __init__(self, params: Groups, **defaults: Any):
        self.flat = FlatParameters(params)
        self.param_groups = [
            {**defaults, "lr": defaults["lr"] * group.get("lr_scale", 1.0), "lr_scale": 1.0, **group}
            for group in self.flat.groups
        ]
        for group in self.param_groups:
            self._check_options(group, {*defaults, "lr_scale", "params", "slice"})
        self.steps = 0
        self.state = {name: array_module(self.flat.data).zeros_like(self.flat.data) for name in self.state_names}
        self._lr = defaults["lr"]
        self._numbers: Array | None = None  # (groups, numbers of the formula), where the parameters lie
        self._thread = threading.local()  # with the scratch memory of each thread

    @property
    def lr(self) -> float:
        """The learning rate, before the groups' ``lr_scale``."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr = lr
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def zero_grad(self) -> None:
        """Set all gradients to zero. Without it, gradients of several batches add up."""
        self.flat.zero_grad()

    def step(self, share: Share = one_by_one) -> None:
        """Change the parameters, in place, by one step along their gradients. The gradients stay as they are.

        ``share``: how the blocks of the flat arrays are worked through, by default one after another.
        Raises RuntimeError where a Parameter is no longer laid out flat.
        """
        self.prepare()
        self.apply(share=share)

    def prepare(self) -> None:
        """The part of a step that is Python's: count it, and put its numbers where ``apply`` reads them."""
        self.flat.check()
        self.steps += 1
        values = [self.numbers(group) for group in self.param_groups]
        if self._numbers is None:
            xp = array_module(self.flat.data)
            self._numbers = xp.empty((len(values), len(values[0])), self.flat.data.dtype)
        implementation(write, self._numbers)(self._numbers, values)

    def apply(self, scale: Array | None = None, share: Share = one_by_one) -> None:
        """The part of a step that is arithmetic, with the numbers of the last ``prepare``. On a GPU nothing is read.

        ``scale``, a number on the GPU (see ``norm_and_scale``): the step goes along scale · g; where it is 0, nothing
        changes, whatever g is.
        """
        flat = self.flat
        formula = implementation(self.formula, flat.data)

        def apply_to(part: tuple[Array, slice]) -> None:
            numbers, block = part
            arrays = [array[block] for array in (flat.data, flat.grad, *self.state.values())]
            formula(numbers, scale, *arrays, self._scratch_for(arrays[0]))

        groups = zip(self.param_groups, self._numbers)
        share(apply_to, [(numbers, block) for group, numbers in groups for block in flat.blocks(group["slice"])])

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        """What the formula reads in step ``self.steps``, for a group with these options."""
        raise NotImplementedError(f"{type(self).__name__} has no numbers()")

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of what the next step depends on besides parameters and options: "step", "exp_avg/head.weight", …"""
        arrays = {"step": np.array(self.steps)}
        for state_name, buffer in self.state.items():
            arrays |= {f"{state_name}/{name}": array for name, array in self.flat.export(buffer).items()}
        return arrays

    def load_state_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up what ``state_dict`` gave. Raises ValueError where it is another optimizer's, or another model's."""
        found = {key.partition("/")[0] for key in arrays}
        if found != {"step", *self.state}:
            raise ValueError(
                f"this is not the state of {type(self).__name__}, which keeps {sorted({'step', *self.state})}: "
                f"found {sorted(found)}"
            )
        for state_name, buffer in self.state.items():
            prefix = f"{state_name}/"
            own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            self.flat.load(buffer, own, what=state_name)
        self.steps = int(arrays["step"])

    def _scratch_for(self, p: Array) -> Array | None:
        """On a CPU the same memory for all blocks, which stays in the cache; a GPU's pool has some for who needs it."""
        if not isinstance(p, np.ndarray):
            return None
        scratch = getattr(self._thread, "scratch", None)
        if scratch is None or scratch.size < p.size:
            scratch = self._thread.scratch = np.empty_like(p)
        return scratch[: p.size]

    def _check_options(self, group: Mapping[str, Any], known: set[str]) -> None:
        if unknown := group.keys() - known:
            raise ValueError(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}")
        for name in ("lr", "lr_scale", "weight_decay"):
            if not (group[name] >= 0 and math.isfinite(group[name])):
                raise ValueError(f"{name} must be a finite number of at least 0, got {group[name]}")
        for name in ("momentum", "betas"):
            if not all(0 <= value < 1 for value in np.atleast_1d(group.get(name, 0.0))):
                raise ValueError(f"{name} must lie in [0, 1), got {group[name]}")
        if not group.get("eps", 1.0) > 0:
            raise ValueError(f"eps must be above 0, or a gradient of 0 would be divided by 0, got {group['eps']}")


def write(buffer: Array, values: list[tuple[float, ...]]) -> None:
    """buffer[i, j] ← values[i][j]: one by one, as arguments of kernels. A copy to a GPU might be waited for."""
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            buffer[i, j] = value


def scaled(formula: Callable, numbers: Array, scale: Array, p: Array, g: Array, *state: Array) -> None:
    """``formula`` along scale · g; where ``scale`` is 0, p and its state get back what they held.

    Fused kernels decide this for themselves, and write nothing.
    """
    xp, before = array_module(p), [array.copy() for array in (p, *state)]
    formula(numbers, None, p, g * scale, *state)
    for array, old in zip((p, *state), before):
        array[...] = xp.where(scale > 0, array, old)
