"""Can a CNN teach a Vision Transformer what a few images do not? Students are trained with a teacher, and without one.

    python examples/distill.py                                                     # shapes, generated: no download
    python examples/distill.py --dataset folder:PATH --size 32 --train-images 10000 --epochs 20
    python examples/distill.py --teacher runs/cifar10-resnet20-0/best.npz ...      # a network that was trained before

A residual network is trained on the images, as the teacher. Then a small Vision Transformer learns from the same
images, changed by the same augmentations, for the same time, over some seeds, each in the forms of
``minivit/distillation.py``:

    alone       from the labels only
    soft        also from what the teacher thinks of every class
    hard        also from the teacher's answer, with the same head
    token       the same with a head of its own, which reads a distillation token (DeiT)
    soft_token  soft, with that token and head
    features    also from what the teacher's classifier is given

It leaves a folder ``runs/distill-<data set>/``: the teacher's run, the figures of each student, and the picture
``distill.png``. Ctrl-C ends it, and the same command goes on with the runs that are missing. The last line printed is a
JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from claims import Claim, compare, plus_minus, tell
from running import crop_and_flip, recipe_of, sentences
from sweep import GOES_ON, Figures, Job, by_variant, spread, sweep
from train_vit import RECIPES
from trial import images_of, load_images, made_for, patches_for, settle_trial, train, trial_options

from minivit.data import Dataset, Loader
from minivit.data.augment import augmentations
from minivit.distillation import FeatureDistillation, HardDistillation, SoftDistillation, Teacher
from minivit.models import ResNet, create_model, list_models
from minivit.nn import Module
from minivit.objective import Objective
from minivit.optim import AdamW, weight_decay_groups
from minivit.training import TrainConfig, evaluate, fit, load_model


class Form(NamedTuple):
    """A way to learn: how it is called in the table, the student's family, and the objective."""

    title: str
    student: str
    objective: Callable[[Teacher, Module, np.ndarray, Job], Objective | None]


ONE_HEAD, TWO_HEADS = "vit_nano_", "deit_nano_distilled_"
FORMS = {
    "alone": Form("labels alone", ONE_HEAD, lambda teacher, student, image, job: None),
    "soft": Form("soft", ONE_HEAD, lambda teacher, student, image, job: _soft(teacher, job)),
    "hard": Form("hard", ONE_HEAD, lambda teacher, student, image, job: HardDistillation(teacher)),
    "token": Form("hard, with a token", TWO_HEADS, lambda teacher, student, image, job: HardDistillation(teacher)),
    "soft_token": Form("soft, with a token", TWO_HEADS, lambda teacher, student, image, job: _soft(teacher, job)),
    "features": Form(
        "features", ONE_HEAD, lambda teacher, student, image, job: _features(teacher, student, image, job)
    ),
}


def _soft(teacher: Teacher, job: Job) -> Objective:
    return SoftDistillation(teacher, job["alpha"], job["temperature"])


def _features(teacher: Teacher, student: Module, image: np.ndarray, job: Job) -> Objective:
    return FeatureDistillation(teacher, student, image, weight=job["weight"], seed=job["seed"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    trial_options(parser, train_images=2_000)
    add, names = parser.add_argument, ", ".join(list_models(ResNet))
    add("--teacher", default="resnet8", help=f"one of {names}, or a file: last.npz of a run of train_vit.py")
    add("--teacher-epochs", type=int, default=20, help="passes of the teacher over the training images")
    add("--forms", default=",".join(FORMS), help="some of %(default)s")
    add("--epochs", type=int, default=20, help="passes of a student over the training images")
    add("--augment", default="", metavar="NAMES", help="changes for all, besides crop and flip, such as trivialaugment")
    add("--alpha", type=float, default=0.5, help="soft: the teacher's share of the loss")
    add("--temperature", type=float, default=3.0, help="soft: the higher, the more small probabilities count")
    add("--weight", type=float, default=1.0, help="features: of their distance, in the loss")
    args = settle_trial(parser.parse_args(arguments), "distill")
    args.forms = args.forms.split(",")
    if unknown := [form for form in args.forms if form not in FORMS]:
        raise ValueError(f"--forms must be some of {','.join(FORMS)}, got {','.join(unknown)}")
    if args.forms[0] != "alone" or len(args.forms) < 2:
        raise ValueError(f"--forms must be alone, which the others are compared with, and others; got {args.forms}")
    if args.teacher not in list_models(ResNet) and not Path(args.teacher).is_file():
        raise ValueError(f"--teacher must be one of {names}, or a file that is there; got {args.teacher}")
    augmentations(args.augment)
    return args


def main(arguments: list[str] | None = None) -> dict:
    started, args = time.monotonic(), parse(arguments)
    job = images_of(args)
    train_set, test_set = load_images(job)
    job |= {name: getattr(args, name) for name in ("epochs", "augment", "alpha", "temperature", "weight")}
    job |= {"train_images": len(train_set), "teacher": str(teacher_file(args, train_set, test_set))}
    jobs = [job | {"form": form, "seed": seed} for seed in range(args.seeds) for form in args.forms]
    for one in jobs[: len(args.forms)]:
        lesson = prepare(one)  # what cannot be is said before the first run
    print(f"{train_set!r}, {len(test_set)} to test\n{args.run_dir}")
    taught = evaluate(lesson.teacher.model, Loader(lesson.test_set, 250, shuffle=False)).accuracy
    results = sweep(run, jobs, args.run_dir / "figures", "students")

    table = by_variant(results, "form")
    claims = judge(table, taught)
    print(f"\n{as_text(table, taught)}\n\n{tell(claims, args.seeds)}\n")
    draw(table, taught, args.run_dir / "distill.png")
    return {
        "example": "distill", "dataset": args.dataset.partition(":")[0], "train_images": len(train_set),
        "teacher": args.teacher, "teacher_accuracy": taught, "epochs": args.epochs, "seeds": args.seeds,
        **{
            f"{form}_accuracy{suffix}": value
            for form, figures in table.items()
            for suffix, value in zip(("", "_sd"), spread(figures["accuracy"].tolist()))
        },
        **{f"held_{claim.key}": claim.held for claim in claims},
        "seconds": round(time.monotonic() - started, 1), "run_dir": str(args.run_dir),
    }  # fmt: skip


# --- the teacher -------------------------------------------------------------------------------------------------


def teacher_file(args: argparse.Namespace, train_set: Dataset, test_set: Dataset) -> Path:
    """The checkpoint of the teacher; one that is only named is trained, or goes on where it was interrupted."""
    if args.teacher not in list_models(ResNet):
        return Path(args.teacher)
    folder = args.run_dir / f"{args.teacher}-{len(train_set)}-{args.teacher_epochs}"
    recipe, arguments = recipe_of(args.dataset, RECIPES), made_for(train_set)
    model = create_model(args.teacher, **arguments)
    config = TrainConfig(
        folder, args.teacher_epochs, recipe.lr, warmup_epochs=0.1 * args.teacher_epochs, clip=1.0, save_seconds=60,
        resume_hint="the same command",
    )  # fmt: skip
    print(f"the teacher: {args.teacher}, {model.num_parameters():,} parameters")
    fit(
        model,
        AdamW(weight_decay_groups(model, 0.05), lr=recipe.lr),
        Loader(train_set, recipe.batch_size, augment=augment_of(args.dataset, args.augment)),
        Loader(test_set, 250, shuffle=False),
        config,
        resume=(folder / "last.npz").exists(),
        meta={"model": args.teacher, "arguments": arguments},
    )
    return folder / "last.npz"


def augment_of(dataset: str, more: str) -> list:
    return crop_and_flip(recipe_of(dataset, RECIPES)) + augmentations(more)["augment"]


# --- a student ---------------------------------------------------------------------------------------------------


class Lesson(NamedTuple):
    teacher: Teacher
    student: Module
    objective: Objective | None
    train_set: Dataset
    test_set: Dataset


def prepare(job: Job) -> Lesson:
    """All for one training. Images are normalised as the teacher knows them. Raises ValueError where it does not."""
    train_set, test_set = load_images(job)
    network, meta = load_model(job["teacher"])
    if (classes := list(meta["classes"])) != list(train_set.classes):
        raise ValueError(f"the teacher knows the classes {', '.join(classes)}, not those of {train_set!r}")
    train_set, test_set = (
        replace(data, mean=tuple(meta["mean"]), std=tuple(meta["std"])) for data in (train_set, test_set)
    )
    form, teacher = FORMS[job["form"]], Teacher(network)
    name = form.student + patches_for(job["dataset"])
    student = create_model(name, seed=job["seed"], **made_for(train_set))
    image = train_set.normalise(train_set.images[:1])
    return Lesson(teacher, student, form.objective(teacher, student, image, job), train_set, test_set)


def run(job: Job) -> Figures:
    """Train one student, in one form, from one seed."""
    _, student, objective, train_set, test_set = prepare(job)
    augment = augment_of(job["dataset"], job["augment"])
    result = train(student, train_set, test_set, job, objective, augment)
    return {"accuracy": result.test_accuracy, "seconds": result.seconds}


# --- what came out -----------------------------------------------------------------------------------------------

Table = dict[str, dict[str, np.ndarray]]  # {form: {figure: one value a seed}}


def as_text(table: Table, taught: float) -> str:
    """Mean ± standard deviation over the seeds; points are those above the student alone."""
    lines = [f"{'a student that learned from':30}{'accuracy, %':>16}{'points':>10}{'seconds':>10}"]
    for form, figures in table.items():
        gain = 100 * (figures["accuracy"].mean() - table["alone"]["accuracy"].mean())
        lines.append(
            f"{FORMS[form].title:30}{plus_minus(figures['accuracy'], 100):>16}{gain:+10.1f}"
            f"{figures['seconds'].mean():10.0f}"
        )
    return "\n".join([*lines, f"{'(the teacher)':30}{100 * taught:>10.1f}"])


def judge(table: Table, taught: float) -> list[Claim]:
    """What is said of distillation, held against the accuracies of all seeds."""
    alone, found = table["alone"]["accuracy"], []
    for form in table:
        if form != "alone":
            ours = table[form]["accuracy"]
            numbers = f"{plus_minus(ours, 100)} % against {plus_minus(alone, 100)} %"
            says = f"A student does better with a teacher than alone: {FORMS[form].title}."
            found.append(Claim(f"{form}_helps", says, compare(ours, alone) > 0, numbers))
    if {"hard", "token"} <= table.keys():
        ours, one = table["token"]["accuracy"], table["hard"]["accuracy"]
        numbers = f"{plus_minus(ours, 100)} % against {plus_minus(one, 100)} %"
        says = "The teacher's answers are of more use to a token and a head of their own than to the same head."
        found.append(Claim("token_over_hard", says, compare(ours, one) > 0, numbers))
    best = max(table, key=lambda form: table[form]["accuracy"].mean())
    ours = table[best]["accuracy"]
    numbers = f"{plus_minus(ours, 100)} %, {FORMS[best].title}, against {100 * taught:.1f} %"
    says = "The best student is better than its teacher."
    return [*found, Claim("beats_teacher", says, compare(ours, np.full(len(ours), taught)) > 0, numbers)]


def draw(table: Table, taught: float, path: Path) -> None:
    """A row for each form, and the teacher as a line."""
    try:
        import figures
    except ImportError:
        print("no picture was drawn: it needs matplotlib, pip install 'minivit[examples]'")
        return
    rows: dict[str, Any] = {FORMS[form].title: 100 * found["accuracy"] for form, found in table.items()}
    figures.draw_spreads(rows, path, "test accuracy of the student, %", {"its teacher": 100 * taught})
    print(f"picture: {path}")


if __name__ == "__main__":
    with sentences("distill", GOES_ON):
        print(json.dumps(main()))
