"""What the examples that train a network have in common: options of the command line, and how a program ends."""

import json
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minivit import backend
from minivit.cuda.precision import PRECISIONS
from minivit.data.augment import RandomCrop, RandomHorizontalFlip, augmentations
from minivit.training import CheckpointError, Interrupted, NonFiniteLoss, Ranks, connect


def data_options(
    parser: ArgumentParser, size: str = "default 32", train_images: int | None = None, required: bool = False
) -> None:
    """Which images; ``size`` says which side they have where none is given."""
    add = parser.add_argument
    default = {"required": True} if required else {"default": "shapes"}
    add("--dataset", **default, help="shapes, mnist, fashion_mnist, cifar10, cifar100 or folder:PATH")
    add("--data-dir", default="data", help="where the files of public data sets are, or are downloaded to")
    add("--size", "--img-size", type=int, help=f"pixels a side, for shapes and folders ({size})")
    add("--train-images", type=int, default=train_images, help="use at most so many training images")


def machine_options(parser: ArgumentParser) -> None:
    """What it runs on, and how a batch is cut: nothing here changes the result by more than rounding, but precision."""
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:NUMBER")
    add("--precision", default="fp32", choices=PRECISIONS, help="of the products on a GPU")
    add("--workers", type=int, help="threads, on a CPU (default: the cores that this process has for itself)")
    add("--micro-batch", type=int, help="images computed at a time (default: what the cache holds; on a GPU, all)")
    add("--recompute", action="store_true", help="less memory, more time: blocks keep only their inputs, and run twice")


def augmentation_options(parser: ArgumentParser) -> None:
    """Chance changes to training images."""
    add = parser.add_argument
    add("--crop", type=int, help="move training images by up to so many pixels")
    add("--flip", action=BooleanOptionalAction, default=None, help="mirror half of the training images")
    add("--augment", default="", metavar="NAMES", help="more changes, such as randaugment,mixup=.8,erasing")


def augmented(args: Namespace) -> dict[str, Any]:
    """The arguments of a ``Loader`` for the options of ``augmentation_options``."""
    more = augmentations(args.augment)
    return more | {"augment": crop_and_flip(args) + more["augment"]}


def crop_and_flip(chosen: Any) -> list:
    """The augmentations for ``chosen.crop``, pixels, and ``chosen.flip``, of a command line or of a recipe."""
    crop = [RandomCrop(chosen.crop)] if chosen.crop else []
    return crop + ([RandomHorizontalFlip()] if chosen.flip else [])


def run_options(parser: ArgumentParser, run_dir: str) -> None:
    """The folder of the run, and whether it begins or goes on there; ``run_dir`` says which folder by default."""
    add = parser.add_argument
    add("--seed", type=int, default=0, help="names every random number of the run")
    add("--run-dir", type=Path, help=f"folder of the run (default: {run_dir})")
    add("--resume", action="store_true", help="go on with the run in this folder")
    add("--overwrite", action="store_true", help="begin anew where the folder holds a run")


def recipe_of(dataset: str, recipes: Mapping[str, Any]) -> Any:
    """What trains well on a data set, a named tuple; there is one for "folder", which others share."""
    return recipes.get(dataset.partition(":")[0], recipes["folder"])


def settle(args: Namespace, recipes: Mapping[str, Any]) -> None:
    """Options that were left open get the values of the data set's recipe."""
    for name, value in recipe_of(args.dataset, recipes)._asdict().items():
        if getattr(args, name, value) is None:
            setattr(args, name, value)


def short_name(dataset: str) -> str:
    """A data set in the name of a folder.

    >>> short_name("mnist"), short_name("folder:images/birds")
    ('mnist', 'birds')
    """
    kind, _, path = dataset.partition(":")
    return Path(path).name if path else kind


def on_all_ranks(program: str, run: Callable[[Ranks], dict]) -> None:
    """``run(ranks)`` in this process, one of those that ``mpiexec`` started or alone; its figures are printed as JSON.

    A run that was interrupted, or whose loss is no number, ends the program with a sentence.
    """
    backend.reuse_freed_memory()
    ranks = connect()
    with ranks.together():
        try:
            print(json.dumps(run(ranks)))
        except Interrupted as stopped:
            sys.exit(f"{stopped}")
        except NonFiniteLoss as error:
            sys.exit(f"{program}: {error}")


@contextmanager
def sentences(program: str, stopped: str = "stopped at once; what was saved before is as it was") -> Iterator[None]:
    """Inside, what goes wrong for reasons that the user can change ends the program with one line, and no traceback.

    ``stopped`` is said after Ctrl-C.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        sys.exit(f"{program}: {stopped}")
    except MemoryError as error:
        sys.exit(f"{program}: the memory is full ({error}); a smaller --micro-batch, or --recompute, needs less")
    except (CheckpointError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"{program}: {error}")
