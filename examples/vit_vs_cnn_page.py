"""What ``vit_vs_cnn.py`` found: as tables, held against what is said of ViT and CNN, and as one page of pictures."""

from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from claims import Claim, compare, plus_minus

KINDS = {"vit": "ViT", "cnn": "CNN"}
COLOURS = {"vit": "#2b6cb0", "cnn": "#c53030"}
PROBED = {  # what is read of a layer
    ("vit", "mean"): "ViT, mean of patches",
    ("vit", "class"): "ViT, class token",  # where there is one
    ("cnn", "mean"): "CNN, mean of places",
}
FAR, NEAR = 0.9, 0.5  # of the distance of a head that looks everywhere alike: one looks far from here, near up to here
Table = dict[str, np.ndarray]  # {figure: (seeds, …)}, the figures of vit_vs_cnn.measure


class Setting(NamedTuple):
    """What the figures are of."""

    layers: dict[str, list[str]]  # of each network
    parameters: dict[str, int]
    classes: list[str]  # of the images whose shape and texture are at odds
    shots: tuple[int, ...]
    chance: float  # the accuracy of guessing
    side: int  # of an image, in pixels
    even: float  # how far a head looks that looks everywhere alike, in pixels

    def depths(self, kind: str) -> np.ndarray:
        """How deep each layer lies: from 0, what the first block is given, to 1, what the last block gives."""
        return np.linspace(0, 1, len(self.layers[kind]))


def over_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of (seeds, …); that of a single seed is 0.

    >>> over_seeds(np.array([[1.0, 5.0], [3.0, 5.0]]))
    (array([2., 5.]), array([1.41421356, 0.        ]))
    """
    return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])


def as_text(table: Table, setting: Setting) -> str:
    """Tables of mean ± standard deviation."""

    def row(title: str, *cells: str) -> str:
        return f"{title:34}" + "".join(f"{cell:>16}" for cell in cells)

    def both(title: str, figure: str, factor: float = 1, digits: int = 1) -> str:
        return row(title, *(plus_minus(table[f"{figure}_{kind}"], factor, digits) for kind in KINDS))

    lines = [row("", *KINDS.values()), row("parameters", *(f"{setting.parameters[kind]:,}" for kind in KINDS))]
    lines += [both("test accuracy, %", "accuracy", 100)]
    consistency = f"error consistency of the two, κ: {plus_minus(table['kappa'], digits=2)} on test images"
    if "bias_vit" in table:
        lines += [both("shape bias", "bias", digits=2), both("coverage, %", "coverage", 100)]
        consistency += f", {plus_minus(table['kappa_conflict'], digits=2)} where shape and texture are at odds"
        lines += [consistency, "", row("shape bias (coverage), %, by shape", *KINDS.values())]
        for i, name in enumerate(setting.classes):
            of = [[table[f"{figure}_by_class_{kind}"][:, i] for figure in ("bias", "coverage")] for kind in KINDS]
            lines += [row(name, *(f"{plus_minus(bias, 100, 0)} ({100 * share.mean():.0f})" for bias, share in of))]
    else:
        lines += [consistency]
    lines += ["", row("few-shot accuracy, %", *(f"k = {k}" for k in setting.shots))]
    for (kind, pool), title in PROBED.items():
        if (told := table.get(f"few_shot_{kind}_{pool}")) is not None:
            for layer, values in zip(setting.layers[kind], told.swapaxes(0, 1)):  # (seeds, shots)
                lines += [row(f"{title}: {layer}", *(plus_minus(x, 100) for x in values.T))]
    lines += ["", row("attention distance, px", "nearest head", "mean", "farthest head")]
    for layer, heads in zip(setting.layers["vit"][1:], table["distance"].swapaxes(0, 1)):
        lines += [row(layer, *(plus_minus(measure(heads, axis=1)) for measure in (np.nanmin, np.nanmean, np.nanmax)))]
    return "\n".join(lines)


# --- what is said of them ----------------------------------------------------------------------------------------


def judge(table: Table, setting: Setting) -> list[Claim]:
    """What the book says of ViT and CNN, with the papers that it goes by, held against the figures of all seeds."""
    by_cues = judge_cues(table) if "bias_vit" in table else []
    return by_cues + judge_layers(table, setting) + judge_attention(table, setting) + judge_probes(table, setting)


def judge_cues(table: Table) -> list[Claim]:
    """By shape, or by texture?"""
    vit, cnn = table["bias_vit"], table["bias_cnn"]
    half = np.full_like(vit, 0.5)
    bias = {kind: plus_minus(table[f"bias_{kind}"], digits=2) for kind in KINDS}
    told = {kind: f"shape bias {bias[kind]}, coverage {plus_minus(table[f'coverage_{kind}'], 100)} %" for kind in KINDS}
    says = "A ViT goes by shape rather than texture: its shape bias is above 0.5 (the book)."
    found = [Claim("vit_shape", says, compare(vit, half) == 1, told["vit"])]
    says = "A CNN goes by texture rather than shape: its shape bias is below 0.5 (Geirhos et al., 2019)."
    found += [Claim("cnn_texture", says, compare(cnn, half) == -1, told["cnn"])]
    says = "A ViT goes by shape more than a CNN does (Tuli et al., 2021)."
    numbers = f"shape bias {bias['vit']} against {bias['cnn']}"
    return found + [Claim("vit_more_shape", says, compare(vit, cnn) == 1, numbers)]


def judge_layers(table: Table, setting: Setting) -> list[Claim]:
    """Which layers are alike?"""

    def told(a: np.ndarray, b: np.ndarray) -> str:
        return f"{plus_minus(a, digits=2)} against {plus_minus(b, digits=2)}"

    def different(matrix: np.ndarray) -> np.ndarray:
        """The mean of (seeds, layers, layers) off the diagonal."""
        return matrix[:, ~np.eye(matrix.shape[1], dtype=bool)].mean(1)

    vit, cnn, both = (table[f"cka_{name}"] for name in (*KINDS, "both"))
    before = told(*(different(table[f"start_cka_{kind}"]) for kind in KINDS))
    says = "A ViT's layers are alike throughout, more than a CNN's (Raghu et al., 2021, section 4)."
    numbers = f"CKA {told(different(vit), different(cnn))}, the mean of any two layers (before training {before}); "
    numbers += f"of the first and the last {told(vit[:, 0, -1], cnn[:, 0, -1])}"
    found = [Claim("vit_uniform", says, compare(different(vit), different(cnn)) == 1, numbers)]

    stages = [layer.partition(".")[0] for layer in setting.layers["cnn"][1:]]  # without what comes before
    same = np.array([a == b for a, b in pairwise(stages)], dtype=bool)
    if same.any() and not same.all():  # where each block is a stage there is nothing to compare
        neighbours = np.diagonal(cnn[:, 1:, 1:], 1, axis1=1, axis2=2)  # (seeds, pairs)
        inside, across = neighbours[:, same].mean(1), neighbours[:, ~same].mean(1)
        says = "A CNN's layers are alike in stages (the same)."
        numbers = f"CKA of neighbours {told(inside, across)}, in a stage against across a border"
        found += [Claim("cnn_stages", says, compare(inside, across) == 1, numbers)]

    rows, columns = (count // 2 for count in both.shape[1:])
    early, late = both[:, :rows, :columns].max(2).mean(1), both[:, -rows:, -columns:].max(2).mean(1)
    says = "Early layers of the two are alike, more than late ones (the same)."
    numbers = f"CKA of a ViT's layer with the CNN's most similar one {told(early, late)}, first halves against last"
    return found + [Claim("early_alike", says, compare(early, late) == 1, numbers)]


def judge_attention(table: Table, setting: Setting) -> list[Claim]:
    """How far does a ViT look in its first layer?"""

    def told(which: str, now: np.ndarray, start: np.ndarray) -> str:
        numbers = f"the {which} head looks {plus_minus(setting.even * now)} px far, {plus_minus(now, 100, 0)} % "
        numbers += f"(before training {plus_minus(start, 100, 0)} %) of the {setting.even:.1f} px of looking everywhere"
        return numbers + " alike"

    first, start = (table[name][:, 0] / setting.even for name in ("distance", "start_distance"))  # (seeds, heads)
    far, near = np.nanmax(first, 1), np.nanmin(first, 1)
    says = "A ViT looks far already in its first layer (Raghu et al., 2021, section 5)."
    numbers = f"{told('farthest', far, np.nanmax(start, 1))}; far is above {FAR:.0%}"
    found = [Claim("vit_far", says, compare(far, np.full_like(far, FAR)) == 1, numbers)]
    says = "Trained on few images, it has no head there that looks near (the same)."
    numbers = f"{told('nearest', near, np.nanmin(start, 1))}; near is up to {NEAR:.0%}"
    return found + [Claim("vit_not_near", says, compare(near, np.full_like(near, NEAR)) == 1, numbers)]


def judge_probes(table: Table, setting: Setting) -> list[Claim]:
    """How early are classes told?"""

    def share(kind: str) -> np.ndarray:
        """What there is at half depth of the lead over chance at the end, which is taken to be a point at least."""
        lead = table[f"few_shot_{kind}_mean"][:, :, -1] - setting.chance  # (seeds, layers), for the most shots
        half = np.array([np.interp(0.5, setting.depths(kind), values) for values in lead])
        return half / np.maximum(lead[:, -1], 0.01)

    vit, cnn = share("vit"), share("cnn")
    says = "What tells the classes is there early in a ViT, and late in a CNN (Raghu et al., 2021)."
    numbers = f"with {setting.shots[-1]} examples of each class, a probe has {plus_minus(vit, 100, 0)} % against "
    numbers += f"{plus_minus(cnn, 100, 0)} % of its lead over chance at half depth already"
    return [Claim("vit_classes_early", says, compare(vit, cnn) == 1, numbers)]


# --- pictures ----------------------------------------------------------------------------------------------------


def draw(table: Table, setting: Setting, path: Path) -> None:
    """One page: which layers are alike, how early classes are told, how far heads look, and shape against texture."""
    try:
        import figures
    except ImportError:
        print("\nno page was drawn: it needs matplotlib, pip install 'minivit[examples]'")
        return
    page = figures.plt.figure(figsize=(10, 7), layout="constrained")
    above, below = page.subfigures(2, 1)
    maps = {
        "layers of the ViT": ("vit", "vit", "vit"), "layers of the CNN": ("cnn", "cnn", "cnn"),
        "ViT (up) and CNN (across)": ("both", "vit", "cnn"),
    }  # fmt: skip
    panels = above.subplots(1, 3)
    for axes, (title, (which, up, across)) in zip(panels, maps.items()):
        shown = draw_cka(axes, table[f"cka_{which}"].mean(0), setting.layers[up], setting.layers[across])
        axes.set_title(f"CKA: {title}", loc="left")
    above.colorbar(shown, ax=panels, fraction=0.025, pad=0.01).outline.set_visible(False)

    panels = below.subplots(1, 3 if "bias_vit" in table else 2)
    draw_probes(panels[0], table, setting)
    draw_distances(panels[1], figures, table["distance"], setting)
    if "bias_vit" in table:
        draw_cues(panels[2], figures, table, setting.classes)
    handles = []
    for kind, name in KINDS.items():
        right = plus_minus(table[f"accuracy_{kind}"], 100)
        label = f"{name}: {setting.parameters[kind]:,} parameters, {right} % of test images right"
        handles.append(figures.plt.Line2D([], [], color=COLOURS[kind], linewidth=6, label=label))
    above.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, handlelength=1)
    figures.save(page, path)
    print(f"\npage: {path}")


def draw_cka(axes: Any, matrix: np.ndarray, rows: list[str], columns: list[str]) -> Any:
    """A heat map from 0 to 1, the first layers at the bottom and on the left, with numbers where there is room."""
    shown = axes.imshow(matrix, vmin=0, vmax=1, cmap="magma", origin="lower", aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor", fontsize=7.5)
    axes.set_yticks(range(len(rows)), rows, fontsize=7.5)
    for i, j in np.ndindex(matrix.shape) if matrix.size <= 49 else ():
        colour = "black" if matrix[i, j] > 0.6 else "white"
        axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
    return shown


def draw_probes(axes: Any, table: Table, setting: Setting) -> None:
    """Few-shot accuracy by depth, with the most examples in bands of the spread, and with the fewest, dashed."""
    for (kind, pool), title in PROBED.items():
        if (told := table.get(f"few_shot_{kind}_{pool}")) is None:
            continue
        depths, look = setting.depths(kind), {"color": COLOURS[kind], "marker": "s" if pool == "class" else "o"}
        mean, sd = (100 * values.T for values in over_seeds(told))  # (shots, layers)
        axes.fill_between(depths, mean[-1] - sd[-1], mean[-1] + sd[-1], color=COLOURS[kind], alpha=0.15, linewidth=0)
        axes.plot(depths, mean[-1], linewidth=1.4, markersize=4, label=title, **look)
        axes.plot(depths, mean[0], linewidth=0.9, markersize=2.5, linestyle="--", **look)
    axes.set_xlabel("depth, from before the first block to the end")
    axes.set_title(f"few-shot accuracy, %: k = {setting.shots[-1]} (dashed {setting.shots[0]})", loc="left")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7.5)


def draw_distances(axes: Any, figures: ModuleType, distance: np.ndarray, setting: Setting) -> None:
    """A point for each head of each seed (seeds, layers, heads), and the mean of the heads."""
    layers = np.arange(1, distance.shape[1] + 1)
    every = np.broadcast_to(layers[:, None], distance.shape)
    axes.scatter(every, distance, s=14, color=COLOURS["vit"], alpha=0.45, linewidths=0, label="a head, of one seed")
    axes.errorbar(layers, *over_seeds(np.nanmean(distance, axis=2)), color=figures.INK, linewidth=1.2, label="mean")
    axes.axhline(setting.even, color=figures.INK, linewidth=0.8, linestyle=":", label="looking everywhere alike")
    axes.set_xticks(layers)
    axes.set_xlabel("block of the ViT")
    axes.set_title(f"attention distance, px (image {setting.side})", loc="left")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7.5)


def draw_cues(axes: Any, figures: ModuleType, table: Table, classes: list[str]) -> None:
    """The shape bias of each class of shapes and, as a line, of all; beside it the coverage."""
    rows = np.arange(len(classes))
    for kind, up, x in (("vit", -0.16, 1.13), ("cnn", 0.16, 1.27)):
        small = {"color": COLOURS[kind], "fontsize": 7.5, "ha": "right", "va": "center"}
        mean, sd = over_seeds(table[f"bias_by_class_{kind}"])
        axes.errorbar(mean, rows + up, xerr=sd, linestyle="", marker="o", markersize=4, color=COLOURS[kind])
        axes.axvline(table[f"bias_{kind}"].mean(), linewidth=1.2, color=COLOURS[kind])
        for row, share in zip(rows, table[f"coverage_by_class_{kind}"].mean(0)):
            axes.text(x, row, f"{share:.0%}", transform=axes.get_yaxis_transform(), **small)
    axes.axvline(0.5, color=figures.INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(rows, classes, fontsize=7.5)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(classes) - 0.5, -0.5), xlabel="0: texture, 1: shape; a line: all classes")
    axes.set_title("shape bias", loc="left")
    axes.set_title("coverage", loc="right", x=1.27, fontsize=7.5)
