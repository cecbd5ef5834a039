"""What are images without labels worth? A masked autoencoder learns from all of them, then from the few with labels.

    python examples/mae_few_labels.py --dataset mnist --data-dir DIR                 # 1 % of the labels: 600
    python examples/mae_few_labels.py --dataset folder:PATH --size 32 --labels 10%   # your own images

Over some seeds three networks of the same kind are trained with the same few labels, one core each:

    pretrained       a masked autoencoder's encoder, fine-tuned: as many steps with labels as the next
    from scratch     random weights, the same number of steps with labels
    the same time    random weights, and for as many steps as take the time of pretraining and fine-tuning together

It leaves a folder ``runs/few-labels-<data set>/``: the figures of each run, the pretrained networks, and the picture
``few_labels.png``. Ctrl-C ends it, and the same command goes on. The last line printed is a JSON object.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from claims import Claim, compare, plus_minus, tell
from pretrain_mae import RECIPES, augmentations
from running import augmentation_options, augmented, data_options, recipe_of, sentences, short_name
from sweep import Figures, Job, by_variant, sweep
from train_vit import RECIPES as SUPERVISED
from train_vit import load_data
from transfer import as_pretrained_on, build, few_labels, read_pretrained, take_encoder

from minivit.data import Dataset, Loader
from minivit.models import create_model, list_models
from minivit.models.mae import MaskedAutoencoderViT
from minivit.objective import Classification, Reconstruction
from minivit.optim import AdamW, layer_decay_groups, weight_decay_groups
from minivit.training import FitResult, TrainConfig, choose_layout, fit

VARIANTS = {"pretrained": "pretrained", "scratch": "from scratch, as many steps", "time": "from scratch, as much time"}
LOOKS = 4  # how often the test images are looked at in the shortest of the trainings with labels


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, names = parser.add_argument, list_models(MaskedAutoencoderViT)
    data_options(parser)
    add("--labels", default="1%", help="how many have labels: a share, 1%%, or a number, 600; as many of each class")
    add("--model", choices=names, metavar="NAME", help=f"one of {', '.join(names)} (default: by data set)")
    add("--pretrain-epochs", type=int, help="passes over all images without labels (default: by data set)")
    add("--visits", type=int, default=60, help="passes over those with labels (at least 4)")
    add("--blr", type=float, help="of pretraining: peak learning rate for 256 images a step (default: by data set)")
    add("--norm-pix", action="store_true", help="predict patches with their own mean and deviation taken out")
    augmentation_options(parser)  # of the images with labels
    add("--lr", type=float, default=3e-3, help="peak learning rate with labels")
    add("--layer-decay", type=float, default=0.85, help="of a pretrained network: rate of each block over the next's")
    add("--seeds", type=int, default=3, help="how often all is done")
    add("--run-dir", type=Path, help="folder of the figures and pictures (default: runs/few-labels-<data set>)")
    args = parser.parse_args(arguments)
    if args.visits < LOOKS or args.seeds < 1:
        raise ValueError(f"--visits must be {LOOKS} or more, --seeds 1 or more, got {args.visits} and {args.seeds}")
    recipe = recipe_of(args.dataset, RECIPES)
    args.model = args.model or recipe.model
    args.pretrain_epochs = recipe.epochs if args.pretrain_epochs is None else args.pretrain_epochs
    args.blr = recipe.blr if args.blr is None else args.blr
    supervised = recipe_of(args.dataset, SUPERVISED)
    args.crop = supervised.crop if args.crop is None else args.crop
    args.flip = supervised.flip if args.flip is None else args.flip
    augmented(args)  # a wrong name is told before the hours of pretraining
    args.run_dir = args.run_dir or Path("runs") / f"few-labels-{short_name(args.dataset)}"
    return args


def main(arguments: list[str] | None = None) -> None:
    args, start = parse(arguments), time.monotonic()
    train_set, test_set = load_data(argparse.Namespace(**vars(args), seed=0))  # downloads once, before there are many
    print(f"{train_set!r}, {len(few_labels(train_set, args.labels, 0))} of them with labels; {len(test_set)} to test")
    print(args.run_dir)
    data = {name: getattr(args, name) for name in ("dataset", "data_dir", "size", "train_images", "model")}
    how = {"epochs": args.pretrain_epochs, "blr": args.blr, "norm_pix": args.norm_pix}
    name = "-".join(["pretrained", args.model, *map(str, how.values())])
    pretraining = [
        data | how | {"part": "pretrain", "seed": seed, "folder": str(args.run_dir / f"{name}-{seed}")}
        for seed in range(args.seeds)
    ]
    pretrained = sweep(run, pretraining, args.run_dir / "figures", "pretraining")

    def with_labels(part: str, job: Job, visits: int) -> Job:
        decay = args.layer_decay if part == "pretrained" else 1.0
        changes = {"crop": args.crop, "flip": args.flip, "augment": args.augment}
        how = {"labels": args.labels, "visits": visits, "lr": args.lr, "layer_decay": decay}
        return job | {"part": part} | how | changes

    jobs = [with_labels(part, job, args.visits) for part in ("pretrained", "scratch") for job in pretraining]
    results = sweep(run, jobs, args.run_dir / "figures", "few labels")
    longer = []
    for (job, before), (_, after) in zip(pretrained, results):  # seed by seed
        share = (before["seconds"] + after["seconds"]) / after["seconds"]
        longer.append(with_labels("time", job, round(args.visits * share)))
    results += sweep(run, longer, args.run_dir / "figures", "as much time")

    table = by_variant(results, "part")
    table["pretrained"]["seconds"] = table["pretrained"]["seconds"] + [f["seconds"] for _, f in pretrained]
    claims = judge(table)
    print(f"\n{as_text(table)}\n\n{tell(claims, args.seeds)}\n")
    draw(table, args.run_dir / "few_labels.png")
    figures = {"example": "mae_few_labels", "dataset": args.dataset.partition(":")[0], "model": args.model}
    figures |= {"labels": args.labels, "pretrain_epochs": args.pretrain_epochs, "blr": args.blr, "visits": args.visits}
    figures |= {"crop": args.crop, "flip": args.flip, "augment": args.augment}
    figures |= {"seeds": args.seeds, "seconds": round(time.monotonic() - start, 1)}
    for variant, values in table.items():
        figures |= {
            f"{variant}_accuracy": values["accuracy"].tolist(),
            f"{variant}_seconds": values["seconds"].tolist(),
        }
    print(json.dumps(figures | {claim.key: claim.held for claim in claims}))


# --- one training ----------------------------------------------------------------------------------------------------


def run(job: Job) -> Figures:
    """The figures of one job, on one core."""
    args = argparse.Namespace(**{name: job[name] for name in ("dataset", "data_dir", "size", "train_images", "seed")})
    train_set, test_set = load_data(args)
    return pretrain(job, train_set, test_set) if job["part"] == "pretrain" else learn(job, train_set, test_set)


def pretrain(job: Job, train_set: Dataset, test_set: Dataset) -> Figures:
    """A masked autoencoder on all images; it goes on where it was interrupted."""
    recipe = recipe_of(job["dataset"], RECIPES)
    channels, *size = train_set.images.shape[1:]
    options = {"img_size": size, "in_chans": channels, "norm_pix_loss": job["norm_pix"], "seed": job["seed"]}
    model = create_model(job["model"], **options)
    lr, folder = job["blr"] * recipe.batch_size / 256, Path(job["folder"])
    result = fit(
        model,
        AdamW(weight_decay_groups(model, 0.05), lr=lr, betas=(0.9, 0.95)),
        Loader(train_set, recipe.batch_size, job["seed"], augment=augmentations(recipe.crop, recipe.flip)),
        Loader(test_set, 250, shuffle=False),
        TrainConfig(
            folder, job["epochs"], lr, warmup_epochs=0.05 * job["epochs"], seed=job["seed"], save_seconds=60,
            progress=False,
        ),
        Reconstruction(),
        resume=(folder / "last.npz").exists(),
        meta={"model": job["model"], "arguments": options},
        layout=choose_layout(model, train_set.normalise(train_set.images[:1]), recipe.batch_size, workers=1),
    )  # fmt: skip
    return {"test_loss": result.test_loss, "seconds": training_seconds(result, recipe.batch_size)}


def learn(job: Job, train_set: Dataset, test_set: Dataset) -> Figures:
    """A Vision Transformer on the few labelled images, from the encoder's weights or from random ones."""
    pretrained = read_pretrained(Path(job["folder"]) / "last.npz")
    train_set, test_set = (as_pretrained_on(data, pretrained) for data in (train_set, test_set))
    labelled = few_labels(train_set, job["labels"], job["seed"])
    model = build(
        pretrained, num_classes=len(train_set.classes), global_pool="avg", drop_path_rate=0.1, seed=job["seed"]
    )
    if job["part"] == "pretrained":
        take_encoder(model, pretrained)
    looks = max(1, min(LOOKS * job["visits"] // 60, 20))
    visited = labelled.subset(np.tile(np.arange(len(labelled)), round(job["visits"] / looks)))
    with TemporaryDirectory() as folder:
        result = fit(
            model,
            AdamW(layer_decay_groups(model, 0.05, job["layer_decay"]), lr=job["lr"]),
            Loader(visited, 50, job["seed"], **augmented(argparse.Namespace(**job))),
            Loader(test_set, 250, shuffle=False),
            TrainConfig(
                folder, looks, job["lr"], warmup_epochs=0.1 * looks, clip=1.0, seed=job["seed"], save_epochs=looks,
                progress=False,
            ),
            Classification(label_smoothing=0.1),
            layout=choose_layout(model, labelled.normalise(labelled.images[:1]), 50, workers=1),
        )  # fmt: skip
    return {
        "accuracy": result.test_accuracy, "best": result.best_accuracy, "labels": len(labelled),
        "steps": result.steps, "seconds": training_seconds(result, 50),
    }  # fmt: skip


def training_seconds(result: FitResult, batch_size: int) -> float:
    """The time of the steps alone, without that in which the test images were looked at."""
    return result.steps * batch_size / result.images_per_second


# --- what came out -----------------------------------------------------------------------------------------------


def as_text(table: dict[str, dict[str, np.ndarray]]) -> str:
    """Mean ± standard deviation over the seeds."""
    lines = [f"{'':30}{'accuracy, %':>16}{'steps with labels':>20}{'seconds':>12}"]
    for variant, figures in table.items():
        accuracy, seconds = plus_minus(figures["accuracy"], 100), figures["seconds"].mean()
        lines.append(f"{VARIANTS[variant]:30}{accuracy:>16}{figures['steps'].mean():20,.0f}{seconds:12.0f}")
    return "\n".join(lines)


def judge(table: dict[str, dict[str, np.ndarray]]) -> list[Claim]:
    """What is said of masked autoencoders, held against the accuracies of all seeds."""
    ours, found = table["pretrained"]["accuracy"], []
    for variant, words in (("scratch", "as many steps with labels"), ("time", "as much time in all")):
        other = table[variant]["accuracy"]
        gain = 100 * float(ours.mean() - other.mean())
        found.append(
            Claim(
                f"better_than_{variant}",
                f"With few labels, pretraining without them is better than {words} from scratch.",
                compare(ours, other) > 0,
                f"{plus_minus(ours, 100)} % against {plus_minus(other, 100)} %, {gain:+.1f} points",
            )
        )
    return found


def draw(table: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """A dot for each seed, by the time that it took."""
    try:
        import figures
    except ImportError:
        print("no picture was drawn: it needs matplotlib, pip install 'minivit[examples]'")
    else:
        points = {VARIANTS[name]: (values["seconds"], 100 * values["accuracy"]) for name, values in table.items()}
        figures.draw_points(points, path, "training time on one core, s", "test accuracy, %")


if __name__ == "__main__":
    with sentences("mae_few_labels"):
        main()
