"""How to train: the settings of a run."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minivit.cuda.precision import PRECISIONS


@dataclass(frozen=True)
class TrainConfig:
    """How to train. What for is an ``Objective``'s; data, batches and the optimizer's options are their own objects'.

    - ``lr``, ``min_lr``, ``warmup_epochs``: the rate's peak, its end, and when it peaks; see ``warmup_cosine``
    - ``clip``: the largest norm of the gradient; None leaves it
    - ``ema``: decay of the moving average that is evaluated instead of the weights; None keeps none
    - ``precision``: of products on a GPU, "fp32", "tf32" or "bf16"; see ``minivit/cuda/precision.py``
    - ``seed``: of dropout and drop-path
    - ``save_epochs``, ``save_seconds``: save ``last.npz`` every so many epochs, and within an epoch after so long
    - ``log_steps``: log every so many steps, besides every epoch; None logs epochs only
    - ``progress``: show a bar (on a terminal) and a line for each epoch
    - ``resume_hint``: what the user is told to say to go on after an interruption

    Raises ValueError for values that make no run.
    """

    run_dir: str | Path
    epochs: int
    lr: float = 1e-3
    min_lr: float = 0.0
    warmup_epochs: float = 0.0
    clip: float | None = None
    ema: float | None = None
    precision: str = "fp32"
    seed: int = 0
    save_epochs: int = 1
    save_seconds: float | None = None
    log_steps: int | None = None
    progress: bool = True
    resume_hint: str = "resume=True"

    def __post_init__(self) -> None:
        for name in ("epochs", "save_epochs", "log_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs must lie in 0 … {self.epochs} (epochs), got {self.warmup_epochs}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    def settings(self) -> dict[str, Any]:
        """What a run depends on, as plain values: these may not change on resuming."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}


FREE = {"run_dir", "save_epochs", "save_seconds", "log_steps", "progress", "resume_hint"}  # may change on resuming
