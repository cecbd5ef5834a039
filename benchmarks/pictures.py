"""The pictures that the benchmarks draw, in the style of those of the examples."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from figures import INK, TEST, TRAIN, plt, save
from matplotlib.ticker import LogLocator, NullFormatter

MINIVIT, OTHER, IDEAL = TEST, "#dd6b20", TRAIN
NAMES = {"minivit": "minivit", "torch_eager": "PyTorch"}
COLOURS = {"minivit": MINIVIT, "torch_eager": OTHER}
AXES = {"batch": "images in the batch", "tokens": "tokens of an image", "depth": "blocks"}


def draw_growth(rows: list[dict], path: Path) -> None:
    """Seconds and peak memory of a step over batch, tokens and depth, all axes logarithmic; rows of growth.py."""
    measures = [("seconds", 1, "time of a step, s")]
    if all(row["peak_bytes"] is not None for row in rows):
        measures.append(("peak_bytes", 1e-6, "peak memory, MB"))
    figure, panels = plt.subplots(
        len(measures), len(AXES), figsize=(8.4, 2.6 * len(measures)), layout="constrained", sharex="col", sharey="row",
        squeeze=False,
    )  # fmt: skip
    for line, (key, unit, label) in zip(panels, measures):
        for axes, quantity in zip(line, AXES):
            for name, colour in COLOURS.items():
                chosen = [row for row in rows if (row["varied"], row["contender"]) == (quantity, name)]
                x, y = [row["value"] for row in chosen], [unit * row[key] for row in chosen]
                if x:
                    axes.loglog(x, y, color=colour, marker="o", markersize=3, linewidth=1.4, label=NAMES[name])
                    plain_ticks(axes.xaxis, x)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        line[0].set_ylabel(label)
    for axes, quantity in zip(panels[-1], AXES):
        axes.set_xlabel(AXES[quantity])
    panels[0, 0].legend(frameon=False)
    save_in(figure, path)


def draw_scaling(rows: list[dict], path: Path) -> None:
    """Throughput over cores: workers of one rank, ranks of one worker, mixtures, and the ideal; rows of scaling.py."""
    figure, axes = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
    one = rows[0]["images_per_second"]
    cores = sorted({row["ranks"] * row["workers"] for row in rows})
    axes.plot(cores, [one * n for n in cores], color=IDEAL, linestyle="--", linewidth=1.2, label="ideal")
    kinds = (
        ("workers of one process", MINIVIT, "o-", lambda row: row["ranks"] == 1),
        ("ranks of one worker", OTHER, "s-", lambda row: row["workers"] == 1),
        ("ranks of several workers", INK, "D", lambda row: row["ranks"] > 1 < row["workers"]),
    )
    for label, colour, style, belongs in kinds:
        chosen = [row for row in rows if belongs(row)]
        if chosen[1:] or (chosen and "-" not in style):
            x = [row["ranks"] * row["workers"] for row in chosen]
            y = [row["images_per_second"] for row in chosen]
            spread = [[one * abs(row["spread"][i] - row["speedup"]) for row in chosen] for i in (0, 1)]
            axes.errorbar(x, y, spread, fmt=style, color=colour, markersize=4, linewidth=1.4, capsize=2, label=label)
    axes.set_xticks(cores)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("cores: ranks × workers")
    axes.set_title("training, images a second", loc="left")
    axes.legend(frameon=False, loc="lower right")
    save_in(figure, path)


def plain_ticks(axis, values: list[int]) -> None:
    """Label the measured values of a logarithmic axis, and no others."""
    axis.set_major_locator(LogLocator(subs="all"))
    axis.set_ticks(values, [str(value) for value in values])
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def save_in(figure: plt.Figure, path: Path) -> None:
    """Save, making the folder where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
