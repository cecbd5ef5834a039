"""How many images does a Vision Transformer need? A CNN, a ViT, and three helps for a ViT, on few images and on more.

    python examples/small_data.py                                     # ten shapes, generated: no download
    python examples/small_data.py --dataset mnist --data-dir DIR      # downloaded to DIR where it is missing
    python examples/small_data.py --dataset folder:PATH --size 32     # your own images, one folder a class

A convolution knows beforehand that neighbours belong together, and that a thing is the same wherever it is; attention
has to learn this from the images. On 100 to 10,000 of them, over some seeds, these are trained:

    cnn               a residual network
    vit               a Vision Transformer
    vit_small_data    with attention and patches made for few images: LSA and SPT (Lee et al., 2021)
    distilled         with a distillation token, taught by the CNN that was trained on the same images (DeiT)
    from_mae          the ViT, after its encoder was that of a masked autoencoder: on the same images, without their
                      labels, for as many steps more

The images of a number are among those of the next, as many of each class; the seed chooses them. The fewer there are,
the more often each is shown, with the same chance of crops and flips: every training has the same number of steps, and
what differs is how many different images there are.

It leaves a folder ``runs/small_data-<data set>/``: the figures of each run, the teachers, and the picture
``small_data.png``. Ctrl-C ends it, and the same command goes on with the runs that are missing. The last line printed
is a JSON object.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pretrain_mae
from claims import Claim, compare, plus_minus, tell
from running import recipe_of, sentences
from sweep import GOES_ON, Figures, Job, spread, sweep
from train_vit import RECIPES
from transfer import few_labels
from trial import images_of, load_images, made_for, patches_for, settle_trial, train, trial_options, visits

from minivit.data import Dataset
from minivit.distillation import HardDistillation, SoftDistillation, Teacher
from minivit.models import MaskedAutoencoderViT, ResNet, create_model, list_models
from minivit.models.mae import encoder_state
from minivit.models.registry import MODELS
from minivit.nn import Module
from minivit.objective import Reconstruction
from minivit.training import load_model

KINDS = {
    "cnn": "CNN", "vit": "ViT", "vit_small_data": "ViT, LSA and SPT", "distilled": "ViT, taught by the CNN",
    "from_mae": "ViT, pretrained as MAE",
}  # fmt: skip
HELPS = {"vit_small_data": "LSA and SPT help", "distilled": "A teacher helps", "from_mae": "Pretraining helps"}
FORMS = {"hard": HardDistillation, "soft": lambda teacher: SoftDistillation(teacher, alpha=0.5)}
ENCODER = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "seed")
DECODER = {"decoder_embed_dim": 48, "decoder_depth": 2, "decoder_num_heads": 4}
COLOURS = dict(zip(KINDS, ("#c53030", "#2b6cb0", "#2f855a", "#dd6b20", "#805ad5")))
Table = dict[str, np.ndarray]  # {kind: test accuracy (sizes, seeds)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, cnns = parser.add_argument, list_models(ResNet)
    trial_options(parser, train_images=None)
    add("--sizes", default="100,300,1000,3000,10000", help="how many training images (default: %(default)s)")
    add("--images-seen", type=int, default=30_000, help="in each training, counting each visit (default: %(default)s)")
    add("--cnn", "--teacher", choices=cnns, default="resnet8", metavar="NAME", help=f"one of {', '.join(cnns)}")
    add("--form", choices=FORMS, default="hard", help="learn the teacher's answers, or what it thinks of every class")
    args = settle_trial(parser.parse_args(arguments), "small_data")
    try:
        sizes = [int(size) for size in args.sizes.split(",")]
    except ValueError:
        raise ValueError(f"--sizes must be numbers, such as 100,300,1000, got {args.sizes!r}") from None
    if len(sizes) < 2 or sizes != sorted(set(sizes)):
        raise ValueError(f"--sizes must be two numbers or more, from the smallest to the largest, got {args.sizes!r}")
    if args.images_seen < sizes[-1]:
        raise ValueError(f"--images-seen must be at least {sizes[-1]}, the largest of --sizes, got {args.images_seen}")
    args.sizes = sizes
    return args


def main(arguments: list[str] | None = None) -> dict:
    started, args = time.monotonic(), parse(arguments)
    common = images_of(args) | {"images_seen": args.images_seen, "epochs": 1}  # all visits make one epoch
    train_set, test_set = load_images(common)
    check_sizes(args.sizes, train_set)
    print(f"{train_set!r}, {len(test_set)} to test")
    for kind, title in KINDS.items():  # what cannot be is said before the first run
        name, options = network({"kind": kind, "dataset": args.dataset, "seed": 0, "model": args.cnn}, train_set)
        print(f"{title:24}{create_model(name, **options).num_parameters():>9,} parameters")
    print(args.run_dir)

    trials = [common | {"images": size, "seed": seed} for seed in range(args.seeds) for size in args.sizes]
    cnns, vits = [], []
    for trial in trials:
        teacher = str(args.run_dir / f"{args.cnn}-{trial['images']}-{args.images_seen}-{trial['seed']}")
        cnns.append(trial | {"kind": "cnn", "model": args.cnn, "folder": teacher})
        vits.append(trial | {"kind": "distilled", "form": args.form, "teacher": teacher})
        vits += [trial | {"kind": kind} for kind in ("vit", "vit_small_data", "from_mae")]
    results = sweep(run, cnns, args.run_dir / "figures", "CNNs")  # the teachers come first
    results += sweep(run, vits, args.run_dir / "figures", "ViTs")

    table = tabulate(results, "accuracy", args.sizes)
    seconds = {kind: float(values.mean()) for kind, values in tabulate(results, "seconds", args.sizes).items()}
    claims = judge(table, args.sizes)
    print(f"\n{as_text(table, seconds, args.sizes)}\n\n{tell(claims, args.seeds)}\n")
    draw(table, args.sizes, args.run_dir / "small_data.png")
    return {
        "example": "small_data", "dataset": args.dataset.partition(":")[0], "sizes": args.sizes,
        "images_seen": args.images_seen, "seeds": args.seeds, "cnn": args.cnn, "form": args.form,
        **{
            f"{kind}_accuracy_{size}{suffix}": value
            for kind, rows in table.items()
            for size, row in zip(args.sizes, rows)
            for suffix, value in zip(("", "_sd"), spread(row.tolist()))
        },
        **{f"{kind}_seconds": round(mean, 1) for kind, mean in seconds.items()},
        **{f"held_{claim.key}": claim.held for claim in claims},
        "seconds": round(time.monotonic() - started, 1), "run_dir": str(args.run_dir),
    }  # fmt: skip


def check_sizes(sizes: list[int], data: Dataset) -> None:
    """Raises ValueError for numbers of images of which not every class can have its share."""
    classes = len(data.classes)
    most = classes * int(np.bincount(data.labels, minlength=classes).min())
    if sizes[0] < classes or sizes[-1] > most:
        raise ValueError(
            f"--sizes must be {classes} to {most} for {data!r}, at least one image of each class, and as many of each; "
            f"got {','.join(map(str, sizes))}"
        )


# --- one training ------------------------------------------------------------------------------------------------


def run(job: Job) -> Figures:
    """Train one network on one number of images, from one seed; the CNN is kept."""
    train_set, test_set = load_images(job)
    images = visits(few_labels(train_set, str(job["images"]), job["seed"]), job["images_seen"])
    name, options = network(job, train_set)
    model, objective, folder, before = create_model(name, **options), None, None, 0.0
    if job["kind"] == "cnn":
        folder = Path(job["folder"])
    if job["kind"] == "distilled":
        teacher, _ = load_model(Path(job["teacher"]) / "last.npz")
        objective = FORMS[job["form"]](Teacher(teacher))
    if job["kind"] == "from_mae":
        before = pretrain(model, images, test_set, job)
    meta = {"model": name, "arguments": options}
    result = train(model, images, test_set, job, objective, folder=folder, meta=meta)
    return {"accuracy": result.test_accuracy, "steps": result.steps, "seconds": before + result.seconds}


def network(job: Job, data: Dataset) -> tuple[str, dict[str, Any]]:
    """The network's name and arguments, for ``create_model``."""
    kind, options = job["kind"], made_for(data) | {"seed": job["seed"]}
    if kind == "cnn":
        return job["model"], options
    if kind == "vit_small_data":
        options |= {"attn_layer": "lsa", "embed_layer": "spt"}
    family = "deit_nano_distilled_" if kind == "distilled" else "vit_nano_"
    return family + patches_for(job["dataset"]), options


def pretrain(model: Module, images: Dataset, test_set: Dataset, job: Job) -> float:
    """Train the encoder of ``model``, in place, as a masked autoencoder's, without labels; the seconds that it took."""
    autoencoder = autoencoder_around(model, job, images)
    lr = recipe_of(job["dataset"], pretrain_mae.RECIPES).blr * recipe_of(job["dataset"], RECIPES).batch_size / 256
    result = train(autoencoder, images, test_set, job, Reconstruction(), lr=lr)
    model.load_state_dict(encoder_state(autoencoder), strict=False)  # there is no head in it
    return result.seconds


def autoencoder_around(model: Module, job: Job, data: Dataset) -> MaskedAutoencoderViT:
    """A masked autoencoder whose encoder is ``model``, weights and all, so that pretraining alone makes a difference.

    The table of positions is taken over too, in place of fixed sines, and stays as it is until labels are learned.
    """
    name, options = network(job, data)
    sizes = {key: value for key, value in (MODELS[name][1] | options).items() if key in ENCODER}
    autoencoder = MaskedAutoencoderViT(**sizes, **DECODER)
    start = {key: array for key, array in model.state_dict().items() if not key.startswith("head.")}
    autoencoder.load_state_dict(start, strict=False)
    return autoencoder


# --- what came out -----------------------------------------------------------------------------------------------


def tabulate(results: list[tuple[Job, Figures]], figure: str, sizes: list[int]) -> Table:
    """One figure of all runs: {kind: (sizes, seeds)}; the seeds in the order of the jobs."""
    return {
        kind: np.array([
            [figures[figure] for job, figures in results if (job["kind"], job["images"]) == (kind, size)]
            for size in sizes
        ])
        for kind in KINDS
    }  # fmt: skip


def as_text(table: Table, seconds: dict[str, float], sizes: list[int]) -> str:
    """Mean ± standard deviation over the seeds."""
    heads = [*(f"{size:,} images" for size in sizes), "s a run"]
    lines = [f"{'test accuracy, %':24}" + "".join(f"{head:>16}" for head in heads)]
    for kind, rows in table.items():
        cells = [*(plus_minus(row, 100) for row in rows), f"{seconds[kind]:.0f}"]
        lines.append(f"{KINDS[kind]:24}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def judge(table: Table, sizes: list[int]) -> list[Claim]:
    """What is said of ViTs and few images, held against the accuracies of all seeds.

    Two networks of the same seed saw the same images, so that their differences are what is averaged over the seeds.
    """
    few, many = f"{sizes[0]:,}", f"{sizes[-1]:,}"
    above = {kind: 100 * (rows - table["vit"]) for kind, rows in table.items()}  # points above the ViT
    lead = above["cnn"]
    found = [
        Claim(
            "cnn_ahead", f"With {few} images a CNN is better than a ViT.", positive(lead[0]),
            f"{plus_minus(table['cnn'][0], 100)} % against {plus_minus(table['vit'][0], 100)} %, "
            f"{plus_minus(lead[0])} points between them",
        ),
        Claim(
            "lead_shrinks", f"With {many} images its lead is smaller.", compare(lead[0], lead[-1]) == 1,
            f"{plus_minus(lead[0])} points with {few} images, {plus_minus(lead[-1])} with {many}",
        ),
    ]  # fmt: skip
    for kind, helps in HELPS.items():
        gain = above[kind]
        mean = gain.mean(0)  # over the sizes
        each = ", ".join(f"{plus_minus(row)} with {size:,}" for row, size in zip(gain, sizes))
        says = f"{helps} a ViT (mean over all numbers of images)."
        found.append(Claim(f"{kind}_helps", says, positive(mean), f"{plus_minus(mean)} points: {each}"))
        says = f"{helps} more with {few} images than with {many}."
        numbers = f"{plus_minus(gain[0])} points against {plus_minus(gain[-1])}"
        found.append(Claim(f"{kind}_helps_few", says, compare(gain[0], gain[-1]) == 1, numbers))
    return found


def positive(values: np.ndarray) -> bool:
    """Is the whole range, mean ± standard deviation, above 0?"""
    return compare(values, np.zeros_like(values)) == 1


def draw(table: Table, sizes: list[int], path: Path) -> None:
    """Test accuracy over the number of training images: the mean of the seeds, in a band of its standard deviation."""
    try:
        import figures
    except ImportError:
        print("no picture was drawn: it needs matplotlib, pip install 'minivit[examples]'")
        return
    figure, axes = figures.plt.subplots(figsize=(6.6, 3.6), layout="constrained")
    for kind in sorted(table, key=lambda kind: -table[kind][-1].mean()):  # as the lines end, from top to bottom
        mean, sd = np.array([spread((100 * row).tolist()) for row in table[kind]]).T
        axes.plot(sizes, mean, color=COLOURS[kind], marker="o", markersize=3.5, linewidth=1.4, label=KINDS[kind])
        axes.fill_between(sizes, mean - sd, mean + sd, color=COLOURS[kind], alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("training images")
    axes.set_title("test accuracy, %", loc="left")
    figure.legend(loc="outside right upper", frameon=False)
    figures.save(figure, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    with sentences("small_data", GOES_ON):
        print(json.dumps(main()))
