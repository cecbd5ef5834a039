"""Where does a Vision Transformer look? Its attention over your own image files, in pictures and on a page to explore.

    python examples/explain.py runs/mnist-vit_nano_patch7_28-0/best.npz digit.png another.png
    python examples/explain.py runs/shapes-vit_nano_patch8_32-0/best.npz photo.jpg --class star  # what speaks for it?

Any checkpoint of a Vision Transformer will do. A masked autoencoder tells no classes: of its encoder there are maps and
rollout only. Each image is scaled and cut to the network's size. Of each it prints the likeliest classes, and leaves in
``explain/`` beside the checkpoint (``--out`` for another folder):

    attention.png    the last layer, head by head: where the class token looks, or patches on average
    relevance.png    rollout through all layers, and what speaks for the answer, and for ``--class``
    distance.png     how far each head of each layer looks, on average over these images
    filters.png      the principal components of the patch embedding, and their shares of its variance
    positions.png    how alike the embeddings of positions are, where the network has a table of them
    explorer.html    point at a patch, and see what it attends to, in every head of every layer

Maps of attention are drawn from zero to their largest number; rollout and relevance, which have a part that all patches
share, from their smallest. The page needs no network, only a browser. The last line printed is a JSON object.
"""

import argparse
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from explorer import Page
from image_files import answers, file_options, load, tells_classes
from running import sentences

from minivit.analysis import attention_maps, class_attention
from minivit.analysis.filters import Components, patch_filters
from minivit.analysis.heads import attention_distance
from minivit.analysis.relevance import relevance
from minivit.analysis.rollout import class_rollout
from minivit.backend import Array
from minivit.nn import Module

FILTERS = 28  # so many components the ViT paper shows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    file_options(parser)
    parser.add_argument("--class", dest="wanted", metavar="NAME", help="show what speaks for this class, too")
    parser.add_argument("--out", type=Path, help="folder of the pictures (default: explain/ beside the checkpoint)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    args = parse(arguments)
    try:
        import figures
    except ImportError:
        raise ImportError("it draws, for which it needs matplotlib: pip install 'minivit[examples]'") from None
    asked = load(args)
    model, classes = asked.model, asked.data.classes if tells_classes(asked.model) else []
    if not hasattr(model, "patch_embed"):
        raise ValueError(f"{args.checkpoint} is of {asked.name}, which has no attention; predict.py says what it sees")
    wanted = None if args.wanted is None else class_number(args.wanted, classes, asked.name)
    found = answers(asked) if classes else [{"file": path.name} for path in asked.paths]
    titles = [f"{answer['class']} ({answer['confidence']:.0%})" if classes else "" for answer in found]
    out = args.out or args.checkpoint.with_name("explain")
    out.mkdir(parents=True, exist_ok=True)

    looks, page = [], Page(model, asked.name, len(found))
    for i, (answer, title) in enumerate(zip(found, titles)):
        x = asked.inputs[i : i + 1]  # one at a time: all maps of all images may be much
        maps = attention_maps(model, x)
        looks.append(look(model, x, maps, bool(classes), wanted))
        page.add(answer["file"], title, figures.as_picture(asked.data.images[i]), [layer[0] for layer in maps])
    distances = [average(layer, axis=0) for layer in zip(*(look.distances for look in looks))]  # a layer: (heads,)
    even = distances_of(model, [np.ones_like(maps[0])])[0].item(0)

    draw_looks(figures, asked.data.images, looks, titles, args.wanted, model.cls_token is not None, out)
    draw_distances(figures, distances, even, len(looks), out / "distance.png")
    draw_filters(figures, patch_filters(model, FILTERS), out / "filters.png")
    drawn = ["attention", "relevance", "distance", "filters"]
    if model.pos_embed is not None:
        table = model.pos_embed.numpy()[0, -model.patch_embed.num_patches :]
        figures.draw_positions(table, model.patch_embed.grid_size, out / "positions.png")
        drawn.append("positions")
    note = page.write(out / "explorer.html")

    means = [float(average(layer)) for layer in distances]
    print(f"how far a layer looks, px: {' '.join(f'{mean:.1f}' for mean in means)}; if it looked evenly: {even:.1f}")
    print(f"pictures in {out}: {', '.join(drawn)}")
    if page.images:
        print(f"a page to explore: {out / 'explorer.html'}")
    if note:
        print(note)
    return {
        "example": "explain", "checkpoint": str(args.checkpoint), "model": asked.name, "answers": found,
        "attention_distance": means, "attention_distance_even": even, "left_out": note, "out": str(out),
    }  # fmt: skip


def class_number(name: str, classes: list[str], network: str) -> int:
    """The number of a class. Raises ValueError for one that the network does not know."""
    if not classes:
        raise ValueError(f"--class {name}: {network} tells no classes, so nothing speaks for one")
    if name not in classes:
        near = difflib.get_close_matches(name, classes) or classes[:10]
        raise ValueError(
            f"--class must be one of the network's {len(classes)} classes, got {name!r}; try {', '.join(near)}"
        )
    return classes.index(name)


class Look(NamedTuple):
    """Where a network looks in one image."""

    last: np.ndarray  # (heads, grid height, grid width), in the last layer
    rolled: np.ndarray  # (grid height, grid width), through all layers
    speaks: list[np.ndarray]  # likewise, what speaks for the answer, and for the class that was asked for
    distances: list[np.ndarray]  # of each layer (heads,), in pixels


def look(model: Module, image: Array, maps: Sequence[np.ndarray], answers: bool, wanted: int | None) -> Look:
    """At one image (1, C, H, W), with its attention ``maps``; ``answers``: does the network tell classes?"""
    speaks = [relevance(model, image)[0]] if answers else []
    speaks += [relevance(model, image, wanted)[0]] if wanted is not None else []
    distances = [layer[0] for layer in distances_of(model, maps)]
    return Look(class_attention(model, image)[0], class_rollout(model, image)[0], speaks, distances)


def distances_of(model: Module, maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """How far each head looks, in pixels: (B, heads) of each layer."""
    return [attention_distance(layer, model.patch_embed.grid_size, model.patch_embed.patch_size) for layer in maps]


def average(values: Sequence[np.ndarray], axis: int | None = None) -> np.ndarray:
    """The mean of those that are numbers: a head of rectified attention that looks at nothing has no distance."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(axis), np.nan)


# --- pictures ------------------------------------------------------------------------------------------------------


def draw_looks(
    figures: ModuleType, images: np.ndarray, looks: list[Look], titles: list[str], wanted: str | None, token: bool,
    out: Path,
) -> None:  # fmt: skip
    """Head by head, and through all layers; ``token``: is there a class token?"""
    last = np.stack([look.last for look in looks])
    figures.draw_attention(images, last, titles, out / "attention.png")
    through = {"rollout,\nall layers": [look.rolled for look in looks]}
    names = ["relevance for\nthe answer", f"relevance for\n{wanted}"]
    through |= dict(zip(names, zip(*(look.speaks for look in looks))))
    columns = {f"{'class token' if token else 'patches'},\nlast layer": last.mean(1)}
    columns |= {name: np.stack([m - m.min() for m in maps]) for name, maps in through.items()}
    figures.draw_over(images, columns, titles, out / "relevance.png")


def draw_distances(figures: ModuleType, distances: list[np.ndarray], even: float, images: int, path: Path) -> None:
    """A point for each head, layer by layer; ``even``: how far a head looks that looks everywhere alike."""
    figure, axes = figures.plt.subplots(figsize=(4.6, 3.0), layout="constrained")
    layers = np.arange(1, len(distances) + 1)
    for layer, heads in zip(layers, distances):
        label = "a head" if layer == 1 else None
        axes.scatter(np.full(len(heads), layer), heads, s=18, color=figures.TEST, alpha=0.7, linewidths=0, label=label)
    axes.plot(layers, [average(heads) for heads in distances], color=figures.INK, linewidth=1.2, label="mean of heads")
    axes.axhline(even, color=figures.INK, linewidth=0.8, linestyle=":", label="looking everywhere alike")
    axes.set_xticks(layers)
    axes.set_xlabel("layer")
    axes.set_title(f"mean attention distance, px ({images} image{'s' * (images > 1)})", loc="left")
    axes.set_ylim(0, 1.15 * np.nanmax([even, *np.concatenate(distances)]))
    axes.legend(frameon=False, loc="best")
    figures.save(figure, path)


def draw_filters(figures: ModuleType, components: Components, path: Path, across: int = 7) -> None:
    """The components, each scaled to its own largest number (grey is 0), with their shares of the variance."""
    count = len(components.images)
    rows = -(-count // across)
    tall = components.images.shape[2] / components.images.shape[3]
    size = (0.85 * across, (0.85 * tall + 0.25) * rows)
    figure, panels = figures.plt.subplots(rows, across, figsize=size, squeeze=False)
    for axes in panels.ravel():
        figures.bare(axes)
    for axes, image, share in zip(panels.ravel(), components.images, components.shares):
        shown = 0.5 + 0.5 * image / max(abs(image).max(), 1e-12)
        axes.imshow(figures.as_picture(shown), interpolation="nearest")
        axes.set_title(f"{share:.1%}", fontsize=7.5, pad=3)
    figure.subplots_adjust(hspace=0.35 / tall, wspace=0.1)
    figures.save(figure, path)


if __name__ == "__main__":
    with sentences("explain"):
        print(json.dumps(main()))
