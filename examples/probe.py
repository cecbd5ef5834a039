"""How good are the features of a network, if nothing of it is changed? Three answers, for a checkpoint.

    python examples/probe.py runs/mnist-mae_nano_patch4_28-0/last.npz --dataset mnist
    python examples/probe.py runs/mnist-mae_nano_patch4_28-0/last.npz --dataset mnist --labels 1%
    python examples/probe.py runs/mnist-mae_nano_patch4_28-0/last.npz --dataset mnist --from-scratch   # random weights

All images go through the encoder once. From the class token, and from the mean of the patch tokens, the classes are
told by a linear layer that is trained, by one in closed form, and by the nearest neighbours (``analysis/probe.py``). It
prints a table; the last line is a JSON object.
"""

import argparse
import json
import time
from pathlib import Path

from running import data_options, sentences
from transfer import build, few_labels, load_images, read_pretrained, take_encoder

from minivit.analysis.probe import Features, features, knn, linear_probe, ridge_probe
from minivit.backend import reuse_freed_memory
from minivit.data import Loader

POOLS = {"cls": "class token", "mean": "mean of patches"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("checkpoint", type=Path, help="last.npz or best.npz of a run")
    add("--from-scratch", action="store_true", help="the same network with random weights instead")
    data_options(parser, size="default: that of the checkpoint", required=True)
    add("--labels", help="use so many labelled images, 600, or such a share, 1%%, as many of each class (default: all)")
    add("--layer", type=int, help="features of this block, 1 for the first (default: behind the last norm)")
    add("--steps", type=int, default=7000, help="of the linear probe's training")
    add("--neighbours", type=int, default=20, help="how many vote")
    add("--device", default="cpu", help="cpu, cuda or cuda:NUMBER, of the network; the probes run on the CPU")
    add("--seed", type=int, default=0, help="names every random number")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    started, args = time.monotonic(), parse(arguments)
    reuse_freed_memory()
    pretrained = read_pretrained(args.checkpoint)
    train_set, test_set = load_images(args, pretrained)
    if args.labels is not None:
        train_set = few_labels(train_set, args.labels, args.seed)
    model = build(pretrained, num_classes=0, seed=args.seed)
    if not args.from_scratch:
        take_encoder(model, pretrained)
    if (size := train_set.images.shape[2:]) != pretrained.img_size:
        model.set_input_size(size)
    model.to(args.device)
    before = "none" if args.from_scratch else pretrained.training
    print(f"{train_set!r}, {len(test_set)} to test\n{pretrained.name}, pretraining: {before}")
    train, test = (features(model, Loader(data, 250, shuffle=False), args.layer) for data in (train_set, test_set))
    found = {pool: measure(pool, train, test, args) for pool in POOLS if getattr(train, pool) is not None}
    print(f"\n{as_text(found)}\n")
    return {
        "example": "probe", "dataset": args.dataset.partition(":")[0], "model": pretrained.name, "seed": args.seed,
        "pretraining": before, "layer": args.layer, "labels": len(train_set), "test_images": len(test_set),
        **{f"{name}_{pool}": value for pool, figures in found.items() for name, value in figures.items()},
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def measure(pool: str, train: Features, test: Features, args: argparse.Namespace) -> dict[str, float]:
    """The accuracy of each probe, and the penalty of the ridge."""
    data = getattr(train, pool), train.labels, getattr(test, pool), test.labels
    ridge = ridge_probe(*data, seed=args.seed)
    return {
        "linear": linear_probe(*data, steps=args.steps, seed=args.seed),
        "ridge": ridge.accuracy,
        "knn": knn(*data, k=min(args.neighbours, len(train.labels))),
        "ridge_l2": ridge.l2,
    }


def as_text(found: dict[str, dict[str, float]]) -> str:
    """Accuracies in percent, a line for each probe."""
    lines = [f"{'test accuracy, %':20}" + "".join(f"{POOLS[pool]:>18}" for pool in found)]
    for name, title in {"linear": "linear, trained", "ridge": "linear, ridge", "knn": "nearest neighbours"}.items():
        lines.append(f"{title:20}" + "".join(f"{100 * figures[name]:18.2f}" for figures in found.values()))
    return "\n".join(lines)


if __name__ == "__main__":
    with sentences("probe"):
        print(json.dumps(main()))
