"""One training of a comparison: on which images, of which network, on one core.

Examples that compare have many small networks trained, each from several seeds; ``sweep.py`` does so many at a time as
there are cores. All seeds see the same images, so that what differs between them is the network's start and its luck.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from running import crop_and_flip, data_options, recipe_of, short_name
from sweep import Job
from train_vit import RECIPES, load_data

from minivit.data import Dataset, Loader
from minivit.nn import Module
from minivit.objective import Objective
from minivit.optim import AdamW, weight_decay_groups
from minivit.random import generator
from minivit.training import FitResult, TrainConfig, choose_layout, fit

IMAGES = ("dataset", "data_dir", "size", "train_images", "test_images")  # the options that say which


def trial_options(
    parser: ArgumentParser,
    train_images: int | None = 10_000,
    test_images: int = 2_000,
    seeds: int = 3,
    size: str = "default 32",
) -> None:
    """Options of the command line: which images, how often, and where the figures go."""
    add = parser.add_argument
    data_options(parser, size, train_images)
    add("--test-images", type=int, default=test_images, help="use at most so many test images")
    add("--seeds", type=int, default=seeds, help="how many trainings of each kind")
    add("--run-dir", type=Path, help="folder of the figures (default: runs/<example>-<data set>)")


def settle_trial(args: Namespace, example: str, at_least: int = 1) -> Namespace:
    """The arguments, with what was left open filled in. Raises ValueError for those that cannot be."""
    if args.seeds < 2:
        raise ValueError(f"--seeds must be at least 2, as one alone has no spread; got {args.seeds}")
    if args.test_images < at_least:
        raise ValueError(f"--test-images must be at least {at_least}, got {args.test_images}")
    args.run_dir = args.run_dir or Path("runs") / f"{example}-{short_name(args.dataset)}"
    return args


def images_of(args: Namespace) -> Job:
    """What a job has to name for ``load_images``."""
    return {name: getattr(args, name) for name in IMAGES}


def load_images(job: Job) -> tuple[Dataset, Dataset]:
    """Training and test set, the same for all seeds; a process that has read them for one job has them for the next."""
    return _read(Path.cwd(), *(job[name] for name in IMAGES))


@lru_cache(maxsize=1)
def _read(folder: Path, *images: Any) -> tuple[Dataset, Dataset]:
    """``folder``: the current one, to which others are relative."""
    args = Namespace(**dict(zip(IMAGES, images)), seed=0)
    train_set, test_set = load_data(args)
    chosen = generator(0, "test images").permutation(len(test_set))[: args.test_images]
    return train_set, test_set.subset(np.sort(chosen))


def patches_for(dataset: str) -> str:
    """The end of the names of the small networks that suit: ``"vit_nano_" + patches_for("mnist")``.

    Their few patches, 16 of 28 or 32 px, make them quick to train.
    """
    return "patch7_28" if dataset in ("mnist", "fashion_mnist") else "patch8_32"


def made_for(data: Dataset) -> dict[str, Any]:
    """The arguments of a network for these images."""
    channels, *size = data.images.shape[1:]
    return {"img_size": size, "in_chans": channels, "num_classes": len(data.classes)}


def train(
    model: Module,
    train_set: Dataset,
    test_set: Dataset,
    job: Job,
    objective: Objective | None = None,
    augment: Sequence | None = None,
    lr: float | None = None,
    repeats: int = 1,
    folder: Path | None = None,
    meta: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train ``model`` for ``job["epochs"]`` with ``job["seed"]``, on one core, by the recipe of ``job["dataset"]``.

    ``augment`` and ``lr`` replace what the recipe says; ``repeats`` is that of ``Loader``. With ``folder`` and ``meta``
    the run is kept there, with what builds the network again: ``{"model": name, "arguments": {…}}``.
    """
    recipe = recipe_of(job["dataset"], RECIPES)
    augment, lr = crop_and_flip(recipe) if augment is None else augment, lr or recipe.lr
    module = objective.module if objective else None
    parts = weight_decay_groups(model, 0.05) + (weight_decay_groups(module, 0.05) if module else [])
    with nullcontext(folder) if folder else TemporaryDirectory() as place:
        return fit(
            model,
            AdamW(parts, lr=lr),
            Loader(train_set, recipe.batch_size, job["seed"], augment=augment, repeats=repeats),
            Loader(test_set, 250, shuffle=False),
            TrainConfig(
                place, job["epochs"], lr, warmup_epochs=0.1 * job["epochs"], clip=1.0, seed=job["seed"],
                save_epochs=job["epochs"], progress=False,
            ),
            objective,
            overwrite=True,
            meta=meta,
            layout=choose_layout(model, train_set.normalise(train_set.images[:1]), recipe.batch_size, workers=1),
        )  # fmt: skip


def visits(data: Dataset, count: int) -> Dataset:
    """A data set of ``count`` images: all of ``data`` as often as needed, so that few images mean no fewer steps.

    >>> visits(Dataset("blank", np.zeros((3, 1, 1, 1), np.uint8), np.arange(3), list("abc")), 7).labels
    array([0, 1, 2, 0, 1, 2, 0])
    """
    return data.subset(np.arange(count) % len(data))
