"""A step of MAE pretraining: minivit against the same network in PyTorch, and against the step of a whole encoder.

    python benchmarks/mae_step.py

A step is masking, forward, backward and AdamW on a whole batch. minivit cuts the batch as ``choose_layout`` finds for
this machine; PyTorch has a thread for every core and takes the batch whole. They get the same weights, and for one step
the same masks: loss and gradients are compared first. Then they take turns in one process, and with them a step of
minivit's Vision Transformer of the encoder's size, which sees all patches and has labels: by how much a step is shorter
because the encoder sees a quarter of them. Each turn gives ratios of times; the median and the quartiles are reported.
torch.compile takes part where there is a C++ compiler, in races of its own after those of eager: see ``train_step.py``.
The last line is a JSON object.
"""

import argparse
import json
import sys

import numpy as np
from contenders import Minivit, UsualAllocator, taking_part
from measuring import Task, Warm, engine, positive, quartiles, take_turns, use_cores

from minivit.backend import reuse_freed_memory
from minivit.data import Batch
from minivit.models import MaskedAutoencoderViT, VisionTransformer, create_model, list_models
from minivit.objective import Objective, Reconstruction
from minivit.random import generator
from minivit.training import choose_layout, train_step

BATCHES = {"mae_vit_base_patch16": 8, "mae_cifar_patch4_32": 128, "mae_nano_patch4_28": 128}
QUICK = {"mae_nano_patch4_28": 4}


class Given(Objective):
    """Reconstruction with masks that were drawn elsewhere."""

    def __init__(self, noise: np.ndarray):
        self.noise = noise

    def __call__(self, model, images, labels):
        return model(images, noise=self.noise)[0], None


def compare(model: MaskedAutoencoderViT, theirs, images: np.ndarray, noise: np.ndarray) -> dict[str, float]:
    """Differences of one step with the same masks: of the loss, and of gradients relative to each one's largest entry.

    Exits with a sentence where they are too large for rounding: the times of different networks say nothing.
    """
    batch = Batch(images, np.zeros(len(images), int), np.arange(len(images)))
    ours = Minivit(model, choose_layout(model, images, len(images), workers=1, micro_batch=len(images)))
    loss = train_step(model, Given(noise), batch, ours.optimizer, seed=0, step=0).loss
    difference = abs(loss - theirs.training(images, noise))
    a, b = ours.gradients(), theirs.gradients()
    gradients = max(float(np.abs(a[n] - b[n]).max() / np.abs(b[n]).max()) for n in b)
    if not (difference < 1e-4 and gradients < 1e-3):
        sys.exit(f"minivit and PyTorch differ by {difference:.1e} in the loss and {gradients:.1e} in gradients")
    return {"loss_difference": difference, "gradients_difference": gradients}


def benchmark(name: str, batch: int, rival: str, rounds: int, cores: int) -> dict:
    """Compare one network and race it against "torch_eager" or "torch_compile": a row of the report."""
    from torch_mae import TorchPretraining

    rng = generator(0, "benchmark", name)
    model = create_model(name)
    embed = model.patch_embed
    images = rng.standard_normal((batch, embed.in_chans, *embed.img_size), np.float32)
    noise = rng.random((batch, embed.num_patches), np.float32)
    row = {"name": name, "batch": batch, "threads": cores, "rounds": rounds}
    row |= compare(create_model(name), TorchPretraining(model), images[:4], noise[:4])

    reuse_freed_memory()  # as the training examples do
    samples = np.arange(batch)
    layout = choose_layout(model, images[:1], batch)
    ours = Minivit(model, layout)
    pretraining = Batch(images, np.zeros(batch, int), samples)
    theirs = TorchPretraining(model, compiled=rival == "torch_compile")
    whole = encoder_of(model)
    whole_layout = choose_layout(whole, images[:1], batch)
    supervised = Minivit(whole, whole_layout)
    labels = rng.integers(10, size=batch)
    tasks: dict[str, Task] = {
        "minivit": (layout, lambda: train_step(model, Reconstruction(), pretraining, ours.optimizer, 0, 0, layout)),
        rival: (UsualAllocator(), lambda: theirs.training(images)),
        "whole encoder": (whole_layout, lambda: supervised.training(images, labels)),
    }

    seconds = take_turns({key: (Warm(*task), task[1]) for key, task in tasks.items()}, rounds, name)
    row |= {"engine": engine(), "workers": layout.workers, "micro_batch": layout.micro_batch or batch}
    for other, taken in seconds.items():
        key = other.replace(" ", "_")
        row[f"{key}_images_per_second"] = batch / float(np.median(taken))
        if other != "minivit":
            low, median, high = quartiles(taken / seconds["minivit"])
            row |= {f"speedup_vs_{key}": median, f"spread_vs_{key}": [low, high]}
    return row


def encoder_of(model: MaskedAutoencoderViT) -> VisionTransformer:
    """A Vision Transformer of the encoder's size, with ten classes."""
    embed, block = model.patch_embed, model.blocks[0]
    width = model.cls_token.shape[2]
    return VisionTransformer(
        embed.img_size, embed.patch_size, embed.in_chans, num_classes=10, embed_dim=width, depth=len(model.blocks),
        num_heads=block.attn.num_heads, mlp_ratio=len(block.mlp.fc1.bias) / width, global_pool="avg",
        pos_embed="sincos_mae", weight_init="mae",
    )  # fmt: skip


def show(row: dict) -> None:
    """A row for people."""
    print(f"\n{row['name']}, batch {row['batch']}, cores {row['threads']}, rounds {row['rounds']}")
    print(f"  minivit: {row['engine']}; workers {row['workers']}, {row['micro_batch']} images at a time")
    print(f"  difference: loss {row['loss_difference']:.1e}, gradients {row['gradients_difference']:.1e}")
    for key in (key.removesuffix("_images_per_second") for key in row if key.endswith("_images_per_second")):
        line = f"  {key:14}{row[f'{key}_images_per_second']:9.1f} images/s"
        if key != "minivit":
            low, high = row[f"spread_vs_{key}"]
            line += f"   minivit's MAE step is {row[f'speedup_vs_{key}']:.2f} times as fast ({low:.2f} … {high:.2f})"
        print(line, flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, known = parser.add_argument, list_models(MaskedAutoencoderViT)
    add("--model", action="append", choices=known, metavar="NAME", help=f"default: {', '.join(BATCHES)}")
    add("--batch", type=positive, help="images a step (default: 8 of the large network, 128 of small ones)")
    add("--threads", type=positive, help="keep all to so many cores (default: all cores)")
    add("--rounds", type=positive, help="turns of each (default: 10)")
    add("--compile", action=argparse.BooleanOptionalAction, help="also torch.compile (default: if there is a compiler)")
    add("--quick", action="store_true", help="a tiny model, two rounds, no torch.compile: does the script work?")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    contenders = taking_part(options)
    cores = use_cores(options.threads)
    defaults = QUICK if options.quick else BATCHES
    rounds = options.rounds or (2 if options.quick else 10)
    rows: dict[str, dict] = {}
    for rival in contenders[1:]:
        for name in options.model or defaults:
            row = benchmark(name, options.batch or defaults.get(name, 64), rival, rounds, cores)
            show(row)
            rows[name] = row | rows.get(name, {})  # what both races say is of the first
    print(json.dumps({"benchmark": "mae_step", "rows": list(rows.values())}))


if __name__ == "__main__":
    main()
