"""Train a Vision Transformer on real images, and see what it learned.

    python examples/train_vit.py                                    # ten shapes, generated: no download
    python examples/train_vit.py --dataset mnist --data-dir DIR     # downloaded to DIR where it is missing
    python examples/train_vit.py --dataset folder:PATH --size 64    # your own images, one folder a class
    mpiexec -n 4 python examples/train_vit.py                       # the same training, by four processes

It leaves a folder ``runs/<name>/``: ``log.jsonl``, ``last.npz`` and ``best.npz``, and the pictures ``curves.png``,
``predictions.png``, ``attention.png`` and ``positions.png``. Ctrl-C saves and ends; ``--resume`` goes on. The last line
printed is a JSON object with the figures of the run.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from running import (
    augmentation_options,
    augmented,
    data_options,
    machine_options,
    on_all_ranks,
    run_options,
    sentences,
    settle,
    short_name,
)

from minivit.analysis import class_attention
from minivit.data import SHAPES_TEST, Dataset, Loader, load
from minivit.data.shapes import shapes
from minivit.diversity import PENALTIES, HeadPenalties
from minivit.models import ResNet, VisionTransformer, create_model, list_models
from minivit.models.vit import EMBEDDINGS, POSITIONS
from minivit.nn import on_device_of
from minivit.nn.block import ATTENTION
from minivit.objective import Classification
from minivit.optim import AdamW, weight_decay_groups
from minivit.random import generator
from minivit.training import (
    Ranks,
    TrainConfig,
    choose_layout,
    fit,
    predict,
    read_log,
)


class Recipe(NamedTuple):
    """What trains well on a data set; every part can be changed on the command line."""

    model: str
    epochs: int
    lr: float
    batch_size: int = 100
    crop: int = 0
    flip: bool = False


CLASSIFIERS = list_models(VisionTransformer) + list_models(ResNet)
RECIPES = {
    "shapes": Recipe("vit_nano_patch8_32", 3, 2e-3),
    "mnist": Recipe("vit_nano_patch7_28", 7, 3e-3, crop=1),
    "fashion_mnist": Recipe("vit_nano_patch7_28", 10, 2e-3, crop=2, flip=True),
    "cifar10": Recipe("vit_nano_patch4x8_32", 12, 1.5e-3, 50, crop=2, flip=True),
    "cifar100": Recipe("vit_nano_patch4x8_32", 15, 1.5e-3, 50, crop=2, flip=True),
    "folder": Recipe("vit_nano_patch4x8_32", 12, 1.5e-3, 50, crop=2, flip=True),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    data_options(parser)
    add("--model", help=f"one of {', '.join(CLASSIFIERS)} (default: by data set)")
    add("--pos-embed", choices=POSITIONS, metavar="NAME", help=f"one of {', '.join(POSITIONS)}")
    add("--attn-layer", choices=ATTENTION, help="the kind of attention")
    add("--embed-layer", choices=EMBEDDINGS, help="the kind of patches")
    names = ", ".join(PENALTIES)
    add("--penalty", action="append", type=weighted, default=[], metavar="NAME=WEIGHT", help=f"of like heads: {names}")
    add("--epochs", type=int, help="passes over the training images")
    add("--batch-size", type=int, help="images a step")
    add("--lr", type=float, help="peak learning rate")
    add("--weight-decay", type=float, default=0.05)
    add("--warmup", type=float, default=0.1, help="share of the steps in which the learning rate rises")
    add("--label-smoothing", type=float, default=0.0)
    add("--clip", type=float, default=1.0, help="largest norm of the gradient")
    add("--ema", type=float, help="evaluate a moving average of the weights with this decay")
    add("--drop-path", type=float, default=0.0, help="stochastic depth of the last block")
    augmentation_options(parser)
    machine_options(parser)
    run_options(parser, "runs/<data set>-<model>-<seed>")
    args = parser.parse_args(arguments)
    settle(args, RECIPES)
    args.run_dir = args.run_dir or Path("runs") / f"{short_name(args.dataset)}-{args.model}-{args.seed}"
    return args


def weighted(text: str) -> tuple[str, float]:
    """ "margin=0.1" → ("margin", 0.1), for the command line."""
    name, _, weight = text.partition("=")
    if name not in PENALTIES:
        raise argparse.ArgumentTypeError(f"there is no penalty {name!r}: choose from {', '.join(PENALTIES)}")
    return name, float(weight)


def main(arguments: list[str] | None = None) -> None:
    on_all_ranks("train_vit", lambda ranks: train(parse(arguments), ranks))


def train(args: argparse.Namespace, ranks: Ranks) -> dict:
    if args.device == "cuda" and ranks.size > 1:
        args.device = f"cuda:{ranks.place}"  # one for each rank of this machine
    create_model(args.model, weight_init="skip").to(args.device)  # a wrong name, or no GPU: say so before the download
    if args.model not in CLASSIFIERS:
        raise ValueError(f"--model must be a Vision Transformer or a ResNet with one head, got {args.model}")
    train_set, test_set = load_data(args)
    channels, *size = train_set.images.shape[1:]
    options = {
        "img_size": size, "in_chans": channels, "num_classes": len(train_set.classes), "drop_path_rate": args.drop_path,
        "seed": args.seed,
    }  # fmt: skip
    named = {k: v for k in ("pos_embed", "attn_layer", "embed_layer") if (v := getattr(args, k)) is not None}
    if named and args.model not in list_models(VisionTransformer):
        raise ValueError(f"{', '.join(named)} are parts of a Vision Transformer, which {args.model} is not")
    options |= named
    model = create_model(args.model, **options).to(args.device)
    model.set_grad_checkpointing(args.recompute)
    image, device = train_set.normalise(train_set.images[:1]), model.device
    layout = choose_layout(model, image, args.batch_size, args.workers, args.micro_batch, ranks)
    print(f"{train_set!r}\n{args.model}: {model.num_parameters():,} parameters, on {device}")
    print(f"{layout}\n{args.run_dir}")

    with on_device_of(model):
        optimizer = AdamW(weight_decay_groups(model, args.weight_decay), lr=args.lr)
    result = fit(
        model,
        optimizer,
        Loader(train_set, args.batch_size, args.seed, **augmented(args)),
        Loader(test_set, 250, shuffle=False),
        TrainConfig(
            args.run_dir, args.epochs, args.lr, warmup_epochs=args.warmup * args.epochs, clip=args.clip,
            ema=args.ema, seed=args.seed, save_seconds=60, precision=args.precision,
            resume_hint="the same command with --resume",
        ),
        Classification(args.label_smoothing, HeadPenalties(dict(args.penalty)) if args.penalty else None),
        resume=args.resume,
        overwrite=args.overwrite,
        meta={"model": args.model, "arguments": options},
        layout=layout,
    )  # fmt: skip
    if ranks.rank == 0:
        draw(model.to("cpu"), test_set, args.run_dir)
    return {
        "example": "train_vit", "dataset": args.dataset.partition(":")[0], "model": args.model, "seed": args.seed,
        "device": device, "epochs": args.epochs, "train_images": len(train_set), "test_accuracy": result.test_accuracy,
        "test_loss": result.test_loss, "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second, 1), "ranks": ranks.size, "workers": layout.workers,
        "micro_batch": layout.micro_batch or args.batch_size, "run_dir": str(args.run_dir),
    }  # fmt: skip


def load_data(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Training and test set. Of fewer training images, shapes draws no more than those; elsewhere chance chooses."""
    if args.train_images is None:
        return load(args.dataset, args.data_dir, args.size, args.seed)
    if args.train_images < 1:
        raise ValueError(f"--train-images must be at least 1, got {args.train_images}")
    if args.dataset == "shapes":
        train_set = shapes(args.train_images, args.seed, args.size or 32)
        test_set = shapes(SHAPES_TEST, args.seed, args.size or 32, split="test")
        return train_set, test_set.normalised_like(train_set)
    train_set, test_set = load(args.dataset, args.data_dir, args.size, args.seed)
    chosen = generator(args.seed, "train images").permutation(len(train_set))[: args.train_images]
    return train_set.subset(np.sort(chosen)), test_set


def draw(model: VisionTransformer | ResNet, test_set: Dataset, run_dir: Path) -> None:
    """The pictures of a run. The images are the first of the test set, whatever the network makes of them."""
    try:
        import figures
    except ImportError:
        print("no pictures were drawn: they need matplotlib, pip install 'minivit[examples]'")
        return
    drawn = ["curves", "predictions"]
    shown = test_set.subset(first_of_each_class(test_set.labels.tolist(), 32))
    logits = predict(model, shown.normalise(shown.images)).astype(np.float64)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    figures.draw_curves([r for r in read_log(run_dir / "log.jsonl") if r["event"] == "epoch"], run_dir / "curves.png")
    figures.draw_predictions(shown.images, shown.labels, probabilities, shown.classes, run_dir / "predictions.png")
    if isinstance(model, VisionTransformer):
        few = shown.subset(range(min(6, len(shown))))
        maps = class_attention(model.eval(), few.normalise(few.images))
        titles = [few.classes[label] for label in few.labels]
        figures.draw_attention(few.images, maps, titles, run_dir / "attention.png")
        drawn.append("attention")
        if model.pos_embed is not None:
            table = model.pos_embed.numpy()[0, -model.patch_embed.num_patches :]
            figures.draw_positions(table, model.patch_embed.grid_size, run_dir / "positions.png")
            drawn.append("positions")
    print(f"pictures in {run_dir}: {', '.join(drawn)}")


def first_of_each_class(labels: list[int], count: int) -> list[int]:
    """Indices of the first image of each class, then of the second of each, … ``count`` in all."""
    seen: dict[int, int] = {}
    rank = []
    for index, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        rank.append((seen[label], label, index))
    return [index for _, _, index in sorted(rank)[:count]]


if __name__ == "__main__":
    with sentences("train_vit"):
        main()
