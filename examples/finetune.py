"""Fine-tune a pretrained Vision Transformer: the encoder of a checkpoint learns to classify, from many labels or few.

    python examples/finetune.py runs/mnist-mae_nano_patch4_28-0/last.npz --dataset mnist --labels 1%
    python examples/finetune.py runs/mnist-mae_nano_patch4_28-0/last.npz --dataset mnist --labels 1% --from-scratch
    python examples/finetune.py runs/cifar10-vit_nano_patch4x8_32-0/best.npz --dataset folder:PATH --size 48

The checkpoint is one of ``train_vit.py`` (or of this program), or of ``pretrain_mae.py``: then the decoder is left out.
With ``--from-scratch`` the same network begins with random weights, to compare with.

It leaves a folder ``runs/<name>/``: ``log.jsonl``, ``last.npz`` and ``best.npz``, and the pictures ``curves.png``,
``predictions.png``, ``attention.png`` and ``positions.png``. Ctrl-C saves and ends; ``--resume`` goes on. The last line
printed is a JSON object with the figures of the run.
"""

import argparse
from pathlib import Path

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
from train_vit import RECIPES, draw
from transfer import build, few_labels, load_images, read_pretrained, take_encoder

from minivit.data import Loader
from minivit.models import VisionTransformer
from minivit.nn import init, on_device_of
from minivit.objective import Classification
from minivit.optim import AdamW, layer_decay_groups
from minivit.random import generator
from minivit.training import Ranks, TrainConfig, choose_layout, fit

AN_EPOCH = 6000  # images at least: fewer labelled ones are visited several times before the test images are looked at


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("checkpoint", type=Path, help="last.npz or best.npz of a run")
    add("--from-scratch", action="store_true", help="begin with random weights instead of those of the checkpoint")
    data_options(parser, size="default: that of the checkpoint", required=True)
    add("--labels", help="use so many labelled images, 600, or such a share, 1%%, as many of each class (default: all)")
    add("--global-pool", choices=("token", "avg"), help="what the head reads (default: as before; of an MAE avg)")
    add("--head-std", type=float, help="deviation of the head's first weights (default: 2e-5; from scratch, as ever)")
    add("--layer-decay", type=float, help="rate of each block over that of the next (default: 0.75; from scratch 1)")
    add("--epochs", type=int, default=10, help="how often the test images are looked at")
    add("--passes", type=int, help=f"over the labelled images in an epoch (default: what makes {AN_EPOCH:,} images)")
    add("--batch-size", type=int, default=100, help="images a step")
    add("--lr", type=float, help="peak learning rate, of the head (default: by data set)")
    add("--weight-decay", type=float, default=0.05)
    add("--warmup", type=float, default=0.1, help="share of the steps in which the learning rate rises")
    add("--label-smoothing", type=float, default=0.1)
    add("--clip", type=float, help="largest norm of the gradient (default: any)")
    add("--ema", type=float, help="evaluate a moving average of the weights with this decay")
    add("--drop-path", type=float, default=0.1, help="stochastic depth of the last block")
    augmentation_options(parser)
    machine_options(parser)
    run_options(parser, "runs/<data set>-<model>-finetuned-<labels>-<seed>, or …-scratch-…")
    args = parser.parse_args(arguments)
    settle(args, RECIPES)
    if args.layer_decay is None:
        args.layer_decay = 1.0 if args.from_scratch else 0.75
    if args.head_std is None and not args.from_scratch:
        args.head_std = 2e-5
    return args


def finetune(args: argparse.Namespace, ranks: Ranks) -> dict:
    if args.device == "cuda" and ranks.size > 1:
        args.device = f"cuda:{ranks.place}"  # one for each rank of this machine
    pretrained = read_pretrained(args.checkpoint)
    train_set, test_set = load_images(args, pretrained)
    labelled = train_set if args.labels is None else few_labels(train_set, args.labels, args.seed)
    passes = max(1, round(AN_EPOCH / len(labelled))) if args.passes is None else args.passes
    if passes < 1:
        raise ValueError(f"--passes must be at least 1, got {passes}")
    options = {"num_classes": len(train_set.classes), "drop_path_rate": args.drop_path, "seed": args.seed}
    if pool := args.global_pool or ("avg" if pretrained.training == "masked patches" else None):
        options["global_pool"] = pool
    model = build(pretrained, **options)
    if not args.from_scratch:
        take_encoder(model, pretrained)
    if args.head_std is not None:
        begin_head(model, args.head_std, args.seed)
    if (size := train_set.images.shape[2:]) != pretrained.img_size:
        model.set_input_size(size)
    model.to(args.device).set_grad_checkpointing(args.recompute)
    args.run_dir = args.run_dir or default_run_dir(args, pretrained.name)
    image, device = labelled.normalise(labelled.images[:1]), model.device
    layout = choose_layout(model, image, args.batch_size, args.workers, args.micro_batch, ranks)
    before = "none" if args.from_scratch else pretrained.training
    print(f"{labelled!r}, {passes} times an epoch\npretraining: {before}")
    print(f"{pretrained.name}: {model.num_parameters():,} parameters, on {device}\n{layout}\n{args.run_dir}")

    with on_device_of(model):
        optimizer = AdamW(layer_decay_groups(model, args.weight_decay, args.layer_decay), lr=args.lr)
    visited = labelled.subset(np.tile(np.arange(len(labelled)), passes))
    result = fit(
        model,
        optimizer,
        Loader(visited, args.batch_size, args.seed, **augmented(args)),
        Loader(test_set, 250, shuffle=False),
        TrainConfig(
            args.run_dir, args.epochs, args.lr, warmup_epochs=args.warmup * args.epochs, clip=args.clip, ema=args.ema,
            seed=args.seed, save_seconds=60, precision=args.precision, resume_hint="the same command with --resume",
        ),
        Classification(args.label_smoothing),
        resume=args.resume,
        overwrite=args.overwrite,
        meta={"model": pretrained.name, "arguments": pretrained.arguments | options | {"img_size": size}},
        layout=layout,
    )  # fmt: skip
    if ranks.rank == 0:
        draw(model.to("cpu"), test_set, args.run_dir)
    return {
        "example": "finetune", "dataset": args.dataset.partition(":")[0], "model": pretrained.name, "seed": args.seed,
        "pretraining": before, "device": device, "labels": len(labelled), "epochs": args.epochs, "passes": passes,
        "steps": result.steps, "layer_decay": args.layer_decay, "global_pool": model.global_pool,
        "test_accuracy": result.test_accuracy, "best_accuracy": result.best_accuracy, "test_loss": result.test_loss,
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second, 1), "ranks": ranks.size, "workers": layout.workers,
        "micro_batch": layout.micro_batch or args.batch_size, "run_dir": str(args.run_dir),
    }  # fmt: skip


def begin_head(model: VisionTransformer, std: float, seed: int) -> None:
    """Small weights, so that the first answers are the same for all images, and the first gradients small."""
    rng = generator(seed, "head")
    model.head.weight.data[...] = init.trunc_normal(model.head.weight.shape, rng, std)
    model.head.bias.data[...] = 0


def default_run_dir(args: argparse.Namespace, model: str) -> Path:
    labels = "all" if args.labels is None else args.labels.replace("%", "percent")
    begin = "scratch" if args.from_scratch else "finetuned"
    return Path("runs") / f"{short_name(args.dataset)}-{model}-{begin}-{labels}-{args.seed}"


def main(arguments: list[str] | None = None) -> None:
    on_all_ranks("finetune", lambda ranks: finetune(parse(arguments), ranks))


if __name__ == "__main__":
    with sentences("finetune"):
        main()
