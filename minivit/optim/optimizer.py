"""What all optimizers share: flat parameters, groups with options, state that can be saved."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from minivit.backend import Array, array_module
from minivit.optim.parameters import FlatParameters, Groups


class Optimizer:
    """Base of the optimizers. A subclass names its state arrays and writes ``update``, which steps one block.

    ``param_groups`` is a list of dicts with the options of each group (``lr``, ``weight_decay``, …), free to be
    changed between steps. Setting ``optimizer.lr`` sets the learning rate of every group, times its ``lr_scale``
    (default 1), which is how a schedule and layer-wise rates go together.

    Raises ValueError for options that the optimizer does not have, and for negative ones.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, params: Groups, **defaults: Any):
        self.flat = FlatParameters(params)
        self.param_groups = [{**defaults, "lr_scale": 1.0, **group} for group in self.flat.groups]
        for group in self.param_groups:
            self._check_options(group, {*defaults, "lr_scale", "params", "slice"})
        self.steps = 0
        self.state = {name: array_module(self.flat.data).zeros_like(self.flat.data) for name in self.state_names}
        self._lr = defaults["lr"]
        self._scratch = None

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

    def step(self) -> None:
        """Change the parameters, in place, by one step along their gradients. The gradients stay as they are.

        Raises RuntimeError where a Parameter is no longer laid out flat.
        """
        self.flat.check()
        self.steps += 1
        flat = self.flat
        for group in self.param_groups:
            for block in flat.blocks(group["slice"]):
                p, g = flat.data[block], flat.grad[block]
                if self._scratch is None or self._scratch.size < p.size:
                    self._scratch = array_module(p).empty_like(p)
                state = [array[block] for array in self.state.values()]
                self.update(group, p, g, self._scratch[: p.size], *state)

    def update(self, group: dict[str, Any], p: Array, g: Array, scratch: Array, *state: Array) -> None:
        """One step of the parameters ``p`` (n,) with gradient ``g``, in place; ``scratch`` (n,) may be overwritten."""
        raise NotImplementedError(f"{type(self).__name__} has no update()")

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
