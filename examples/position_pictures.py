"""The pictures of ``positions.py``, with matplotlib."""

from pathlib import Path

import numpy as np
from figures import INK, bare, plt, save
from sweep import spread

COLOURS = {"absolute": "#2b6cb0", "relative": "#dd6b20", "none": "#4a5568"}


def draw_accuracy(
    table: dict[str, dict[str, np.ndarray]],
    families: dict[str, tuple[str, ...]],
    pixels: list[int],
    chance: float,
    path: Path,
) -> None:
    """A row an embedding: mean and standard deviation at both resolutions; small points are seeds."""
    looks = {  # measure: (label, marker, filled, place in the row)
        "accuracy": (f"{pixels[0]} px, as trained", "o", True, -0.22),
        "accuracy_larger": (f"{pixels[1]} px", "s", False, 0.0),
        "accuracy_larger_near": (f"{pixels[1]} px, distances as trained", "D", False, 0.22),
    }
    figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.36 * len(table)), layout="constrained")
    for row, (name, found) in enumerate(table.items()):
        family = next((family for family, names in families.items() if name in names), "none")
        for measure, (_, marker, filled, down) in looks.items():
            if measure not in found:
                continue
            values, colour = 100 * found[measure], COLOURS[family]
            mean, sd = spread(values.tolist())
            face = colour if filled else "white"
            axes.errorbar(mean, row + down, xerr=sd, color=colour, linewidth=1.2, zorder=2)
            axes.scatter(values, np.full(len(values), row + down), s=6, color=colour, alpha=0.5, linewidths=0, zorder=3)
            axes.scatter(mean, row + down, s=24, marker=marker, facecolor=face, edgecolor=colour, zorder=4)
    measures = [measure for measure in looks if any(measure in found for found in table.values())]
    for measure in measures:
        label, marker, filled, _ = looks[measure]
        face = INK if filled else "white"
        axes.scatter([], [], s=24, marker=marker, facecolor=face, edgecolor=INK, label=label)
    axes.axvline(100 * chance, color=INK, linewidth=0.8, linestyle=":", label="chance")
    axes.set_yticks(range(len(table)), list(table))
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlim(0, 102)
    axes.set_xlabel("test accuracy, %")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=len(measures) + 1, frameon=False)
    save(figure, path)


def draw_similarity(maps: dict[str, np.ndarray], path: Path) -> None:
    """For each table a map for each patch, in the place of the patch: the cosine of its row with every row.

    ``maps`` by title, (rows, columns, rows, columns). Figure 7 (middle) of the Vision Transformer paper.
    """
    size = (2.6 * len(maps) + 0.6, 2.9)
    figure, panels = plt.subplots(1, len(maps), figsize=size, squeeze=False, layout="constrained")
    for axes, (title, cosines) in zip(panels[0], maps.items()):
        shown = bare(axes).imshow(mosaic(cosines), vmin=-1, vmax=1, cmap="viridis")
        axes.set_title(title)
    figure.colorbar(shown, ax=panels, fraction=0.03, pad=0.01, label="cosine").outline.set_visible(False)
    save(figure, path)


def mosaic(maps: np.ndarray) -> np.ndarray:
    """(rows, columns, height, width) → one picture of all maps, with a gap of one (NaN) between them.

    >>> mosaic(np.arange(4.0).reshape(1, 2, 1, 2)).tolist()
    [[0.0, 1.0, nan, 2.0, 3.0]]
    """
    rows, columns, height, width = maps.shape
    gaps = np.pad(maps, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    return gaps.transpose(0, 2, 1, 3).reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]


def draw_bias(biases: dict[str, np.ndarray], path: Path) -> None:
    """What is added to the attention of the patch in the middle: layers (rows) and heads (columns) of each kind."""
    layers, heads = next(iter(biases.values())).shape[:2]
    widths = ([1] * heads + [0.5]) * len(biases)
    figure = plt.figure(figsize=(0.95 * sum(widths) + 0.8, 0.95 * layers + 0.5))
    grid = figure.add_gridspec(layers, len(widths), width_ratios=widths, wspace=0.08, hspace=0.08)
    largest = max(abs(bias).max() for bias in biases.values())
    panels = []
    for block, (name, bias) in enumerate(biases.items()):
        for layer, head in np.ndindex(layers, heads):
            axes = bare(figure.add_subplot(grid[layer, block * (heads + 1) + head]))
            shown = axes.imshow(bias[layer, head], vmin=-largest, vmax=largest, cmap="RdBu_r")
            rows, columns = bias.shape[2:]
            axes.plot(columns // 2, rows // 2, marker="+", color=INK, markersize=5, markeredgewidth=0.8)
            if layer == 0:
                axes.set_title(f"{name}\nhead 1" if head == 0 else f"{head + 1}", fontsize=8, loc="left")
            if block == head == 0:
                axes.set_ylabel(f"layer {layer + 1}", fontsize=8)
            panels.append(axes)
    label = "added to the score of a patch,\nseen from the one marked +"
    figure.colorbar(shown, ax=panels, fraction=0.03, pad=0.02, label=label).outline.set_visible(False)
    save(figure, path)


def draw_sinusoids(table: np.ndarray, path: Path) -> None:
    """P[t, i] (tokens, D), sine and cosine in turn; and P_t · P_s, which is a matter of t − s alone."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", width_ratios=(1.4, 1))
    for axes, picture, title, label in (
        (left, table, "sincos_1d: P[t, i]", "channel i (even: sine, odd: cosine)"),
        (right, table @ table.T / (table.shape[1] / 2), "P_t · P_s, divided by D/2", "token s"),
    ):
        shown = axes.imshow(picture, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto", interpolation="nearest")
        axes.set_title(title, loc="left")
        axes.set_xlabel(label)
        axes.set_ylabel("token t")
        axes.grid(False)
    figure.colorbar(shown, ax=right).outline.set_visible(False)
    save(figure, path)
