"""What do augmentations do to an image, and what are they worth where there are few images? A gallery, and a table.

    python examples/augmentations.py --gallery-only                  # pictures of ten shapes, generated: no download
    python examples/augmentations.py                                 # the pictures, then the table
    python examples/augmentations.py --dataset mnist --data-dir DIR  # downloaded to DIR where it is missing
    python examples/augmentations.py --dataset folder:PATH --names erasing,mixup,all

The gallery shows one image under every augmentation of ``minivit/data/augment``, written as ``--augment`` of
``train_vit.py`` takes it: three strengths, three draws of each. What is done with some probability is done for certain
here. ``smoothing`` has no picture, as it changes labels only. A second picture shows the operations on images that the
policies (RandAugment and others) draw from.

For the table a small Vision Transformer is trained on few images: as they are, with crop and flip, with these and one
other augmentation, and with these and all. "All" are the five of DeiT: of the policies, which take each other's place,
it has RandAugment. Crop and flip are what suits the data set: digits have a left and a right, and so MNIST is cropped
and never flipped. Every training sees as many images, and it is repeated over some seeds. What is said of augmentations
is held against the accuracies; that on the training images, as they are, says how much was learned by heart.

It leaves a folder ``runs/augmentations-<data set>/``: the pictures ``gallery.png``, ``operations.png`` and
``ablation.png``, and the figures of each run. Ctrl-C ends it, and the same command goes on with the runs that are
missing. The last line printed is a JSON object.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from claims import Claim, compare, plus_minus, tell
from pretrain_mae import denormalise
from running import recipe_of, sentences
from sweep import GOES_ON, Figures, Job, by_variant, spread, sweep
from train_vit import RECIPES, first_of_each_class
from trial import images_of, load_images, made_for, patches_for, settle_trial, train, trial_options, visits

from minivit.data import Dataset, Loader
from minivit.data.augment import GaussianBlur, RandomErasing, Solarization, augmentations
from minivit.data.augment.color import brightness, contrast, grayscale, hue, saturation
from minivit.data.augment.filters import gaussian_blur, sharpness, smooth
from minivit.data.augment.geometry import rotate, shear_x, shear_y, translate_x, translate_y
from minivit.data.augment.levels import autocontrast, equalize, invert, posterize, solarize, solarize_add
from minivit.models import VisionTransformer, create_model
from minivit.training import evaluate

ADDED = {  # in a row of the table: what comes after crop and flip
    "resized_crop": "resized_crop=0.3",
    "color_jitter": "color_jitter",
    "threeaugment": "threeaugment",
    "autoaugment": "autoaugment=cifar10",
    "trivialaugment": "trivialaugment",
    "randaugment": "randaugment",
    "erasing": "erasing",
    "mixup": "mixup",
    "cutmix": "cutmix",
    "repeated": "repeated",
    "all": "randaugment,erasing,mixup,cutmix,repeated",
}
LOOKS = 4  # how often a training looks at the test images
Table = dict[str, dict[str, np.ndarray]]  # {variant: {figure: one value a seed}}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    trial_options(parser, train_images=1_000)
    add = parser.add_argument
    add("--gallery-only", action="store_true", help="draw the gallery and stop")
    add("--visits", type=int, default=40_000, help="images that a training sees: each of its own many times")
    add("--base", metavar="NAMES", help="what suits these images (default by data set, such as crop=2,flip)")
    add("--names", default=",".join(ADDED), help="what is added to that: some of %(default)s")
    args = settle_trial(parser.parse_args(arguments), "augmentations")
    args.names = args.names.split(",")
    if unknown := [name for name in args.names if name not in ADDED]:
        raise ValueError(f"--names must be some of {','.join(ADDED)}, got {','.join(unknown)}")
    args.base = base_of(args.dataset) if args.base is None else args.base
    if not args.base:
        raise ValueError("--base must name an augmentation, such as crop=2, got none")
    for more in ("", *(ADDED[name] for name in args.names)):
        augmentations(f"{args.base},{more}")  # says what cannot be
    return args


def base_of(dataset: str) -> str:
    """Crop and flip, as far as they suit a data set.

    >>> base_of("mnist"), base_of("cifar10")
    ('crop=1', 'crop=2,flip')
    """
    if dataset == "shapes":
        return "crop=4,flip"  # its recipe has neither: it is for ten times as many images
    recipe = recipe_of(dataset, RECIPES)
    return f"crop={recipe.crop}" + (",flip" if recipe.flip else "")


def main(arguments: list[str] | None = None) -> dict:
    started, args = time.monotonic(), parse(arguments)
    job = images_of(args)
    train_set, test_set = load_images(job)
    if len(train_set) < 3:
        raise ValueError(f"--train-images must be at least 3, for the gallery; there are {len(train_set)}")
    if args.visits < LOOKS * len(train_set) and not args.gallery_only:
        raise ValueError(f"--visits must be at least {LOOKS} times the {len(train_set)} images, got {args.visits}")
    make_model(job | {"seed": 0}, train_set)  # what cannot be is said before the first run
    print(f"{train_set!r}, {len(test_set)} to test\n{args.run_dir}")
    args.run_dir.mkdir(parents=True, exist_ok=True)
    said = {"example": "augmentations", "dataset": args.dataset.partition(":")[0], "run_dir": str(args.run_dir)}
    draw_gallery(train_set, args.run_dir)
    if args.gallery_only:
        return said

    variants = {"none": "", "base": args.base} | {name: f"{args.base},{ADDED[name]}" for name in args.names}
    job |= {"train_images": len(train_set), "visits": args.visits, "epochs": LOOKS}
    jobs = [
        job | {"variant": variant, "augment": augment, "seed": seed}
        for seed in range(args.seeds)
        for variant, augment in variants.items()
    ]
    table = by_variant(sweep(run, jobs, args.run_dir / "figures", "training"), "variant")
    claims = judge(table, args.base)
    print(f"\n{as_text(table, args.base)}\n\n{tell(claims, args.seeds)}\n")
    draw_ablation(table, args.base, args.run_dir / "ablation.png")
    return said | {
        "train_images": len(train_set), "visits": args.visits, "seeds": args.seeds, "base": args.base,
        **{
            f"{variant}_{measure}{suffix}": value
            for variant, figures in table.items()
            for measure in ("accuracy", "train_accuracy")
            for suffix, value in zip(("", "_sd"), spread(figures[measure].tolist()))
        },
        **{f"held_{claim.key}": claim.held for claim in claims},
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


# --- the gallery -------------------------------------------------------------------------------------------------

DRAWS, EPOCH = 3, 1198  # many were looked at: in this epoch the three draws are of many kinds


def named(*texts: str) -> list[tuple[str, list[dict]]]:
    return [(text, [augmentations(text)]) for text in texts]


# A row: for each of its blocks what is written over it, and arguments of a Loader. One of them gives three draws. Of
# several, where nothing is left to chance, each gives one image.
GALLERY = {
    "crop": named("crop=2", "crop=4", "crop=8"),
    "resized_crop": named("resized_crop=0.6", "resized_crop=0.3", "resized_crop=0.08"),
    "flip, grayscale,\nsolarize, blur": [
        ("flip=1; grayscale=1", [augmentations("flip=1"), augmentations("grayscale=1")]),
        ("solarize=1, from 192; 128; 64", [{"augment": [Solarization(1, level)]} for level in (192, 128, 64)]),
        ("blur=1, sigma 0.02; 0.04; 0.08", [{"augment": [GaussianBlur(1, (s, s))]} for s in (0.02, 0.04, 0.08)]),
    ],
    "color_jitter": named("color_jitter=0.2", "color_jitter=0.4", "color_jitter=0.8"),
    "threeaugment": named("threeaugment=0.1", "threeaugment=0.3", "threeaugment=0.8"),
    "autoaugment,\ntrivialaugment": named("autoaugment=cifar10", "autoaugment=imagenet", "trivialaugment"),
    "randaugment": named(*(f"randaugment=rand-m{level}-p1-inc1" for level in (3, 6, 9))),
    "erasing": [(f"erasing=1, area {a}", [{"augment": [RandomErasing(1, (a, a))]}]) for a in (0.05, 0.15, 0.33)],
    "mixup": named("mixup=0.2,mix=elem", "mixup=1,mix=elem", "mixup=8,mix=elem"),
    "cutmix": named("cutmix=0.2,mix=elem", "cutmix=1,mix=elem", "cutmix=8,mix=elem"),
    "repeated\n(three of a batch)": named("crop=4,repeated=1", "crop=4,repeated=2", "crop=4,repeated=3"),
}
OPERATIONS = {  # what their number is, and three of them
    shear_x: ("slope", 0.1, 0.3, 0.6), shear_y: ("slope", 0.1, 0.3, 0.6), translate_x: ("share", 0.1, 0.2, 0.4),
    translate_y: ("share", 0.1, 0.2, 0.4), rotate: ("degrees", 10, 30, 90), brightness: ("factor", 0.4, 1.4, 1.9),
    contrast: ("factor", 0.2, 0.6, 1.8), saturation: ("factor", 0, 0.5, 1.8), hue: ("turn", 0.1, 0.25, 0.5),
    sharpness: ("factor", 0, 3, 8), gaussian_blur: ("sigma", 0.5, 1, 2), posterize: ("bits", 4, 2, 1),
    solarize: ("from", 192, 128, 64), solarize_add: ("amount", 30, 60, 110),
}  # fmt: skip
FIXED = ((autocontrast, equalize, invert), (grayscale, smooth))  # those that take no number, in two rows
Rows = list[tuple[str, list[tuple[str, np.ndarray]]]]  # for each row its name, and its blocks: title, images


def gallery(data: Dataset) -> Rows:
    """One image under every augmentation. What is mixed in is an image of another class."""
    three = data.subset(first_of_each_class(data.labels.tolist(), len(data.classes))[:-4:-1])
    pair = three.subset([0] * DRAWS + [1] * DRAWS)  # the partner of an image lies as far from the end of a batch
    rows = []
    for name, blocks in GALLERY.items():
        row = [("original", three.images[:1])]
        for title, settings in blocks:
            images = [made(three if "repeats" in loader else pair, loader) for loader in settings]
            row.append((title, images[0] if len(images) == 1 else np.concatenate([x[:1] for x in images])))
        rows.append((name, row))
    return rows


def made(data: Dataset, loader: dict) -> np.ndarray:
    """The first images of a batch, with colours in [0, 1]: the same every time, as what is drawn has a key."""
    batch = Loader(data, len(data), shuffle=False, prefetch=0, **loader).batch(EPOCH, number=0)
    return denormalise(data, batch.images[:DRAWS])


def operations(image: np.ndarray) -> Rows:
    """The image (1, C, H, W) after each operation."""
    rows = [
        (operation.__name__, [(f"{what} {number:g}", operation(image, np.array([number]))) for number in numbers])
        for operation, (what, *numbers) in OPERATIONS.items()
    ]
    rows += [("", [(operation.__name__, operation(image)) for operation in line]) for line in FIXED]
    return [(name, [("original", image), *blocks]) for name, blocks in rows]


def draw_gallery(data: Dataset, run_dir: Path) -> None:
    try:
        import figures
    except ImportError:
        print("no pictures are drawn: they need matplotlib, pip install 'minivit[examples]'")
        return
    rows = gallery(data)
    figures.draw_image_blocks(rows, run_dir / "gallery.png")
    original = rows[0][1][0][1]
    figures.draw_image_blocks(operations(original), run_dir / "operations.png", across=2)
    print(f"pictures in {run_dir}: gallery, operations")


# --- one training ------------------------------------------------------------------------------------------------


def make_model(job: Job, data: Dataset) -> VisionTransformer:
    return create_model("vit_nano_" + patches_for(job["dataset"]), seed=job["seed"], **made_for(data))


def run(job: Job) -> Figures:
    """Train with the augmentations ``job["augment"]`` from one seed; how often is it right, of what it saw and not?"""
    train_set, test_set = load_images(job)
    model = make_model(job, train_set)
    seen = visits(train_set, job["visits"] // job["epochs"])
    result = train(model, seen, test_set, job, **augmentations(job["augment"]))
    known = evaluate(model, Loader(train_set, 250, shuffle=False)).accuracy
    return {"accuracy": result.test_accuracy, "train_accuracy": known, "seconds": result.seconds}


# --- what came out -----------------------------------------------------------------------------------------------


def label_of(variant: str, base: str) -> str:
    """
    >>> [label_of(variant, "crop=2,flip") for variant in ("none", "base", "mixup")]
    ['none', 'crop=2,flip', '+ mixup']
    """
    return {"none": "none", "base": base, "all": "+ all"}.get(variant) or f"+ {ADDED[variant]}"


def as_text(table: Table, base: str) -> str:
    """Mean ± standard deviation over the seeds; the gain is that over crop and flip of the same seed."""
    lines = [f"{'':26}{'test accuracy, %':>18}{'on the training images':>25}{'gain, points':>15}"]
    for variant, figures in table.items():
        gain = "" if variant == "base" else plus_minus(figures["accuracy"] - table["base"]["accuracy"], 100)
        known = plus_minus(figures["train_accuracy"], 100)
        lines.append(f"{label_of(variant, base):26}{plus_minus(figures['accuracy'], 100):>18}{known:>25}{gain:>15}")
    return "\n".join(lines)


def judge(table: Table, base: str) -> list[Claim]:
    """What is said of augmentations, held against the accuracies of all seeds."""

    def higher(key: str, says: str, variant: str, than: str) -> Claim:
        ours, other = table[variant]["accuracy"], table[than]["accuracy"]
        numbers = f"{plus_minus(ours, 100)} % against {plus_minus(other, 100)} %"
        return Claim(key, says, compare(ours, other) == 1, numbers)

    single = [name for name in table if name not in ("none", "base", "all")]
    found = [higher("base", f"{base} helps.", "base", "none")]
    found += [higher(name, f"Added to {base}, {name} helps.", name, "base") for name in single]
    if "all" not in table:
        return found
    found.append(higher("all", f"Added to {base}, all together help.", "all", "base"))
    if single:
        best = max(single, key=lambda name: table[name]["accuracy"].mean())
        found.append(higher("all_best", f"All together help more than the best of them alone, {best}.", "all", best))
    gaps = [table[name]["train_accuracy"] - table[name]["accuracy"] for name in ("all", "none")]
    numbers = f"{plus_minus(gaps[0], 100)} points against {plus_minus(gaps[1], 100)} without any"
    says = "With all, accuracy on the training images is less far above that on others."
    return [*found, Claim("gap", says, compare(*gaps) == -1, numbers)]


def draw_ablation(table: Table, base: str, path: Path) -> None:
    try:
        import figures
    except ImportError:
        return  # it was said before the runs
    rows = {label_of(variant, base): 100 * found["accuracy"] for variant, found in table.items()}
    figures.draw_spreads(rows, path, "test accuracy, %", {base: float(rows[base].mean())})
    print(f"picture: {path}")


if __name__ == "__main__":
    with sentences("augmentations", GOES_ON):
        print(json.dumps(main()))
