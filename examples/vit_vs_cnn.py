"""What have a Vision Transformer and a CNN learned from the same images? Measured, drawn, and held against claims.

    python examples/vit_vs_cnn.py                                         # ten shapes, generated: no download
    python examples/vit_vs_cnn.py --dataset mnist --data-dir DIR          # downloaded to DIR where it is missing
    python examples/vit_vs_cnn.py --dataset folder:PATH --conflict DIR    # your own images, and cue-conflict images
    python examples/vit_vs_cnn.py --vit FILE --cnn FILE                   # two checkpoints, without training

Both are trained from some seeds, on the same images, by the same recipe, for as many steps. Of each pair is measured:

    CKA           do two layers see the same images as alike? Within each network, and between the two
    few-shot      how well does a linear classifier tell the classes by a layer's features, from k examples of each?
    attention     how far do the ViT's heads look?
    shape bias    by which do they name an image whose shape and texture are at odds? And do they err on the same ones?

What CKA and attention show is compared with the same networks before training, for some of it is there by then.
In the generated shapes, texture and silhouette are tied: both tell the class equally well. Only then the networks are
shown silhouettes with the texture of another class. For other data, ``--conflict`` is a folder of images named as in
``minivit/data/cue_conflict.py``; those are taken whose categories the networks have classes for, as CIFAR-10 has.

It leaves a folder ``runs/vit_vs_cnn-<data set>/``: the networks, the figures of each run, and a page of pictures,
``page.png``. Ctrl-C ends it, and the same command goes on with the runs that are missing. The last line printed is a
JSON object.
"""

import argparse
import json
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from claims import tell
from image_files import taken_by, tells_classes
from running import sentences
from sweep import GOES_ON, Figures, Job, by_variant, sweep
from trial import images_of, load_images, made_for, patches_for, settle_trial, train, trial_options
from vit_vs_cnn_page import KINDS, Setting, as_text, draw, judge, over_seeds

from minivit.analysis.cka import cka
from minivit.analysis.few_shot import SHOTS, few_shot_layers
from minivit.analysis.heads import attention_distance, measure_heads
from minivit.analysis.shape_bias import (
    Members,
    decide,
    error_consistency,
    known_images,
    shape_bias,
    shape_bias_by_class,
)
from minivit.data import Dataset, Loader
from minivit.data.cue_conflict import IMAGENET, by_name, cue_conflict
from minivit.data.shapes import shapes
from minivit.models import ResNet, VisionTransformer, create_model, list_models
from minivit.models.layers import layers_of
from minivit.nn import Module
from minivit.training import TrainConfig, load_checkpoint, load_model, predict

FAMILIES = {"vit": VisionTransformer, "cnn": ResNet}
BATCH = 250  # images of which CKA compares all pairs


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, cnns = parser.add_argument, list_models(ResNet)
    trial_options(parser)
    add("--epochs", type=int, default=3, help="passes over the training images")
    add("--vit", metavar="NAME", help="a Vision Transformer to train, or a checkpoint (default: by data set)")
    add("--cnn", metavar="NAME", default="resnet8", help=f"one of {', '.join(cnns)}, or a checkpoint")
    add("--conflict", metavar="DIR", help="a folder of cue-conflict images, for data sets other than shapes")
    args = settle_trial(parser.parse_args(arguments), "vit_vs_cnn", at_least=4)
    args.vit = args.vit or "vit_nano_" + patches_for(args.dataset)
    given = {kind: getattr(args, kind) for kind in KINDS}
    args.loaded = all(name.endswith(".npz") for name in given.values())
    if not args.loaded and any(name not in list_models(FAMILIES[kind]) for kind, name in given.items()):
        raise ValueError(
            "--vit and --cnn must be names of a Vision Transformer and a ResNet, such as vit_nano_patch4_32 and "
            f"resnet20, or both a checkpoint, which ends in .npz, got {args.vit} and {args.cnn}"
        )
    if args.conflict and args.dataset == "shapes":
        raise ValueError(f"--conflict is for data sets other than shapes, which has such images; got {args.conflict}")
    return args


def main(arguments: list[str] | None = None) -> dict:
    started, args = time.monotonic(), parse(arguments)
    TrainConfig(args.run_dir, args.epochs)  # what cannot be is said before anything is trained
    images = images_of(args) | {"epochs": args.epochs}
    job = images | {"conflict": args.conflict}
    train_set, test_set = load_sets(job)
    check_counts(train_set)
    conflict, _ = load_conflict(job, train_set)
    if args.loaded:
        pairs = [job | {"vit": args.vit, "cnn": args.cnn}]
        models, _ = load_networks(pairs[0], train_set)
    else:
        trainings, pairs = plan(args, images, len(train_set))
        models = {kind: create_model(getattr(args, kind), **made_for(train_set)) for kind in KINDS}
    parameters = {kind: model.num_parameters() for kind, model in models.items()}
    print(f"{train_set!r}, {len(test_set)} to test, and {len(conflict) if conflict else 'none'} of conflicting cues")
    print(", ".join(f"{getattr(args, kind)}: {count:,} parameters" for kind, count in parameters.items()))
    print(args.run_dir, flush=True)

    if args.loaded:  # the figures are not kept: a file of this name may hold other weights the next time
        args.run_dir.mkdir(parents=True, exist_ok=True)
        results = [(pairs[0], measure(pairs[0]))]
    else:
        sweep(train_one, trainings, args.run_dir / "figures", "training")
        results = sweep(measure, pairs, args.run_dir / "figures", "measuring")
    (found,) = by_variant(results, "dataset").values()
    table = {name: values.astype(float) for name, values in found.items()}  # None, where nothing was found, is NaN now

    setting = Setting(
        {kind: states(model) for kind, model in models.items()}, parameters, (conflict or test_set).classes, SHOTS,
        1 / len(test_set.classes), test_set.images.shape[-1], evenly(models["vit"]),
    )  # fmt: skip
    claims = judge(table, setting)
    print(f"\n{as_text(table, setting)}\n\n{tell(claims, len(results))}")
    if args.loaded:
        print("\nThis was one pair of networks: ± 0 is not their spread, of which nothing is known.")
    draw(table, setting, args.run_dir / "page.png")
    return {
        "example": "vit_vs_cnn", "dataset": args.dataset.partition(":")[0], "vit": args.vit, "cnn": args.cnn,
        "train_images": len(train_set), "epochs": None if args.loaded else args.epochs, "seeds": len(results),
        "shots": SHOTS,
        **{f"layers_{kind}": names for kind, names in setting.layers.items()},
        **{f"parameters_{kind}": count for kind, count in parameters.items()},
        **{
            f"{name}{suffix}": np.where(np.isnan(value), None, value.round(4)).tolist()
            for name, values in table.items()
            for suffix, value in zip(("", "_sd"), over_seeds(values))
        },
        **{f"held_{claim.key}": claim.held for claim in claims},
        "seconds": round(time.monotonic() - started, 1), "run_dir": str(args.run_dir),
    }  # fmt: skip


def plan(args: argparse.Namespace, images: Job, count: int) -> tuple[list[Job], list[Job]]:
    """The trainings, each of which leaves a network in a folder, and then the pairs of networks of the same seed."""
    trainings, pairs = [], []
    for seed in range(args.seeds):
        pair = images | {"conflict": args.conflict}
        for kind in KINDS:
            name = getattr(args, kind)
            folder = args.run_dir / f"{name}-{count}-{args.epochs}-{seed}"
            trainings.append(images | {"model": name, "seed": seed, "folder": str(folder)})
            pair[kind] = str(folder / "last.npz")
        pairs.append(pair)
    return trainings, pairs


# --- which images ------------------------------------------------------------------------------------------------


def load_sets(job: Job) -> tuple[Dataset, Dataset]:
    """Training and test set; of shapes those in which silhouette and texture agree."""
    if job["dataset"] != "shapes":
        return load_images(job)
    if job["train_images"] < 1:
        raise ValueError(f"--train-images must be at least 1, got {job['train_images']}")
    return _agreeing(job["size"] or 32, job["train_images"], job["test_images"])


@lru_cache(maxsize=1)
def _agreeing(size: int, train_images: int, test_images: int) -> tuple[Dataset, Dataset]:
    train_set = shapes(train_images, size=size, relation="agree")
    return train_set, shapes(test_images, size=size, relation="agree", split="test").normalised_like(train_set)


def check_counts(data: Dataset) -> None:
    """Raises ValueError where a class has fewer images than the probes are shown."""
    counts = np.bincount(data.labels, minlength=len(data.classes))
    if counts.min() < max(SHOTS):
        raise ValueError(
            f"--train-images must leave {max(SHOTS)} images of every class for the few-shot probes; "
            f"of {data.classes[counts.argmin()]} there are {counts.min()}"
        )


def load_conflict(job: Job, train_set: Dataset) -> tuple[Dataset | None, Members]:
    """Images with the shape of one class and the texture of another, and which classes of a network are meant by them.

    Those of shapes are the test images, with other textures. None where there are no such images.
    """
    size = train_set.images.shape[-1]
    if job["dataset"] == "shapes":
        data = shapes(job["test_images"], size=size, relation="conflict", split="test")
        return data, {name: [number] for number, name in enumerate(data.classes)}
    if job["conflict"] is None:
        return None, {}
    members = IMAGENET if len(train_set.classes) == 1000 else by_name(train_set.classes)
    data = known_images(cue_conflict(job["conflict"], size), members)
    return data.subset(np.flatnonzero(data.labels != data.extra["texture"])), members


# --- one training, and one pair of networks ----------------------------------------------------------------------


def train_one(job: Job) -> Figures:
    """Train one network from one seed, and keep it."""
    train_set, test_set = load_sets(job)
    options = made_for(train_set) | {"seed": job["seed"]}
    meta = {"model": job["model"], "arguments": options}
    model = create_model(job["model"], **options)
    result = train(model, train_set, test_set, job, folder=Path(job["folder"]), meta=meta)
    return {"accuracy": result.test_accuracy, "seconds": result.seconds}


def load_networks(job: Job, data: Dataset) -> tuple[dict[str, Module], dict[str, tuple]]:
    """Both networks of a pair, and the mean and deviation by which images are normalised for them.

    Raises ValueError where they are not a ViT and a CNN for images such as ``data``, or were trained on different ones.
    """
    models, known = {}, []
    for kind, family in FAMILIES.items():
        models[kind], meta = load_model(job[kind])
        if not isinstance(models[kind], family) or not tells_classes(models[kind]):
            raise ValueError(f"--{kind} must be a checkpoint of a {family.__name__}, {job[kind]} is of {meta['model']}")
        (height, width), channels = taken_by(models[kind])
        if (channels, height, width) != data.images.shape[1:] or meta.get("classes") != data.classes:
            raise ValueError(
                f"--{kind} must be a checkpoint for the images and classes of {data!r}, {job[kind]} is for "
                f"{channels}×{height}×{width} pixels and the classes {', '.join(meta.get('classes', [])) or 'unknown'}"
            )
        known.append({name: tuple(meta[name]) for name in ("mean", "std")})
    if known[0] != known[1]:
        raise ValueError(f"--vit and --cnn must be trained on the same images, these knew other ones: {known}")
    return models, known[0]


def states(model: Module) -> list[str]:
    """Its layers: what the first block is given, and what each block gives. A norm or a mean at the end is none."""
    return layers_of(model)[:-1]


def measure(job: Job) -> Figures:
    """What a ViT and a CNN have learned; and, as ``start_``, CKA and attention before they learned anything."""
    models, known = load_networks(job, load_sets(job)[0])
    train_set, test_set = (replace(data, **known) for data in load_sets(job))
    layers = {kind: states(model) for kind, model in models.items()}
    batches, found, right = Loader(test_set, BATCH), {}, []  # shuffled, as CKA wants them, and in epoch 0 always alike

    def alike(a: Module, b: Module | None, *names: list[str]) -> list[list[float]]:
        return cka(a, b, batches, *names, progress=False).matrix.tolist()

    for kind, model in models.items():
        right.append(predict(model, test_set.normalise(test_set.images)).argmax(1) == test_set.labels)
        found[f"accuracy_{kind}"] = float(right[-1].mean())
        found[f"cka_{kind}"] = alike(model, None, layers[kind])
        found[f"start_cka_{kind}"] = alike(untrained(job[kind]), None, layers[kind])
        for pool in ("mean", "class") if getattr(model, "cls_token", None) is not None else ("mean",):
            told = few_shot_layers(model, train_set, test_set, pool, layers[kind], SHOTS, progress=False)
            found[f"few_shot_{kind}_{pool}"] = [accuracies.mean(1).tolist() for accuracies in told.values()]
    found["cka_both"] = alike(*models.values(), *layers.values())
    found["distance"] = distances(models["vit"], batches)
    found["start_distance"] = distances(untrained(job["vit"]), batches)
    found["kappa"] = error_consistency(*right).kappa
    conflict, members = load_conflict(job, train_set)
    return found | (cues(models, replace(conflict, **known), members) if conflict else {})


def untrained(path: str) -> Module:
    """The network of a checkpoint with random weights, as it began."""
    meta = load_checkpoint(path).meta
    return create_model(meta["model"], **meta["arguments"])


def distances(vit: Module, batches: Loader) -> list[list[float]]:
    """How far the heads of each layer look, in pixels: (layers, heads), NaN where a layer has fewer than others."""
    layers = measure_heads(vit, batches, progress=False).distance
    most = max(len(heads) for heads in layers)
    return [np.pad(heads, (0, most - len(heads)), constant_values=np.nan).tolist() for heads in layers]


def cues(models: dict[str, Module], data: Dataset, members: Members) -> Figures:
    """By which of shape and texture the networks name images in which the two are at odds."""
    shape, texture, found, right = data.labels, data.extra["texture"], {}, []
    for kind, model in models.items():
        decisions = decide(predict(model, data.normalise(data.images)), members, data.classes)
        whole = shape_bias(decisions, shape, texture)
        by_class = shape_bias_by_class(decisions, shape, texture, data.classes).values()
        found |= {f"bias_{kind}": whole.bias, f"coverage_{kind}": whole.coverage}
        found[f"bias_by_class_{kind}"] = [of_class.bias for of_class in by_class]
        found[f"coverage_by_class_{kind}"] = [of_class.coverage for of_class in by_class]
        right.append(decisions == shape)
    return found | {"kappa_conflict": error_consistency(*right).kappa}


def evenly(vit: VisionTransformer) -> float:
    """How far a head looks that looks everywhere alike, in pixels."""
    patches = vit.patch_embed
    weights = np.ones((1, 1, patches.num_patches, patches.num_patches))
    return attention_distance(weights, patches.grid_size, patches.patch_size).item()


if __name__ == "__main__":
    with sentences("vit_vs_cnn", GOES_ON):
        print(json.dumps(main()))
