"""What do a CNN and a Vision Transformer take for granted about images? Move the image, shuffle its parts, and see.

    python examples/inductive_bias.py                                     # ten shapes, generated: no download
    python examples/inductive_bias.py --dataset mnist --data-dir DIR      # downloaded to DIR where it is missing
    python examples/inductive_bias.py --dataset folder:PATH --size 32     # your own images, one folder a class

First the networks as they are built, with random weights. A part f of a network is *equivariant* if it does not matter
whether its input is moved, or its output: f(move(x)) = move(f(x)). How far are the two apart, relative to ‖f(x)‖, if an
image is shifted by some pixels, or if its patches are shuffled?

Then, over some seeds, a CNN, a Vision Transformer, and the same without positions are trained, on the same images and
without any augmentation, so that a shift is new to all of them. They are tested on images that are shifted along both
axes, where pixels of the edge are repeated, and on images that are cut into squares and put together in another order.

It leaves a folder ``runs/inductive_bias-<data set>/``: the figures of each run, and the pictures ``equivariance.png``,
``robustness.png`` and ``images.png`` (what the networks are shown). Ctrl-C ends it, and the same command goes on with
the runs that are missing. The last line printed is a JSON object.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim, compare, plus_minus, tell
from running import sentences
from sweep import GOES_ON, Figures, Job, by_variant, sweep
from trial import images_of, load_images, made_for, patches_for, settle_trial, train, trial_options

from minivit.autograd import Tensor
from minivit.data import Dataset
from minivit.models import create_model
from minivit.models.mae import patchify, unpatchify
from minivit.nn import Conv2d, MaxPool2d, Module, evaluating, observe
from minivit.random import key, uniform
from minivit.training import TrainConfig, predict

VARIANTS = {"cnn": "CNN", "vit": "ViT", "vit_none": "ViT without positions"}
NO_POSITIONS = {"pos_embed": "none", "global_pool": "avg", "class_token": False}
SHIFTS = range(9)  # px
SIDES = (16, 14, 8, 7, 4)  # px, of the squares that are shuffled: those that divide the images
FEW = 4  # images, with which equivariance is measured, and which are shown
DRAWN = ("convolution", "CNN, stage 1", "CNN, stage 2", "CNN, stage 3", "patch embedding")
POSITIONS = ("none", "learn", "sincos_timm", "rope_axial")
PARTS = {  # of a Vision Transformer, from the images to the answer
    "patches": "patch_embed", "layer norm": "blocks.0.norm1", "attention": "blocks.0.attn", "MLP": "blocks.0.mlp",
    "all blocks": "norm", "logits": "",
}  # fmt: skip
Errors = dict[str, list[float]]  # {part of a network, or position embedding: an error for each shift, or part}
Table = dict[str, dict[str, np.ndarray]]  # {variant: {"shifted" or "shuffled": accuracies (seeds, changes)}}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    trial_options(parser, train_images=8_000, test_images=1_000)
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training images")
    return settle_trial(parser.parse_args(arguments), "inductive_bias")


def main(arguments: list[str] | None = None) -> dict:
    started, args = time.monotonic(), parse(arguments)
    TrainConfig(args.run_dir, args.epochs)  # what cannot be is said before anything is trained
    train_set, test_set = load_images(images_of(args))
    job = images_of(args) | {"train_images": len(train_set), "epochs": args.epochs}
    jobs = [job | {"variant": variant, "seed": seed} for seed in range(args.seeds) for variant in VARIANTS]
    models = {title: make_model(variant, test_set, args.dataset) for variant, title in VARIANTS.items()}
    print(f"{train_set!r}, {len(test_set)} to test\n{args.run_dir}")
    print("parameters: " + ", ".join(f"{title} {model.num_parameters():,}" for title, model in models.items()))

    by_shift, by_shuffle = shift_errors(test_set, args.dataset), shuffle_errors(test_set, args.dataset)
    print(f"\n{errors_as_text(by_shift, by_shuffle)}", flush=True)
    table = by_variant(sweep(run, jobs, args.run_dir / "figures", "training"), "variant")
    sides, patch = sides_of(test_set.images), models["ViT"].patch_embed.patch_size[0]
    claims = judge(table, sides, patch, 1 / len(test_set.classes))
    print(f"\n{as_text(table, sides)}\n\n{tell(claims, args.seeds)}")
    draw(by_shift, by_shuffle, table, test_set, args.run_dir)
    return {
        "example": "inductive_bias", "dataset": args.dataset.partition(":")[0], "train_images": len(train_set),
        "epochs": args.epochs, "seeds": args.seeds, "shifts": list(SHIFTS), "sides": sides,
        "shift_errors": by_shift, "shuffle_errors": by_shuffle,
        **{f"{v}_{change}": x.mean(0).tolist() for v, found in table.items() for change, x in found.items()},
        **{f"{v}_{change}_sd": x.std(0, ddof=1).tolist() for v, found in table.items() for change, x in found.items()},
        **{f"held_{claim.key}": claim.held for claim in claims},
        "seconds": round(time.monotonic() - started, 1), "run_dir": str(args.run_dir),
    }  # fmt: skip


def make_model(variant: str, data: Dataset, dataset: str, **options: Any) -> Module:
    """A network for these images; ``options`` replace its arguments."""
    name = "resnet8" if variant == "cnn" else "vit_nano_" + patches_for(dataset)
    return create_model(name, **made_for(data) | (NO_POSITIONS if variant == "vit_none" else {}) | options)


def run(job: Job) -> Figures:
    """Train one network from one seed; how often is it right on images that were changed?"""
    train_set, test_set = load_images(job)
    model = make_model(job["variant"], train_set, job["dataset"], seed=job["seed"])
    train(model, train_set, test_set, job, augment=[])

    def accuracy(images: np.ndarray) -> float:
        return float((predict(model, test_set.normalise(images)).argmax(1) == test_set.labels).mean())

    return {
        "shifted": [accuracy(shifted(test_set.images, by)) for by in SHIFTS],
        "shuffled": [accuracy(shuffled(test_set.images, side)) for side in sides_of(test_set.images)],
    }


def shifted(images: np.ndarray, by: int) -> np.ndarray:
    """Images (n, C, H, W), each moved by so many pixels along both axes, in one of four directions, drawn by its index.

    Where an image comes from, the pixels of its edge are repeated; what leaves on the other side is lost.
    """
    padded = np.pad(images, ((0, 0), (0, 0), (by, by), (by, by)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[2:], axis=(2, 3))
    samples = np.arange(len(images))
    top, left = 2 * by * (uniform(key(0, "direction"), samples, (2,)) < 0.5).T
    return windows[samples, :, top, left]


def shuffled(images: np.ndarray, side: int) -> np.ndarray:
    """Images (n, C, H, W), each cut into squares of ``side`` pixels, which come in an order drawn by its index.

    Raises ValueError where such squares do not divide the images.
    """
    height, width = images.shape[2:]
    if height % side or width % side:
        raise ValueError(f"side must divide images of {height} × {width} pixels, got {side}")
    squares = patchify(images, (side, side))  # (n, squares, side · side · C)
    squares = np.take_along_axis(squares, order_of(squares), axis=1)
    return unpatchify(squares, (side, side), (height // side, width // side))


def order_of(squares: np.ndarray) -> np.ndarray:
    """For each image of (n, squares, numbers), which square comes first, second, …: (n, squares, 1)."""
    return uniform(key(0, "order"), np.arange(len(squares)), squares.shape[1:2]).argsort(axis=1)[:, :, None]


def sides_of(images: np.ndarray) -> list[int]:
    return [side for side in SIDES if all(length % side == 0 for length in images.shape[2:])]


# --- networks as they are built: f(move(x)) against move(f(x)) -----------------------------------------------------


def outputs(model: Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """What each part of a network makes of these images, by the name of the part; that of the network itself is ""."""
    names, found = {id(part): name for name, part in model.named_modules()}, {}
    with evaluating(model), observe(lambda part, inputs, y: found.update({names[id(part)]: y.data})):
        model(Tensor(images))
    return found


def distance(y: np.ndarray, expected: np.ndarray) -> float:
    """‖y − expected‖ / ‖expected‖."""
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


def shift_errors(data: Dataset, dataset: str) -> Errors:
    """The error of parts of the networks for images that move to the right, by each of ``SHIFTS``.

    The images lie in the middle of zeros, with which convolutions pad too, so that no border is near: what is wrong is
    due to steps of more than a pixel. A map with steps of s px cannot move by less; between two of its places, the
    better one counts. Logits have no place, and should stay as they are.
    """
    patch = make_model("vit", data, dataset).patch_embed.patch_size[0]
    images = np.pad(data.normalise(data.images[:FEW]), [(0, 0), (0, 0), (4 * patch,) * 2, (4 * patch,) * 2])
    networks = {name: make_model(name, data, dataset, img_size=images.shape[2:]) for name in VARIANTS}
    networks |= {"strided": Conv2d(images.shape[1], 16, 3, stride=2, padding=1), "pooling": MaxPool2d(2)}
    probes = {  # network, its part, and how many pixels lie between two places of its map; 0 for logits
        "convolution": ("cnn", "conv1", 1),
        "convolution, stride 2": ("strided", "", 2),
        "max pooling, 2 × 2": ("pooling", "", 2),
        **{f"CNN, stage {i + 1}": ("cnn", f"layer{i + 1}.0", 2**i) for i in range(3)},
        "CNN, logits": ("cnn", "", 0),
        "patch embedding": ("vit", "patch_embed", patch),
        "ViT, logits": ("vit", "", 0),
        "ViT without positions, logits": ("vit_none", "", 0),
    }
    grid, seen = networks["vit"].patch_embed.grid_size, []
    for by in SHIFTS:
        seen.append({name: outputs(network, np.roll(images, by, axis=3)) for name, network in networks.items()})
        tokens = seen[by]["vit"]["patch_embed"].reshape(len(images), *grid, -1)  # (B, rows, columns, D)
        seen[by]["vit"]["patch_embed"] = tokens.transpose(0, 3, 1, 2)  # a map, as the others

    def error(by: int, network: str, part: str, step: int) -> float:
        y, before = seen[by][network][part], seen[0][network][part]
        places = {by // step, -(-by // step)} if step else {0}
        return min(distance(y, np.roll(before, n, axis=-1)) for n in places)

    return {title: [error(by, *probe) for by in SHIFTS] for title, probe in probes.items()}


def shuffle_errors(data: Dataset, dataset: str) -> Errors:
    """The error of ``PARTS`` of a Vision Transformer for images of shuffled patches, for each of ``POSITIONS``.

    Tokens should come in the new order of the patches, and logits should stay as they are.
    """
    images, errors = data.images[:FEW], {}
    for position in POSITIONS:
        model = make_model("vit_none", data, dataset, pos_embed=position)
        both = shuffled(images, model.patch_embed.patch_size[0]), images
        y, expected = (outputs(model, data.normalise(x)) for x in both)
        order = order_of(expected["patch_embed"])
        expected = {k: np.take_along_axis(v, order, axis=1) if v.ndim == 3 else v for k, v in expected.items()}
        errors[position] = [distance(y[part], expected[part]) for part in PARTS.values()]
    return errors


# --- what came out -------------------------------------------------------------------------------------------------


def errors_as_text(by_shift: Errors, by_shuffle: Errors) -> str:
    """Two tables, a row for each part of a network. What is only rounding has an exponent of −6 or less."""

    def row(title: str, errors: list[float], width: int) -> str:
        cells = (f"{e:.0e}" if 0 < e < 0.01 else f"{e:.2f}" if e else "0" for e in errors)
        return f"{title:30}" + "".join(f"{cell:>{width}}" for cell in cells)

    lines = ["‖f(move(x)) − move(f(x))‖ / ‖f(x)‖, with random weights"]
    lines += [f"{'image moved by, px':30}" + "".join(f"{by:7}" for by in SHIFTS[1:])]
    lines += [row(title, errors[1:], 7) for title, errors in by_shift.items()]
    lines += ["", f"{'patches shuffled; positions':30}" + "".join(f"{name:>14}" for name in by_shuffle)]
    return "\n".join(lines + [row(part, errors, 14) for part, *errors in zip(PARTS, *by_shuffle.values())])


def as_text(table: Table, sides: list[int]) -> str:
    """Mean ± standard deviation of the accuracies: a row for each change, a column for each network."""
    titles = [f"shifted by {by} px" for by in SHIFTS] + [f"squares of {side} px" for side in sides]
    columns = (np.hstack([found["shifted"], found["shuffled"]]).T for found in table.values())
    lines = [f"{'test accuracy, %':20}" + "".join(f"{VARIANTS[variant]:>24}" for variant in table)]
    lines += [f"{title:20}" + "".join(f"{plus_minus(x, 100):>24}" for x in xs) for title, *xs in zip(titles, *columns)]
    return "\n".join(lines)


def judge(table: Table, sides: list[int], patch: int, chance: float) -> list[Claim]:
    """What is said of CNNs and Vision Transformers, held against the accuracies of all seeds."""
    plain = {v: found["shifted"][:, 0] for v, found in table.items()}
    moved = {v: found["shifted"][:, 1:].mean(1) for v, found in table.items()}  # over all shifts
    mixed = {v: found["shuffled"][:, sides.index(patch)] for v, found in table.items()}

    def kept(v: str, after: dict[str, np.ndarray]) -> np.ndarray:
        """The share that is left of the lead over chance, which is taken to be a point at least."""
        return (after[v] - chance) / np.maximum(plain[v] - chance, 0.01)

    def told(after: dict[str, np.ndarray], *variants: str) -> str:
        shares = {v: plus_minus(kept(v, after), 100, 0) for v in variants}
        return ", ".join(f"{VARIANTS[v]} keeps {x} % ({plus_minus(after[v], 100)} % right)" for v, x in shares.items())

    def keeps_more(a: str, b: str, after: dict[str, np.ndarray]) -> tuple[bool, str]:
        return compare(kept(a, after), kept(b, after)) == 1, told(after, a, b)

    says = f"By shifts of 1 … {SHIFTS[-1]} px, on average, a CNN keeps more of its lead over chance than a ViT."
    found = [Claim("cnn_shifts", says, *keeps_more("cnn", "vit", moved))]
    found += [Claim("none_shifts", "So does a ViT without positions.", *keeps_more("vit_none", "vit", moved))]
    by_patch, by_half = (table["vit_none"]["shifted"][:, by] for by in (patch, patch // 2))
    says = f"A ViT without positions is better after a shift by a patch, {patch} px, than by half of one."
    numbers = f"{plus_minus(by_patch, 100)} against {plus_minus(by_half, 100)} %"
    found += [Claim("none_patch", says, compare(by_patch, by_half) == 1, numbers)]
    says = f"Where squares of {patch} px are shuffled, a CNN keeps more of its lead than a ViT."
    found += [Claim("cnn_squares", says, *keeps_more("cnn", "vit", mixed))]
    for v in ("cnn", "vit"):
        less = compare(kept(v, mixed), np.full_like(plain[v], 0.5)) == -1
        found += [Claim(f"{v}_order", f"There a {VARIANTS[v]} keeps less than half of it.", less, told(mixed, v))]
    same = bool(np.abs(mixed["vit_none"] - plain["vit_none"]).max() < 0.002)
    says = "A ViT without positions does not see that: no seed changes by 0.2 points."
    return found + [Claim("none_order", says, same, told(mixed, "vit_none"))]


def draw(by_shift: Errors, by_shuffle: Errors, table: Table, test_set: Dataset, run_dir: Path) -> None:
    try:
        import figures
    except ImportError:
        print("\nno pictures were drawn: they need matplotlib, pip install 'minivit[examples]'")
        return
    panels = {
        "image moved to the right, px": (SHIFTS, {part: by_shift[part] for part in DRAWN}),
        "patches shuffled: parts of a ViT, by its positions": (PARTS, by_shuffle),
    }
    figures.draw_lines(panels, run_dir / "equivariance.png", "‖f(move(x)) − move(f(x))‖ / ‖f(x)‖")

    sides, few = sides_of(test_set.images), test_set.images[:FEW]
    moved = {VARIANTS[v]: 100 * found["shifted"] for v, found in table.items()}  # (seeds, shifts)
    mixed = {VARIANTS[v]: 100 * np.hstack([f["shifted"][:, :1], f["shuffled"]]) for v, f in table.items()}
    panels = {
        "image shifted along both axes, px": (SHIFTS, moved),
        "squares shuffled, px a side": (["whole", *sides], mixed),
    }
    figures.draw_lines(panels, run_dir / "robustness.png", "test accuracy, %", {"chance": 100 / len(test_set.classes)})
    columns = {f"shifted\nby {by} px": shifted(few, by) for by in SHIFTS[::4]}
    columns |= {f"squares\nof {side} px": shuffled(few, side) for side in sides}
    figures.draw_image_table(columns, run_dir / "images.png")
    print(f"\npictures in {run_dir}: equivariance, robustness, images")


if __name__ == "__main__":
    with sentences("inductive_bias", GOES_ON):
        print(json.dumps(main()))
