"""How many heads does a trained Vision Transformer need? Heads are removed, and accuracy and speed measured.

    python examples/prune_heads.py                                    # ten shapes, generated: no download
    python examples/prune_heads.py --dataset mnist --data-dir DIR     # downloaded to DIR where it is missing

The softmax network of ``heads.py`` is trained over some seeds. From each, more and more heads are removed, without
training again: in the order of their importance (the gradient of the loss with respect to a gate), in the order of what
it costs to leave one out, and by chance. The networks really become smaller (``minivit/models/pruning.py``), and it is
checked that they say what the whole network says whose heads are held at zero. Which heads go is decided on training
images; the accuracy is that on test images. The speed of each size is measured on one core, in turns with the whole.

It leaves a folder ``runs/prune_heads-<data set>/``: the figures of each run, the picture ``pruning.png``, and of each
seed a folder with the whole network, ``last.npz``, and one with half of its heads, ``pruned.npz``, for ``predict.py``.
Ctrl-C ends it, and the same command goes on with the runs that are missing. The last line printed is a JSON object.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim, compare, plus_minus, tell
from heads import MODEL, SHAPE, begin, common_options, model_options, train
from running import sentences
from sweep import GOES_ON, Figures, Job, spread, sweep
from trial import load_images, settle_trial

from minivit.analysis.head_importance import gated, head_importance, leave_one_out
from minivit.data import Dataset, Loader
from minivit.models import VisionTransformer, create_model
from minivit.models.pruning import head_arguments, lowest_heads, prune_heads
from minivit.nn import Module
from minivit.random import generator
from minivit.training import (
    choose_layout,
    evaluate,
    load_checkpoint,
    load_model,
    predict,
    save_checkpoint,
)

HEADS = SHAPE["depth"] * SHAPE["num_heads"]
COUNTS = [round(share * (HEADS - SHAPE["depth"]) / 7) for share in range(8)]  # heads removed; each layer keeps one
HALF = COUNTS.index(min(COUNTS, key=lambda count: abs(count - HEADS / 2)))
METHODS = {"importance": "by importance", "leave_one_out": "by leaving one out", "random": "by chance"}
COLOURS = {"importance": "#2b6cb0", "leave_one_out": "#2f855a", "random": "#9aa7b8"}
JUDGED = 1000  # training images on which it is decided which heads go
LITTLE, MANY = 0.01, 0.2  # one point of accuracy; Michel et al. removed 20 % to 40 % of all heads without much loss
SAME = 1e-4  # difference of logits, which are of order 1 to 10, in float32


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common_options(__doc__.partition("\n")[0], epochs=5)
    parser.add_argument("--draws", type=int, default=5, help="how often heads are removed by chance, of each seed")
    parser.add_argument("--rounds", type=int, default=15, help="how often the speed of each size is measured")
    args = settle_trial(parser.parse_args(arguments), "prune_heads")
    for name in ("draws", "rounds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def main(arguments: list[str] | None = None) -> dict:
    started, args = time.monotonic(), parse(arguments)
    job, _ = begin(args)
    jobs = [
        job | {"seed": seed, "draws": args.draws, "folder": str(args.run_dir / f"seed_{seed}")}
        for seed in range(args.seeds)
    ]
    found = [figures for _, figures in sweep(run, jobs, args.run_dir / "figures", "training and pruning")]
    timed = job | {"seed": 0, "kept": found[0]["kept"], "rounds": args.rounds}
    [(_, speeds)] = sweep(run_in_turns, [timed], args.run_dir / "figures", "speed")

    accuracy = {method: np.array([figures[method] for figures in found]) for method in METHODS}
    accuracy["random"] = accuracy["random"].mean(1)  # (seeds, counts), as the others; of all draws
    rates = np.array(speeds["images_per_second"])  # (rounds, counts)
    speedup = rates / rates[:, :1]
    claims = judge(accuracy, speedup)
    difference = max(figures["difference"] for figures in found)
    print(f"\n{as_text(accuracy, rates, speedup)}\n\n{tell(claims, args.seeds)}\n")
    print(f"Pruned networks and whole ones with these heads at zero differ by {difference:.1e} at most, in the logits.")
    print(f"Half of the heads: {args.run_dir / 'seed_0' / 'pruned.npz'}, loaded again with the same logits.")
    every_draw = np.concatenate([figures["random"] for figures in found])
    draw(accuracy | {"random": every_draw}, speedup, args.run_dir)
    return {
        "example": "prune_heads", "dataset": args.dataset.partition(":")[0], "train_images": job["train_images"],
        "epochs": args.epochs, "seeds": args.seeds, "heads": HEADS,
        **{
            f"{method}_accuracy_{count}{suffix}": value
            for method, values in accuracy.items()
            for count, column in zip(COUNTS, values.T)
            for suffix, value in zip(("", "_sd"), spread(column.tolist()))
        },
        **{f"speedup_{count}": float(np.median(ratio)) for count, ratio in zip(COUNTS, speedup.T)},
        "images_per_second": float(np.median(rates[:, 0])),
        "removable_share": spread(removable(accuracy["importance"]).tolist())[0],
        "removable_share_sd": spread(removable(accuracy["importance"]).tolist())[1],
        "largest_difference": difference,
        **{f"held_{claim.key}": claim.held for claim in claims},
        "seconds": round(time.monotonic() - started, 1), "run_dir": str(args.run_dir),
    }  # fmt: skip


# --- one seed ----------------------------------------------------------------------------------------------------


def run(job: Job) -> Figures:
    """Train a network, remove heads in every order, and save the one without half of its heads."""
    folder = Path(job["folder"])
    trained = train(job, folder)
    model, images = trained.model, trained.train_set.normalise(trained.train_set.images[:100])
    test = Loader(trained.test_set, 250, shuffle=False)
    orders = removal_orders(model, trained.train_set, job)
    difference, accuracy = 0.0, {method: [] for method in orders}
    for method, scores in orders.items():
        for count in COUNTS:
            heads = lowest_heads(scores, count)
            pruned = prune_heads(model, heads)
            accuracy[method].append(evaluate(pruned, test).accuracy)
            difference = max(difference, against_gates(model, pruned, heads, images))
    plans = [lowest_heads(orders["importance"], count) for count in COUNTS]
    save_and_load(model, plans[HALF], folder, images)
    chance = [accuracy.pop(method) for method in list(accuracy) if method.startswith("random")]
    kept = [[SHAPE["num_heads"] - len(heads.get(layer, [])) for layer in range(SHAPE["depth"])] for heads in plans]
    return accuracy | {"random": chance, "kept": kept, "difference": difference}


def removal_orders(model: Module, train_set: Dataset, job: Job) -> dict[str, list[np.ndarray]]:
    """For each method, and each draw of chance, a score for every head: what is low goes first."""
    judged = Loader(train_set.subset(range(min(JUDGED, len(train_set)))), 250, shuffle=False)
    left_out = leave_one_out(model, lambda: evaluate(model, judged).loss, progress=False)
    orders = {
        "importance": head_importance(model, judged, progress=False),
        "leave_one_out": [np.array(losses) for losses in left_out],
    }
    for draw in range(job["draws"]):
        numbers = generator(job["seed"], "heads by chance", draw)
        orders[f"random {draw}"] = [numbers.random(SHAPE["num_heads"]) for _ in range(SHAPE["depth"])]
    return orders


def against_gates(model: Module, pruned: Module, heads: dict[int, list[int]], images: np.ndarray) -> float:
    """Largest difference of logits from the whole network with these heads at 0. Raises RuntimeError if it is large."""
    gates = [np.ones(SHAPE["num_heads"], np.float32) for _ in range(SHAPE["depth"])]
    for layer, removed in heads.items():
        gates[layer][removed] = 0
    with gated(model, gates):
        expected = predict(model, images)
    difference = float(np.abs(predict(pruned, images) - expected).max())
    if not difference <= SAME * max(1.0, float(np.abs(expected).max())):
        raise RuntimeError(f"without heads {heads} the logits differ by {difference:.1e} from those with gates at 0")
    return difference


def save_and_load(model: Module, heads: dict[int, list[int]], folder: Path, images: np.ndarray) -> None:
    """``pruned.npz``, which any program loads as it loads the whole. Raises RuntimeError if it says something else."""
    pruned, meta = prune_heads(model, heads), load_checkpoint(folder / "last.npz").meta
    meta["arguments"] = {**meta["arguments"], **head_arguments(pruned)}
    save_checkpoint(folder / "pruned.npz", pruned, meta=meta)
    loaded, _ = load_model(folder / "pruned.npz")
    if (predict(loaded, images) != predict(pruned, images)).any():
        raise RuntimeError(f"{folder / 'pruned.npz'} was loaded with other logits than it was saved with")


# --- speed -------------------------------------------------------------------------------------------------------


def run_in_turns(job: Job) -> Figures:
    """Images per second of every size, on one core, (rounds, sizes): in each round each of them once.

    Speed does not ask what the weights are; how many heads each layer keeps is that of the first seed, by importance.
    """
    data, _ = load_images(job)
    whole = create_model(MODEL, **model_options(job, data))
    images = data.normalise(data.images[:200])
    models = [with_heads(whole, kept) for kept in job["kept"]]
    layouts = [choose_layout(model, images, len(images), workers=1) for model in models]
    rates = []
    for _ in range(1 + job["rounds"]):  # the first is to warm up
        rates.append([])
        for model, layout in zip(models, layouts):
            start = time.perf_counter()
            predict(model, images, layout)
            rates[-1].append(len(images) / (time.perf_counter() - start))
    return {"images_per_second": rates[1:]}


def with_heads(model: VisionTransformer, kept: list[int]) -> Module:
    return prune_heads(model, {layer: range(count, SHAPE["num_heads"]) for layer, count in enumerate(kept)})


# --- what came out -----------------------------------------------------------------------------------------------


def removable(accuracy: np.ndarray) -> np.ndarray:
    """The share of heads that can go before accuracy falls by more than a point: (seeds, counts) → (seeds,)."""
    fine = np.cumprod(accuracy >= accuracy[:, :1] - LITTLE, axis=1)  # 1 until the first count that costs more
    return np.array(COUNTS)[fine.sum(1) - 1] / HEADS


def as_text(accuracy: dict[str, np.ndarray], rates: np.ndarray, speedup: np.ndarray) -> str:
    """A row for each number of heads removed."""
    head = ["heads removed", *(f"{title}, %" for title in METHODS.values()), "images/s", "times as fast"]
    lines = ["".join(f"{cell:>22}" for cell in head)]
    for i, count in enumerate(COUNTS):
        cells = [f"{count} of {HEADS}", *(plus_minus(accuracy[method][:, i], 100) for method in METHODS)]
        low, middle, high = np.percentile(speedup[:, i], (25, 50, 75))
        cells += [f"{np.median(rates[:, i]):.0f}", f"{middle:.2f} ({low:.2f} … {high:.2f})"]
        lines.append("".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def judge(accuracy: dict[str, np.ndarray], speedup: np.ndarray) -> list[Claim]:
    """What is said of heads, held against the figures of all seeds."""
    share = removable(accuracy["importance"])
    mean, sd = spread(share.tolist())
    found = [
        Claim(
            "redundant", f"Heads are redundant: {100 * MANY:.0f} % of them can go at the price of a point of accuracy.",
            mean - sd >= MANY, f"{plus_minus(share, 100, 0)} % could go, by importance",
        )
    ]  # fmt: skip
    chance = accuracy["random"][:, 1:-1].mean(1)
    for method, says in {
        "importance": "The gradient of a gate tells which heads matter: it does better than chance.",
        "leave_one_out": "So does leaving out one head at a time.",
    }.items():
        values = accuracy[method][:, 1:-1].mean(1)
        numbers = f"accuracy {plus_minus(values, 100)} % against {plus_minus(chance, 100)} %, a mean over all counts"
        found.append(Claim(f"{method}_beats_chance", says, compare(values, chance) == 1, numbers))
    low, middle, high = np.percentile(speedup[:, HALF], (25, 50, 75))
    numbers = f"{middle:.2f} times as fast ({low:.2f} … {high:.2f}) without {COUNTS[HALF]} of {HEADS} heads"
    return [*found, Claim("faster", "A network with fewer heads is faster.", bool(low > 1), numbers)]


def draw(accuracy: dict[str, np.ndarray], speedup: np.ndarray, run_dir: Path) -> None:
    try:
        import figures
    except ImportError:
        print("no picture was drawn: it needs matplotlib, pip install 'minivit[examples]'")
        return
    draw_pruning(figures, accuracy, speedup, run_dir / "pruning.png")
    print(f"picture: {run_dir / 'pruning.png'}")


def draw_pruning(figures: Any, accuracy: dict[str, np.ndarray], speedup: np.ndarray, path: Path) -> None:
    """Accuracy, mean and standard deviation, and speed, median and middle half, over the heads removed."""
    figure, (left, right) = figures.plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for method, values in accuracy.items():
        mean, sd = np.array([spread((100 * column).tolist()) for column in values.T]).T
        left.plot(COUNTS, mean, color=COLOURS[method], marker="o", markersize=3, label=METHODS[method])
        left.fill_between(COUNTS, mean - sd, mean + sd, color=COLOURS[method], alpha=0.2, linewidth=0)
    left.axhline(100 * accuracy["importance"][:, 0].mean(), color=figures.INK, linewidth=0.8, linestyle=":")
    left.set_title("test accuracy, % (dotted: whole network)", loc="left")
    left.legend(frameon=False, loc="lower left")
    low, middle, high = np.percentile(speedup, (25, 50, 75), axis=0)
    right.plot(COUNTS, middle, color=COLOURS["importance"], marker="o", markersize=3)
    right.fill_between(COUNTS, low, high, color=COLOURS["importance"], alpha=0.2, linewidth=0)
    right.set_ylim(bottom=min(0.9, 0.95 * low.min()))
    right.set_title("times as fast as the whole, on one core", loc="left")
    for axes in (left, right):
        axes.set_xlabel(f"heads removed, of {HEADS}")
        axes.set_xticks(COUNTS)
    figures.save(figure, path)


if __name__ == "__main__":
    with sentences("prune_heads", GOES_ON):
        print(json.dumps(main()))
