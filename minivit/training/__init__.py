"""Training: one step, the loop around it, checkpoints and the log."""

from minivit.training.captured import CapturedStep
from minivit.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_model,
    restore,
    save_checkpoint,
)
from minivit.training.config import TrainConfig
from minivit.training.evaluation import Evaluation, evaluate, predict
from minivit.training.interrupt import Interrupted
from minivit.training.layout import Layout, available_cores, choose_layout
from minivit.training.log import append_log, read_log
from minivit.training.loop import fit
from minivit.training.progress import FitResult
from minivit.training.ranks import Ranks, connect
from minivit.training.step import NonFiniteLoss, StepResult, train_step

__all__ = [
    "CapturedStep", "Checkpoint", "CheckpointError", "Evaluation", "FitResult", "Interrupted", "Layout",
    "NonFiniteLoss", "Ranks", "StepResult", "TrainConfig", "append_log", "available_cores", "choose_layout", "connect",
    "evaluate", "fit", "load_checkpoint", "load_model", "predict", "read_log", "restore", "save_checkpoint",
    "train_step",
]  # fmt: skip
