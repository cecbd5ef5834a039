"""Augmentation policies on one core: minivit on whole batches against timm and torchvision, image by image in Pillow.

    python benchmarks/augment.py

Both are given what they would have in training: minivit a batch of bytes (B, C, H, W) and the keys of its images,
Pillow a list of its images; and both give an array of bytes. A turn is one batch, with other draws each time. What
counts is the processor's time, of one thread for either. Pillow's warps are bilinear, like minivit's. Where timm and
torchvision are not installed, minivit is measured alone.

The last line is a JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
from measuring import positive, quartiles, take_turns, use_cores

from minivit.backend import reuse_freed_memory
from minivit.data.augment import AutoAugment, ColorJitter, RandAugment, ThreeAugment, TrivialAugment
from minivit.data.shapes import shapes

BATCHES = {32: 128, 224: 32}  # images of so many pixels a side: how many in a batch
POLICIES = {
    "randaugment": RandAugment(),
    "autoaugment_cifar10": AutoAugment("cifar10"),
    "autoaugment_imagenet": AutoAugment("imagenet"),
    "trivialaugment": TrivialAugment(),
    "three_augment": ThreeAugment(),
    "color_jitter": ColorJitter(0.4, 0.4, 0.4),
}


def pillow_policies() -> dict[str, Callable]:
    """The same policies for one image of Pillow, from timm where it has them; none where that is not installed."""
    try:
        import torch

        try:
            import torchvision
        except RuntimeError:  # built for another PyTorch: two of its operators are missing, and nothing here calls them
            operators = torch.library.Library("torchvision", "DEF")
            operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import torchvision
        from PIL import Image
        from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
    except ImportError:
        return {}
    transforms, bilinear = torchvision.transforms, torchvision.transforms.InterpolationMode.BILINEAR
    common = {"translate_pct": 0.45, "img_mean": (128,) * 3, "interpolation": Image.Resampling.BILINEAR}
    with_a_bit = common | {"magnitude_max": 9.9}  # at level 10 timm's posterize leaves no bit, which Pillow refuses now
    warps = {"interpolation": bilinear, "fill": [128] * 3}
    cifar10 = transforms.AutoAugmentPolicy.CIFAR10
    return {
        "randaugment": rand_augment_transform("rand-m9-mstd0.5-inc1", dict(with_a_bit)),
        "autoaugment_cifar10": transforms.AutoAugment(cifar10, **warps),
        "autoaugment_imagenet": auto_augment_transform("original", dict(common)),
        "trivialaugment": transforms.TrivialAugmentWide(**warps),
        "three_augment": transforms.Compose(
            [auto_augment_transform("3a", dict(common)), transforms.ColorJitter(0.3, 0.3, 0.3)]
        ),
        "color_jitter": transforms.ColorJitter(0.4, 0.4, 0.4),
    }


def measure(name: str, size: int, batch: int, rounds: int, theirs: Callable | None) -> dict:
    """One policy at one image size: a row of the report."""
    images, samples = shapes(batch, size=size).images, np.arange(batch)
    epochs = iter(range(rounds + 1))
    tasks = {"minivit": (nullcontext(), lambda: POLICIES[name](images, samples, 0, next(epochs)))}
    if theirs:
        from PIL import Image

        pictures = [Image.fromarray(np.moveaxis(image, 0, -1).copy()) for image in images]
        tasks["pillow"] = (nullcontext(), lambda: np.stack([np.asarray(theirs(picture)) for picture in pictures]))
    seconds = take_turns(tasks, rounds, f"{name}, {size} pixels", clock=processor_seconds)
    row = {"name": name, "size": size, "batch": batch, "rounds": rounds}
    row |= {f"{who}_images_per_second": batch / float(np.median(taken)) for who, taken in seconds.items()}
    if theirs:
        low, median, high = quartiles(seconds["pillow"] / seconds["minivit"])
        row |= {"speedup_vs_pillow": median, "spread": [low, high]}
    return row


def processor_seconds(run: Callable[[], object]) -> float:
    """How long a core computes for one call, whatever else the machine does meanwhile."""
    start = time.process_time()
    run()
    return time.process_time() - start


def show(row: dict) -> None:
    """A row for people."""
    line = f"{row['name']:22}{row['size']:4} pixels   minivit {row['minivit_images_per_second']:8.0f} images/s"
    if "spread" in row:
        low, high = row["spread"]
        line += f"   Pillow {row['pillow_images_per_second']:8.0f}"
        line += f"   minivit is {row['speedup_vs_pillow']:.2f} times as fast ({low:.2f} … {high:.2f})"
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--policy", action="append", choices=POLICIES, help="default: all")
    add("--size", type=positive, action="append", help="pixels of a side (default: 32 and 224)")
    add("--batch", type=positive, help="images in a batch (default: 128, at 224 pixels 32)")
    add("--rounds", type=positive, help="turns of each (default: 15)")
    add("--quick", action="store_true", help="small batches, two rounds: does the script work?")
    options = parser.parse_args(arguments)
    use_cores(1)
    reuse_freed_memory()  # as the examples do
    theirs = pillow_policies()
    if not theirs:
        print("minivit alone is measured: timm and torchvision are not installed")
    rows = []
    for size in options.size or ([32] if options.quick else BATCHES):
        batch = options.batch or (4 if options.quick else BATCHES.get(size, 128))
        for name in options.policy or POLICIES:
            rounds = options.rounds or (2 if options.quick else 15)
            rows.append(measure(name, size, batch, rounds, theirs.get(name)))
            show(rows[-1])
    print(json.dumps({"benchmark": "augment", "rows": rows}))


if __name__ == "__main__":
    main()
