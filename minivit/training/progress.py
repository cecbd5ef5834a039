"""Where a run stands: a handful of numbers, which are saved with it and shown to the user."""

from dataclasses import dataclass
from typing import NamedTuple

from minivit.training.evaluation import Evaluation
from minivit.training.step import StepResult


@dataclass
class Progress:
    """Where a run stands: ``batch`` batches of ``epoch`` are done (all of them: its evaluation is due).

    What is counted in answers is None where the objective gives none. ``best_loss`` and ``best_accuracy`` are those of
    the weights in ``best.npz``.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0  # of the whole run
    images: int = 0  # of this epoch, as are the next two
    loss_sum: float = 0.0
    correct: int | None = None
    test_loss: float | None = None  # of the last evaluation
    test_accuracy: float | None = None
    best_loss: float | None = None
    best_accuracy: float | None = None
    log_lines: int = 0
    seconds: float = 0.0

    def count(self, result: StepResult, images: int) -> None:
        """A step on so many images is done."""
        self.step += 1
        self.batch += 1
        self.images += images
        self.loss_sum += result.loss * images
        if result.correct is not None:
            self.correct = (self.correct or 0) + result.correct

    def evaluated(self, test: Evaluation) -> bool:
        """The epoch's evaluation is done. Whether it is the best so far: the first, or better than those before it."""
        best = self.test_loss is None or test.better_than(Evaluation(self.best_loss, self.best_accuracy))
        self.test_loss, self.test_accuracy = test
        if best:
            self.best_loss, self.best_accuracy = test
        return best

    def end_epoch(self) -> None:
        """All of the epoch is done, and the next one begins."""
        self.epoch += 1
        self.batch = self.images = 0
        self.loss_sum, self.correct = 0.0, None

    @property
    def train(self) -> Evaluation:
        """Means over this epoch's images so far, each as the network saw it when it trained on it."""
        return Evaluation(self.loss_sum / self.images, None if self.correct is None else self.correct / self.images)


class FitResult(NamedTuple):
    """What came of a run; accuracies are None where the objective has no answers to count.

    The best loss and accuracy are those of ``best.npz``. ``seconds`` of the whole run; ``images_per_second``: training,
    since the last resume.
    """

    test_loss: float
    test_accuracy: float | None
    best_loss: float
    best_accuracy: float | None
    steps: int
    seconds: float
    images_per_second: float
