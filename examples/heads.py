"""Do the heads of an attention layer say the same? Kinds of attention, and penalties that keep heads apart, compared.

    python examples/heads.py                                     # ten shapes, generated: no download
    python examples/heads.py --dataset mnist --data-dir DIR      # downloaded to DIR where it is missing
    python examples/heads.py --dataset folder:PATH --size 32     # your own images, one folder a class

A small Vision Transformer is trained with softmax attention, with normalised queries and keys, as rectified attention
(ReLA) and locality self-attention (LSA), and with softmax and each penalty of ``minivit/diversity.py``; each over some
seeds, on the same images. On test images it is measured how alike heads are, and how they look
(``minivit/analysis/heads.py``). What the book says of them is held against these numbers.

It leaves a folder ``runs/heads-<data set>/``: the figures of each run, and the pictures ``similarity.png`` and
``maps.png``. Ctrl-C ends it, and the same command goes on with the runs that are missing. The last line printed is a
JSON object.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import trial
from claims import Claim, compare, plus_minus, tell
from running import sentences
from sweep import GOES_ON, Figures, Job, by_variant, spread, sweep
from trial import images_of, load_images, made_for, settle_trial, trial_options

from minivit.analysis import attention_maps
from minivit.analysis.heads import measure_heads
from minivit.data import Dataset, Loader
from minivit.diversity import PENALTIES, HeadPenalties
from minivit.models import VisionTransformer, create_model
from minivit.objective import Classification
from minivit.training import FitResult, TrainConfig

MODEL = "vit_nano_patch4_32"
# All tokens of all layers count, as the head of the network reads their mean. Many heads, so that they can be alike.
SHAPE = {"embed_dim": 64, "depth": 4, "num_heads": 8, "global_pool": "avg", "class_token": False}
KINDS = {"softmax": {}, "qk_norm": {"qk_norm": True}, "rela": {"attn_layer": "rela"}, "lsa": {"attn_layer": "lsa"}}
VARIANTS = (*KINDS, *PENALTIES)
MEASURES = {  # how each is printed: its name, unit, factor and digits
    "accuracy": ("accuracy", "%", 100, 1),
    "similarity": ("similarity", "cosine", 1, 3),
    "divergence": ("JS divergence", "nats", 1, 3),
    "sparsity": ("sparsity", "%", 100, 1),
    "null_rows": ("null rows", "%", 100, 1),
    "entropy": ("entropy", "nats", 1, 2),
    "distance": ("distance", "px", 1, 2),
}
MEASURED, SHOWN = 500, 2  # so many test images are measured; this one is drawn
COLOURS = ("#2b6cb0", "#63b3ed", "#c53030", "#805ad5", "#2f855a", "#d69e2e", "#dd6b20", "#4a5568")
MARKERS = "ososD^vP"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common_options(__doc__.partition("\n")[0], epochs=4)
    parser.add_argument("--penalty", type=float, default=0.1, help="weight of each penalty in the loss")
    parser.add_argument(
        "--include-diagonal", action=argparse.BooleanOptionalAction, default=True,
        help="count each head as a pair with itself, as the paper does, which penalises sharp maps too",
    )  # fmt: skip
    return settle_trial(parser.parse_args(arguments), "heads", at_least=SHOWN + 1)


def main(arguments: list[str] | None = None) -> dict:
    started, args = time.monotonic(), parse(arguments)
    HeadPenalties({"margin": args.penalty})  # what cannot be is said before anything is trained
    job, test_set = begin(args)
    plain = {"penalty": 0.0, "include_diagonal": True}
    penalised = {"penalty": args.penalty, "include_diagonal": args.include_diagonal}
    jobs = [
        job | {"variant": variant, "seed": seed} | (penalised if variant in PENALTIES else plain)
        for seed in range(args.seeds)
        for variant in VARIANTS
    ]
    results = sweep(run, jobs, args.run_dir / "figures", "training")
    table = by_variant(results, "variant")
    claims = judge(table)
    print(f"\n{as_text(table)}\n\n{tell(claims, args.seeds)}")
    draw(table, [figures["maps"] for _, figures in results if "maps" in figures], test_set, args)
    return {
        "example": "heads", "dataset": args.dataset.partition(":")[0], "train_images": job["train_images"],
        "epochs": args.epochs, "seeds": args.seeds, "penalty": args.penalty,
        "include_diagonal": args.include_diagonal,
        **{
            f"{variant}_{measure}{suffix}": value
            for variant, figures in table.items()
            for measure in MEASURES
            for suffix, value in zip(("", "_sd"), spread(figures[measure].tolist()))
        },
        **{f"held_{claim.key}": claim.held for claim in claims},
        "seconds": round(time.monotonic() - started, 1), "run_dir": str(args.run_dir),
    }  # fmt: skip


def run(job: Job) -> Figures:
    """Train one variant from one seed, and measure its heads."""
    penalties = None
    if job["variant"] in PENALTIES:
        penalties = HeadPenalties({job["variant"]: job["penalty"]}, include_diagonal=job["include_diagonal"])
    trained = train(job, None, penalties, **KINDS.get(job["variant"], {}))
    images = trained.test_set.subset(range(min(MEASURED, len(trained.test_set))))
    measured = measure_heads(trained.model, Loader(images, 100, shuffle=False), progress=False)
    layers = {name: np.concatenate([np.atleast_1d(x) for x in layer]) for name, layer in measured._asdict().items()}
    figures = {"accuracy": trained.result.test_accuracy, "seconds": trained.result.seconds}
    figures |= {name: float(np.nanmean(values)) for name, values in layers.items()}  # NaN: it looks at nothing at all
    if job["variant"] in ("softmax", "rela") and job["seed"] == 0:
        figures["maps"] = central_rows(trained.model, images.normalise(images.images[SHOWN : SHOWN + 1])).tolist()
    return figures


def central_rows(model: VisionTransformer, image: np.ndarray) -> np.ndarray:
    """What each head of each layer looks at from the patch in the middle: (layers, heads, grid height, grid width)."""
    rows, columns = grid = model.patch_embed.grid_size
    maps = attention_maps(model, image)  # a layer: (1, H, N, N)
    return np.stack([a[0, :, rows // 2 * columns + columns // 2].reshape(-1, *grid) for a in maps])


# --- also used by prune_heads.py ---------------------------------------------------------------------------------


def common_options(description: str, epochs: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    trial_options(parser, size="default 24, and 32")
    parser.add_argument("--patch-size", type=int, default=4, help="pixels a side of a patch")
    parser.add_argument("--epochs", type=int, default=epochs, help="passes over the training images")
    return parser


def begin(args: argparse.Namespace) -> tuple[Job, Dataset]:
    """What all jobs have in common, after a look at the data: downloads and wrong arguments come before the runs."""
    if args.size is None and args.dataset == "shapes":
        args.size = 24
    job = images_of(args) | {"patch_size": args.patch_size, "epochs": args.epochs}
    train_set, test_set = load_images(job)
    model = create_model(MODEL, **model_options(job | {"seed": 0}, train_set))
    TrainConfig(args.run_dir, args.epochs)
    print(f"{train_set!r}, {len(test_set)} to test")
    print(f"{model.num_parameters():,} parameters, {SHAPE['depth']} layers of {SHAPE['num_heads']} heads")
    print(args.run_dir)
    return job | {"train_images": len(train_set)}, test_set


def model_options(job: Job, data: Dataset) -> dict[str, Any]:
    return SHAPE | made_for(data) | {"patch_size": job["patch_size"], "seed": job["seed"]}


class Trained(NamedTuple):
    model: VisionTransformer
    train_set: Dataset
    test_set: Dataset
    result: FitResult


def train(job: Job, folder: Path | None = None, penalties: HeadPenalties | None = None, **options: Any) -> Trained:
    """A small network, trained on one core; ``options`` are arguments of ``VisionTransformer``."""
    train_set, test_set = load_images(job)
    options = model_options(job, train_set) | options
    model = create_model(MODEL, **options)
    result = trial.train(
        model, train_set, test_set, job, Classification(penalties=penalties), folder=folder,
        meta={"model": MODEL, "arguments": options},
    )  # fmt: skip
    return Trained(model, train_set, test_set, result)


# --- what came out -----------------------------------------------------------------------------------------------


def as_text(table: dict[str, dict[str, np.ndarray]]) -> str:
    """Mean ± standard deviation of every measure; over layers, heads and images the mean was taken before."""
    lines = [f"{'':22}" + "".join(f"{name:>17}" for name, *_ in MEASURES.values())]
    lines += [f"{'':22}" + "".join(f"{unit:>17}" for _, unit, *_ in MEASURES.values())]
    for variant, figures in table.items():
        cells = [plus_minus(figures[key], factor, digits) for key, (*_, factor, digits) in MEASURES.items()]
        lines.append(f"{variant:22}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def judge(table: dict[str, dict[str, np.ndarray]]) -> list[Claim]:
    """What the book says of heads, held against the figures of all seeds."""

    def against_softmax(variant: str, measure: str) -> tuple[int, str]:
        ours, plain = table[variant][measure], table["softmax"][measure]
        name, unit, factor, digits = MEASURES[measure]
        unit = " %" if unit == "%" else ""
        both = [plus_minus(values, factor, digits) + unit for values in (ours, plain)]
        return compare(ours, plain), f"{name} {both[0]} against {both[1]} of softmax"

    alike = table["softmax"]["similarity"]
    found = [
        Claim(
            "softmax_alike", "The heads of softmax attention say much the same: their mean cosine is above 0.",
            compare(alike, np.zeros_like(alike)) == 1, f"similarity {plus_minus(alike, digits=3)}",
        )
    ]  # fmt: skip
    for penalty in PENALTIES:
        place = penalty == "disagreement_position"
        apart, numbers = against_softmax(penalty, "divergence" if place else "similarity")
        says = f"{penalty} makes heads {'look at different places' if place else 'say different things'}."
        found.append(Claim(f"{penalty}_parts", says, apart == (1 if place else -1), numbers))
        cost, numbers = against_softmax(penalty, "accuracy")
        found.append(Claim(f"{penalty}_accuracy", f"{penalty} costs no accuracy.", cost >= 0, numbers))
    sparser, numbers = against_softmax("rela", "sparsity")
    found.append(Claim("rela_sparse", "ReLA gives weights that are exactly zero.", sparser == 1, numbers))
    cost, numbers = against_softmax("rela", "accuracy")
    found.append(Claim("rela_accuracy", "ReLA is no less accurate than softmax.", cost >= 0, numbers))
    apart, numbers = against_softmax("rela", "divergence")
    found.append(Claim("rela_diverse", "The heads of ReLA look at more different places.", apart == 1, numbers))
    return found


def draw(table: dict[str, dict[str, np.ndarray]], maps: list, test_set: Dataset, args: argparse.Namespace) -> None:
    try:
        import figures
    except ImportError:
        print("\nno pictures were drawn: they need matplotlib, pip install 'minivit[examples]'")
        return
    draw_similarity(figures, table, args.run_dir / "similarity.png")
    draw_maps(figures, test_set.images[SHOWN], [np.array(m) for m in maps], args.patch_size, args.run_dir / "maps.png")
    print(f"\npictures in {args.run_dir}: similarity, maps")


def draw_similarity(figures: Any, table: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Accuracy over how alike heads are, and over how differently they look; small points are seeds."""
    figure, panels = figures.plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axes, measure in zip(panels, ("similarity", "divergence")):
        for (variant, found), colour, marker in zip(table.items(), COLOURS, MARKERS):
            x, y = found[measure], 100 * found["accuracy"]
            (mean_x, sd_x), (mean_y, sd_y) = spread(x.tolist()), spread(y.tolist())
            look = {"color": colour, "marker": marker}
            axes.scatter(x, y, s=9, alpha=0.45, linewidths=0, **look)
            axes.errorbar(mean_x, mean_y, sd_y, sd_x, linestyle="", markersize=6, label=variant, **look)
        axes.xaxis.set_major_locator(figures.plt.MaxNLocator(5))
    panels[0].set_xlabel("similarity: cosine of two heads' outputs")
    panels[0].set_ylabel("test accuracy, %")
    panels[1].set_xlabel("JS divergence of the heads' attention, nats")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figures.save(figure, path)


def draw_maps(figures: Any, image: np.ndarray, maps: list[np.ndarray], patch: int, path: Path) -> None:
    """The heads (columns) of all layers (rows), softmax and ReLA side by side: where the middle of the image looks."""
    layers, heads, rows, columns = maps[0].shape
    widths = [layers, 0.6, *[1] * heads, 0.5, *[1] * heads]  # the picture, then two blocks of maps
    figure = figures.plt.figure(figsize=(0.6 * sum(widths), 0.6 * layers))
    grid = figure.add_gridspec(layers, len(widths), width_ratios=widths, wspace=0.08, hspace=0.08)
    axes = figures.bare(figure.add_subplot(grid[:, 0]))
    axes.imshow(figures.as_picture(image), interpolation="nearest")
    corner = (columns // 2 * patch - 0.5, rows // 2 * patch - 0.5)
    axes.add_patch(figures.plt.Rectangle(corner, patch, patch, fill=False, edgecolor="#e53e3e", linewidth=1.6))
    axes.set_title("where the marked patch looks", fontsize=8)
    colours = figures.plt.get_cmap("inferno").with_extremes(bad="#d5dbe3")
    for first, found, title in zip((2, 3 + heads), maps, ("softmax", "ReLA (light grey: exactly zero)")):
        for layer, head in np.ndindex(layers, heads):
            axes, weights = figures.bare(figure.add_subplot(grid[layer, first + head])), found[layer, head]
            axes.imshow(np.ma.masked_equal(weights, 0), cmap=colours, vmin=0, vmax=weights.max() or 1)
            if layer == 0:
                axes.set_title(f"{title}\nhead 1" if head == 0 else f"{head + 1}", fontsize=8, loc="left")
            if head == 0 and first == 2:
                axes.set_ylabel(f"layer {layer + 1}", fontsize=8)
    figures.save(figure, path)


if __name__ == "__main__":
    with sentences("heads", GOES_ON):
        print(json.dumps(main()))
