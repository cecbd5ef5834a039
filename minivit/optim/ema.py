"""A moving average of the weights, to evaluate with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from minivit.backend import Array, array_module, implementation
from minivit.optim.optimizer import Optimizer
from minivit.optim.parameters import FlatParameters


def move_average(average: Array, p: Array, decay: float) -> None:
    """a ← d a + (1 − d) p, in place."""
    average *= decay
    average += (1 - decay) * p


class EMA:
    """The exponential moving average a ← d a + (1 − d) p of all parameters p, which it starts equal to.

    The weights of training rattle around a minimum; their mean over the last 1/(1 − d) steps lies nearer to it
    (Polyak and Juditsky, 1992). With ``warmup`` the decay of update t is min(d, (1 + t) / (10 + t)), t = 1, 2, …, so
    that the random start is forgotten within a short run too.

    Raises ValueError for a decay outside [0, 1).

    >>> p = Parameter([0.0])
    >>> flat = FlatParameters([p])
    >>> ema = EMA(flat, decay=0.9)
    >>> p.data[:] = 10.0
    >>> ema.update()
    >>> with ema.applied():
    ...     p.item()
    1.0
    >>> p.item()
    10.0
    """

    def __init__(self, parameters: Optimizer | FlatParameters, decay: float = 0.999, warmup: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.flat = parameters.flat if isinstance(parameters, Optimizer) else parameters
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.average = self.flat.data.copy()

    def update(self) -> None:
        """Move the average towards the parameters; call it after each step of the optimizer."""
        self.flat.check()
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        for block in self.flat.blocks():
            implementation(move_average, self.average)(self.average[block], self.flat.data[block], decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside: the model has the averaged weights. After: its own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the average by parameter name, and the number of updates as "updates"."""
        return {"updates": np.array(self.updates)} | {
            f"average/{name}": array for name, array in self.flat.export(self.average).items()
        }

    def load_state_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up what ``state_dict`` gave. Raises ValueError where it is for other parameters."""
        if "updates" not in arrays:
            raise ValueError(f"this is not the state of an EMA: found {sorted(arrays)[:3]}")
        average = {key.removeprefix("average/"): array for key, array in arrays.items() if key != "updates"}
        self.flat.load(self.average, average, what="the average")
        self.updates = int(arrays["updates"])

    def _swap(self) -> None:
        xp = array_module(self.average)
        for block in self.flat.blocks():
            kept = xp.array(self.flat.data[block])
            self.flat.data[block] = self.average[block]
            self.average[block] = kept
