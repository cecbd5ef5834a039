"""The pictures that the examples draw, with matplotlib, straight to PNG files."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no window, no display needed

import matplotlib.pyplot as plt
import numpy as np

INK, GRID = "#333333", "#dddddd"
TRAIN, TEST, WRONG = "#9aa7b8", "#2b6cb0", "#c53030"
LINES = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#c53030")

plt.rcParams.update(
    {
        "font.size": 9, "axes.titlesize": 9, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "figure.dpi": 140,
    }
)  # fmt: skip


def save(figure: plt.Figure, path: Path) -> None:
    """Write the figure under a temporary name, then give it its own: a picture is whole or is not there."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", bbox_inches="tight", facecolor="white")
    plt.close(figure)
    os.replace(temporary, path)


def as_picture(image: np.ndarray) -> np.ndarray:
    """(C, H, W) bytes → (H, W, 3) bytes; one channel becomes grey, of more than three the first three are shown."""
    image = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    return image.transpose(1, 2, 0)


def bare(axes: plt.Axes) -> plt.Axes:
    """Axes for a picture: no ticks, no frame, no grid."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def draw_curves(epochs: list[dict], path: Path) -> None:
    """Loss and accuracy by epoch: dicts with epoch, train_loss, test_loss, train_accuracy, test_accuracy."""
    x = [e["epoch"] for e in epochs]
    figure, panels = plt.subplots(1, 2, figsize=(8, 2.9), layout="constrained")
    for axes, quantity, unit in zip(panels, ("loss", "accuracy"), (1, 100)):
        lines = {split: [unit * e[f"{split}_{quantity}"] for e in epochs] for split in ("train", "test")}
        for split, other, colour in (("train", "test", TRAIN), ("test", "train", TEST)):
            y = lines[split]
            axes.plot(x, y, color=colour, marker="o", markersize=2.5, linewidth=1.4)
            axes.annotate(
                f" {split} {y[-1]:.2f}", (x[-1], y[-1]), color=colour, xytext=(3, 0), textcoords="offset points",
                va="bottom" if y[-1] > lines[other][-1] else "top", annotation_clip=False,
            )  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_title("cross-entropy loss" if quantity == "loss" else "accuracy, %", loc="left")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_xlim(left=0.6)
    panels[0].set_ylim(bottom=0)
    save(figure, path)


def draw_loss(epochs: list[dict], path: Path, title: str) -> None:
    """Training and test loss by epoch: dicts with epoch, train_loss, test_loss."""
    figure, axes = plt.subplots(figsize=(4.2, 2.9), layout="constrained")
    x = [e["epoch"] for e in epochs]
    for split, colour in (("train", TRAIN), ("test", TEST)):
        y = [e[f"{split}_loss"] for e in epochs]
        axes.plot(x, y, color=colour, marker="o", markersize=2.5, linewidth=1.4, label=f"{split} {y[-1]:.3f}")
    axes.legend(frameon=False)
    axes.set_xlabel("epoch")
    axes.set_title(title, loc="left")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_ylim(bottom=0)
    save(figure, path)


def draw_points(groups: dict[str, tuple[np.ndarray, np.ndarray]], path: Path, across: str, up: str) -> None:
    """A cloud of points (x, y) for each group, and beside it the group's name and mean; x in powers of ten."""
    figure, axes = plt.subplots(figsize=(5.4, 3.0), layout="constrained")
    for (name, (x, y)), colour in zip(groups.items(), (TEST, TRAIN, WRONG, INK)):
        axes.scatter(x, y, s=22, color=colour, alpha=0.8, linewidths=0)
        axes.annotate(
            f"{name}: {y.mean():.1f}", (np.mean(x), y.min()), xytext=(0, -9), textcoords="offset points", color=colour,
            ha="center", va="top", fontsize=8,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.35, y=0.25)
    axes.set_xlabel(across)
    axes.set_title(up, loc="left")
    save(figure, path)


def draw_spreads(groups: dict[str, np.ndarray], path: Path, title: str, lines: dict[str, float] | None = None) -> None:
    """A row for each group of values: small dots, their mean with its standard deviation, and the mean in figures.

    The first group is what the others are compared with: a line goes through its mean. ``lines``: others, by name.
    """
    figure, axes = plt.subplots(figsize=(6.4, 0.9 + 0.3 * len(groups)), layout="constrained")
    first = next(iter(groups))
    for row, (name, values) in enumerate(groups.items()):
        mean, sd = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
        colour = TRAIN if name == first else TEST
        axes.scatter(values, np.full(len(values), row), s=9, color=colour, alpha=0.5, linewidths=0)
        axes.errorbar(mean, row, xerr=sd, color=colour, marker="o", markersize=5, linewidth=1.4)
        axes.annotate(f"{mean:.1f}", (1.02, row), xycoords=("axes fraction", "data"), va="center", color=colour)
    axes.axvline(np.mean(groups[first]), color=TRAIN, linewidth=0.8, linestyle=":")
    for name, value in (lines or {}).items():
        axes.axvline(value, color=WRONG, linewidth=0.8, linestyle=":")
        axes.annotate(
            name, (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
            ha="center", color=WRONG, fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlabel(title)
    save(figure, path)


def draw_lines(
    panels: dict[str, tuple[Sequence, dict[str, Sequence]]], path: Path, up: str, levels: dict[str, float] | None = None
) -> None:
    """Panels side by side, by what lies across: its marks, and lines by name, which have a value for each mark.

    Of several seeds, (seeds, marks), their mean is drawn, and a band of one standard deviation. ``levels``: values to
    compare with, by name. Where lines cover one another, the first is the widest, and so is seen behind the others.
    """
    figure, row = plt.subplots(
        1, len(panels), figsize=(4.8 * len(panels), 3.5), sharey=True, squeeze=False, layout="constrained"
    )
    named: list[str] = []
    for axes, (across, (marks, lines)) in zip(row[0], panels.items()):
        for i, (name, values) in enumerate(lines.items()):
            values, look = np.atleast_2d(values), {"color": LINES[i], "marker": "soD^v"[i]}
            mean, sd = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0
            axes.fill_between(range(len(marks)), mean - sd, mean + sd, color=LINES[i], alpha=0.2, linewidth=0)
            axes.plot(mean, linewidth=2.4 - 0.3 * i, markersize=8 - 1.4 * i, label=name, **look)
        for name, level in (levels or {}).items():
            axes.axhline(level, color=INK, linewidth=0.8, linestyle=":", label=name)
        axes.set_xticks(range(len(marks)), list(marks))
        axes.set_xlabel(across)
        if list(lines) != named:  # the same lines again need no second legend
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        named = list(lines)
    row[0, 0].set_ylabel(up)
    row[0, 0].set_ylim(bottom=-0.02 * row[0, 0].get_ylim()[1])  # markers at 0 are seen whole
    save(figure, path)


def draw_predictions(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, classes: list[str], path: Path, columns: int = 8
) -> None:
    """Images (n, C, H, W) with what the network says, how sure it is, and, where it is wrong, what is true.

    ``labels`` (n,), ``probabilities`` (n, K).
    """
    rows = -(-len(images) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(1.25 * columns, 1.55 * rows), squeeze=False)
    for axes in panels.ravel():
        bare(axes)
    for axes, image, label, p in zip(panels.ravel(), images, labels, probabilities):
        guess = int(p.argmax())
        axes.imshow(as_picture(image), interpolation="nearest")
        title = f"{classes[guess]} ({100 * p[guess]:.0f} %)"
        if guess != label:
            title += f"\ntrue: {classes[label]}"
        axes.set_title(title, fontsize=7.5, color=INK if guess == label else WRONG, pad=3)
    figure.subplots_adjust(hspace=0.45, wspace=0.1)
    save(figure, path)


def draw_image_table(
    columns: dict[str, np.ndarray], path: Path, rows: list[str] | None = None, size: float = 1.0
) -> None:
    """Images side by side: for each column its title and its images (n, C, H, W), a row for each of the n.

    Bytes, or floats in [0, 1], cut off beyond. ``rows``: a word for each row; ``size`` of an image in inches.
    """
    count = len(next(iter(columns.values())))
    shape = (1.06 * size * len(columns), 1.06 * size * count + 0.3)
    figure, panels = plt.subplots(count, len(columns), figsize=shape, squeeze=False)
    for line, (title, images) in zip(panels.T, columns.items()):
        line[0].set_title(title, fontsize=7.5, pad=3)
        for panel, image in zip(line, images):
            picture = as_picture(image)
            picture = picture if picture.dtype == np.uint8 else np.clip(picture, 0, 1)
            bare(panel).imshow(picture, interpolation="nearest")
    for panel, word in zip(panels[:, 0], rows or []):
        panel.set_ylabel(word, fontsize=7.5)
    figure.subplots_adjust(hspace=0.06, wspace=0.06)
    save(figure, path)


def draw_image_blocks(
    rows: list[tuple[str, list[tuple[str, np.ndarray]]]], path: Path, across: int = 1, width: float = 9.0
) -> None:
    """For each row its name and its blocks, one beside the other: a title over images (n, C, H, W).

    Bytes, or floats in [0, 1], cut off beyond. ``across``: so many rows stand side by side. ``width`` in inches.
    """
    tall = rows[0][1][0][1].shape[2] / rows[0][1][0][1].shape[3]
    blocks = [[len(images) for _, images in row] for _, row in rows]
    counts = [max(row[i] for row in blocks if len(row) > i) for i in range(max(map(len, blocks)))]
    starts = np.cumsum([1.5] + [1.04 * count + 0.2 for count in counts])  # in sides of an image; names come before
    lines, step = -(-len(rows) // across), tall + 0.3
    size = np.array([across * starts[-1], lines * step])
    figure, axes = plt.subplots(figsize=size * width / size[0])
    for number, (name, row) in enumerate(rows):
        left, top = number // lines * starts[-1], number % lines * step
        axes.text(left + 1.4, top + tall / 2, name, ha="right", va="center", fontsize=8.5)
        for start, (title, images) in zip(left + starts, row):
            axes.text(start, top - 0.05, title, va="bottom", fontsize=7.5)
            for i, picture in enumerate(map(as_picture, images)):
                picture = picture if picture.dtype == np.uint8 else np.clip(picture, 0, 1)
                x = start + 1.04 * i
                axes.imshow(picture, extent=(x, x + 1, top + tall, top), interpolation="nearest")
    bare(axes).set(xlim=(0, size[0]), ylim=(size[1], -0.3))
    figure.subplots_adjust(0, 0, 1, 1)
    save(figure, path)


def draw_attention(images: np.ndarray, maps: np.ndarray, titles: list[str], path: Path) -> None:
    """The attention of each head, ``maps`` (n, heads, grid height, grid width), and their mean: see ``draw_over``."""
    heads = {f"head {number + 1}": maps[:, number] for number in range(maps.shape[1])}
    draw_over(images, {"mean of heads": maps.mean(1), **heads}, titles, path)


def draw_over(images: np.ndarray, maps: dict[str, np.ndarray], titles: list[str], path: Path) -> None:
    """A row an image: the image with its title, and each of the maps drawn over it.

    ``images`` (n, C, H, W) bytes, ``maps`` by title, (n, grid height, grid width). Each map is scaled to its own
    maximum: dark is unseen, bright is where the attention goes.
    """
    size = (1.25 * (1 + len(maps)), 1.32 * len(images))
    figure, panels = plt.subplots(len(images), 1 + len(maps), figsize=size, squeeze=False)
    for row, image, title, *weights in zip(panels, images, titles, *maps.values()):
        picture = as_picture(image)
        row[0].set_title(title, fontsize=7.5, pad=3)
        for axes, shown in zip(row, [picture, *(shade(picture, w) for w in weights)]):
            bare(axes).imshow(shown, interpolation="nearest")
    for axes, title in zip(panels[0, 1:], maps):
        axes.set_title(title, fontsize=7.5, pad=3)
    figure.subplots_adjust(hspace=0.22, wspace=0.06)
    save(figure, path)


def shade(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) in grey, coloured by the weights (grid height, grid width), each patch by its own."""
    height, width = picture.shape[:2]
    weights = weights / max(weights.max(), 1e-12)
    weights = weights.repeat(height // weights.shape[0], 0).repeat(width // weights.shape[1], 1)[..., None]
    grey = picture.mean(-1, keepdims=True) / 255
    heat = plt.get_cmap("inferno")(weights[..., 0])[..., :3]
    return np.clip(0.35 * grey + 0.65 * heat, 0, 1)


def draw_positions(table: np.ndarray, grid: tuple[int, int], path: Path) -> None:
    """How alike are the position embeddings? One small map a patch: its cosine with every patch's embedding.

    ``table`` (rows · columns, D). Figure 7 (middle) of the Vision Transformer paper. The maps lie as the patches do
    in a square image.
    """
    rows, columns = grid
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    similarity = (unit @ unit.T).reshape(rows, columns, rows, columns)
    figure, panels = plt.subplots(rows, columns, figsize=(5.6, 4.6), squeeze=False)
    for i in range(rows):
        for j in range(columns):
            axes = bare(panels[i, j])
            shown = axes.imshow(
                similarity[i, j], vmin=-1, vmax=1, cmap="viridis", interpolation="nearest", aspect="auto"
            )
    figure.subplots_adjust(hspace=0.12, wspace=0.12)
    bar = figure.colorbar(shown, ax=panels, fraction=0.04, pad=0.03, label="cosine similarity")
    bar.outline.set_visible(False)
    figure.supxlabel("column of the patch", y=0.03, fontsize=9)
    figure.supylabel("row of the patch", x=0.05, fontsize=9)
    save(figure, path)
