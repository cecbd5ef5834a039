"""The training loop: epochs of steps, evaluation, log and checkpoints, and a run that can stop and go on anywhere.

A run lives in a folder, ``run_dir``: ``log.jsonl`` (see ``log.py``), ``last.npz`` (everything; ``resume`` goes on from
it), ``best.npz`` (the weights, or their average, with the highest test accuracy so far, or the lowest test loss where
the objective has no answers to count) and, after a failure, ``nonfinite.npz``. In the log, ``epoch`` and ``step`` count
what is done; a line is a "step" or an "epoch" ``event``.

Where a run stands is a handful of numbers, ``Progress``. The order of images, their augmentation, dropout and the
learning rate are functions of the epoch and the step, so that restoring these numbers, the weights and the
optimizer's state continues bit for bit.
"""

import json
import math
import time
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minivit.backend import to_device
from minivit.cuda import precision
from minivit.data.loader import Loader
from minivit.nn import Module, on_device_of
from minivit.objective import Classification, Objective
from minivit.optim import EMA, Optimizer, warmup_cosine
from minivit.training.checkpoint import CheckpointError, load_checkpoint, restore, save_checkpoint
from minivit.training.config import TrainConfig
from minivit.training.evaluation import evaluate
from minivit.training.files import remove
from minivit.training.interrupt import Interrupt, Interrupted
from minivit.training.layout import Layout, choose_layout
from minivit.training.log import append_log, cut_log
from minivit.training.progress import FitResult, Progress
from minivit.training.step import NonFiniteLoss, train_step


def fit(
    model: Module,
    optimizer: Optimizer,
    train: Loader,
    test: Loader,
    config: TrainConfig,
    objective: Objective | None = None,
    resume: bool = False,
    overwrite: bool = False,
    meta: Mapping[str, Any] | None = None,
    layout: Layout | None = None,
) -> FitResult:
    """Train ``model`` on ``train`` and evaluate it on ``test`` after every epoch.

    ``objective`` says what for, and how the test images are measured; by default ``Classification()``. If it has
    Parameters of its own, the optimizer should have them too; they are saved with the run.

    ``layout`` says how the batches are cut over ranks, threads and pieces; by default what ``choose_layout`` finds for
    this process alone. It changes the result by rounding only, and may change when a run is resumed. Of several ranks
    all call ``fit`` with the same arguments; the first of them reads, writes and prints. The data set may stay on the
    host: each batch is moved to the model's device once. A run may be resumed on another device.

    ``meta`` is saved with every checkpoint, besides the data set's name, classes, mean and std: give what rebuilds
    the model, {"model": name, "arguments": {…}}. With ``resume`` the run in ``run_dir`` goes on where it was saved.

    Raises Interrupted after Ctrl-C or SIGTERM, saved; NonFiniteLoss, saved as ``nonfinite.npz``; CheckpointError
    where ``resume`` finds no run or another one, where a new run finds one without ``overwrite``, and for a full disk.
    Of several ranks, an exception in one, other than the first two, ends the program of all.

    >>> import tempfile
    >>> from minivit.data import Dataset
    >>> from minivit.models import VisionTransformer
    >>> from minivit.optim import AdamW
    >>> images = np.zeros((8, 1, 8, 8), np.uint8)
    >>> images[::2] = 200
    >>> data = Dataset("dark or bright", images, np.arange(8) % 2, ["bright", "dark"])
    >>> model = VisionTransformer(8, 4, in_chans=1, num_classes=2, embed_dim=8, depth=1, num_heads=2)
    >>> config = TrainConfig(tempfile.mkdtemp(), epochs=5, lr=0.01, progress=False)
    >>> fit(model, AdamW(model.named_parameters()), Loader(data, 4), Loader(data, 8), config).test_accuracy
    1.0
    """
    if config.precision != "fp32" and model.device == "cpu":
        raise ValueError(
            f"precision {config.precision!r} is for a GPU, and the model is on the CPU: leave it at 'fp32'"
        )
    with on_device_of(model), precision(config.precision):
        layout = layout or choose_layout(model, train.dataset.normalise(train.dataset.images[:1]), train.batch_size)
        run = _Run(model, optimizer, train, test, config, objective or Classification(), dict(meta or {}), layout)
        ranks = layout.ranks
        with ranks.together(agreed=(Interrupted, NonFiniteLoss)), layout, Interrupt(ranks.any) as interrupt:
            run.start(resume, overwrite)
            try:
                while run.progress.epoch < config.epochs:
                    run.train_epoch(interrupt)
                    run.finish_epoch(interrupt)
            except Interrupted as error:
                run.save("last.npz")
                raise Interrupted(
                    f"{error} after {run.progress.step} of {run.total_steps} steps, and saved: "
                    f"{config.resume_hint} goes on from {run.folder / 'last.npz'}"
                ) from None
            except NonFiniteLoss as error:
                run.save("nonfinite.npz")
                raise NonFiniteLoss(
                    f"{error}. The weights before this step are in {run.folder / 'nonfinite.npz'}; earlier checkpoints "
                    "are as they were. A lower learning rate, a longer warm-up or a clipped gradient may help",
                    error.first,
                ) from error
    return run.result()


class _Run:
    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        train: Loader,
        test: Loader,
        config: TrainConfig,
        objective: Objective,
        meta: dict[str, Any],
        layout: Layout,
    ):
        self.model, self.optimizer, self.config, self.objective = model, optimizer, config, objective
        self.layout, self.ranks = layout, layout.ranks
        loaders = (loader.shard(self.ranks.rank, self.ranks.size) for loader in (train, test))
        self.train, self.test = (loader.to(model.device) for loader in loaders)
        self.folder = Path(config.run_dir)
        self.log = self.folder / "log.jsonl"
        self.ema = None if config.ema is None else EMA(optimizer, config.ema, warmup=True)
        self.total_steps = config.epochs * len(train)
        self.progress = Progress()
        self.trained, self.training_seconds = 0, 0.0  # images and time since the last resume
        self.started = self.saved = time.monotonic()
        data = train.dataset
        self.meta = {"dataset": data.name, "classes": list(data.classes), "mean": data.mean, "std": data.std, **meta}
        self.meta["settings"] = self.settings() | {key: meta.get(key) for key in ("model", "arguments")}
        self.meta = json.loads(json.dumps(self.meta))  # as it will come back; what JSON refuses is found here

    def settings(self) -> dict[str, Any]:
        """What must be the same for a resumed run to continue bit for bit."""
        train, groups = self.train, self.optimizer.param_groups
        settings = self.config.settings()
        return settings | {
            "objective": repr(self.objective),
            "dataset": f"{train.dataset!r}",
            "batch_size": train.batch_size,
            "loader_seed": train.seed,
            "shuffle": train.shuffle,
            "drop_last": train.drop_last,
            "augment": [getattr(augment, "__name__", repr(augment)) for augment in train.augment],
            "repeats": train.repeats,
            "optimizer": type(self.optimizer).__name__,
            "groups": [{k: v for k, v in g.items() if k not in ("params", "slice", "lr")} for g in groups],
        }

    # --- begin, save, go on ---------------------------------------------------------------------------------------

    def start(self, resume: bool, overwrite: bool) -> None:
        """Rank 0 makes a folder or reads the checkpoint; all ranks start from what it has."""
        if self.ranks.rank == 0:
            self.resume() if resume else self.begin(overwrite)
        counts = {"progress": asdict(self.progress), "steps": self.optimizer.steps}
        counts = json.loads(self.ranks.gather(json.dumps(counts))[0])
        self.progress, self.optimizer.steps = Progress(**counts["progress"]), counts["steps"]
        modules = [self.model, self.objective.module] if self.objective.module else [self.model]
        arrays = [parameter.data for module in modules for parameter in module.parameters()]
        arrays += self.optimizer.state.values()
        if self.ema:
            self.ema.updates = self.progress.step
            arrays.append(self.ema.average)
        for array in arrays:
            self.ranks.broadcast(array)
        self.started -= self.progress.seconds

    def begin(self, overwrite: bool) -> None:
        last = self.folder / "last.npz"
        if last.exists() and not overwrite:
            raise CheckpointError(
                f"{self.folder} holds a run already: {self.config.resume_hint} goes on with it; "
                "overwrite it, or give another run_dir, to begin anew"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in ("last.npz", "best.npz", "nonfinite.npz", "log.jsonl"):
                remove(self.folder / name)
            self.log.touch()  # a folder that takes no files is noticed now, and not after the first epoch
        except OSError as error:
            reason = f"{error.strerror} ({error.filename})" if error.filename else error
            raise CheckpointError(f"{self.folder} cannot hold a run: {reason}; give another run_dir") from error

    def resume(self) -> None:
        checkpoint = load_checkpoint(self.folder / "last.npz")
        before, now = checkpoint.meta["settings"], self.meta["settings"]
        changes = [f"{k} was {before.get(k)!r} and is {now.get(k)!r}" for k in now if before.get(k) != now.get(k)]
        if changes:
            raise CheckpointError(
                f"{checkpoint.path} is of another run: {'; '.join(changes)}. "
                "Give the same arguments to go on with it, or another run_dir to begin anew"
            )
        restore(checkpoint, self.model, self.optimizer, self.ema, self.objective.module)
        self.progress = Progress(**checkpoint.meta["progress"])
        try:
            cut_log(self.log, self.progress.log_lines)
        except OSError as error:
            raise self.stopped(f"{self.log} cannot be written: {error.strerror or error}") from error

    def save(self, name: str) -> None:
        if self.ranks.rank:
            return
        self.saved = time.monotonic()
        self.progress.seconds = self.saved - self.started
        meta = self.meta | {"progress": asdict(self.progress)}
        whole = name != "best.npz"  # for predictions the weights are enough
        optimizer, ema, module = (self.optimizer, self.ema, self.objective.module) if whole else (None, None, None)
        try:
            save_checkpoint(self.folder / name, self.model, optimizer, ema, meta, module)
        except CheckpointError as error:
            raise self.stopped(error) from error

    def stopped(self, reason: object) -> CheckpointError:
        """The sentence for a file that cannot be written, with the way out."""
        last = self.folder / "last.npz"
        way_out = f"{self.config.resume_hint} goes on from {last}" if last.is_file() else "begin the run anew"
        return CheckpointError(f"{reason}. Once this is put right, {way_out}")

    # --- an epoch -------------------------------------------------------------------------------------------------

    def train_epoch(self, interrupt: Interrupt) -> None:
        progress, config = self.progress, self.config
        self.model.train()
        total = min(len(self.train.dataset), len(self.train) * self.train.batch_size)
        with tqdm(
            total=total,
            initial=progress.images,
            desc=f"epoch {progress.epoch + 1}/{config.epochs}",
            unit=" images",
            bar_format="{desc} {percentage:3.0f}% |{bar}| {rate_fmt}{postfix}",
            dynamic_ncols=True,
            leave=False,
            disable=None if config.progress else True,  # None: shown on a terminal, not in a file
        ) as bar:
            for batch in self.train.epoch(progress.epoch, start=progress.batch):
                interrupt.check()
                start = time.monotonic()
                self.optimizer.lr = self.learning_rate(progress.step)
                result = train_step(
                    self.model, self.objective, batch, self.optimizer,
                    config.seed, progress.step, self.layout, config.clip,
                )  # fmt: skip
                if self.ema:
                    self.ema.update()
                progress.count(result, batch.total)
                self.trained += batch.total
                self.training_seconds += time.monotonic() - start
                bar.set_postfix_str(self.describe(), refresh=False)
                bar.update(batch.total)
                if config.log_steps and progress.step % config.log_steps == 0:
                    self.write("step", loss=result.loss, grad_norm=result.grad_norm, lr=self.optimizer.lr)
                if config.save_seconds is not None and time.monotonic() - self.saved >= config.save_seconds:
                    self.save("last.npz")

    def finish_epoch(self, interrupt: Interrupt) -> None:
        progress = self.progress
        self.check_ranks()
        with self.ema.applied() if self.ema else nullcontext():
            batches = interrupt.checked(self.test.epoch(0))
            test = evaluate(self.model, batches, self.layout, self.objective.evaluation)
            if progress.evaluated(test):
                self.save("best.npz")
        train = progress.train
        progress.end_epoch()
        self.write(
            "epoch",
            train_loss=train.loss,
            train_accuracy=train.accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            lr=self.learning_rate(progress.step - 1),
            images_per_second=self.speed(),
            seconds=time.monotonic() - self.started,
        )
        if self.config.progress:
            tqdm.write(
                f"epoch {progress.epoch}/{self.config.epochs}  train {train.describe()}  test {test.describe()}  "
                f"{self.speed():.0f} images/s"
            )
        if progress.epoch % self.config.save_epochs == 0 or progress.epoch == self.config.epochs:
            self.save("last.npz")

    def check_ranks(self) -> None:
        """Equal sums and equal steps keep the ranks equal; where that fails, the run is worth nothing."""
        if self.ranks.size > 1:
            sums = self.ranks.gather(f"{zlib.crc32(to_device(self.optimizer.flat.data, 'cpu')):08x}")
            if len(set(sums)) > 1:
                raise RuntimeError(f"the weights of the ranks have drifted apart, to checksums {', '.join(sums)}")

    def learning_rate(self, step: int) -> float:
        c = self.config
        warmup_steps = round(c.warmup_epochs * len(self.train))
        return warmup_cosine(step, self.total_steps, warmup_steps, c.lr, c.min_lr)

    def describe(self) -> str:
        """What the bar says: means of this epoch so far, and when the whole run ends at this speed."""
        p = self.progress
        images_left = (self.total_steps - p.step) * self.train.batch_size
        left = tqdm.format_interval(math.ceil(images_left * self.training_seconds / self.trained))
        return f"{p.train.describe(3)}, {left} left"

    def speed(self) -> float:
        """Images per second of training, since the last resume."""
        return self.trained / self.training_seconds if self.training_seconds else 0.0

    def write(self, event: str, **values: float | None) -> None:
        """Add a line to the log, of the values that there are."""
        values = {name: value for name, value in values.items() if value is not None}
        line = {"event": event, "epoch": self.progress.epoch, "step": self.progress.step, **values}
        try:
            if self.ranks.rank == 0:
                append_log(self.log, line)
        except OSError as error:
            raise self.stopped(f"{self.log} cannot be written: {error.strerror or error}") from error
        self.progress.log_lines += 1

    def result(self) -> FitResult:
        p = self.progress
        return FitResult(p.test_loss, p.test_accuracy, p.best_loss, p.best_accuracy, p.step, p.seconds, self.speed())
