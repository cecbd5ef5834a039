"""What does a training step of a Vision Transformer keep in memory, op by op?

    python examples/memory.py                                     # ViT-Ti/16 at 224 px, 4 images
    python examples/memory.py --model vit_base_patch16_224 --batch 1 --recompute

It goes forward once, reads off the graph what the pullback of each op keeps for the way back, and compares the total
with what ``tracemalloc`` saw. With ``--recompute`` it lists the same of blocks that keep only their inputs, and run
once more on the way back (``minivit/nn/recompute.py``). The picture, ``memory.png`` in the folder of the run, shows
both. The last line printed is a JSON object; its sizes are in bytes. A MB is 10⁶ bytes.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from minivit import ops
from minivit.analysis import MemoryReport, training_memory
from minivit.models import VisionTransformer, create_model
from minivit.random import generator

KINDS = {  # of ops, as the picture shows them
    "linear": ("linear",),
    "attention": ("self_attention", "scaled_dot_product_attention", "softmax", "matmul"),
    "gelu": ("gelu",),
    "layer norm": ("layer_norm", "add_layer_norm"),
    "input of a block": ("recompute",),
}
OTHER = "other"
COLOURS = dict(zip([*KINDS, OTHER], ("#2b6cb0", "#dd6b20", "#d69e2e", "#9aa7b8", "#2f855a", "#4a5568")))


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="a name that create_model knows")
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--recompute", action="store_true", help="list what is kept when blocks are computed twice")
    parser.add_argument("--run-dir", type=Path, help="folder of the picture (default: runs/memory-<model>)")
    args = parser.parse_args(arguments)
    if args.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {args.batch}")
    run_dir = args.run_dir or Path("runs") / f"memory-{args.model}"
    model = create_model(args.model)
    run_dir.mkdir(parents=True, exist_ok=True)

    plain, recomputed = (measure(model, args.batch, recompute) for recompute in (False, True))
    listed = recomputed if args.recompute else plain
    print(f"{listed}\n\n{table('op', listed)}\n\n{table('block', listed)}\n")
    print(f"{args.model}, {args.batch} images, {model.num_parameters():,} parameters")
    print(f"{'':24}{'kept by the graph':>18}{'tracemalloc':>14}{'peak of the step':>18}")
    for title, report in {"plain": plain, "blocks recomputed": recomputed}.items():
        print(f"{title:24}{mega(report.kept):>18}{mega(report.traced):>14}{mega(report.peak):>18}")
    draw(plain, recomputed, run_dir / "memory.png")
    return {
        "example": "memory", "model": args.model, "batch": args.batch, "recompute": args.recompute,
        "parameters": model.num_parameters(), "kept_bytes": plain.kept, "traced_bytes": plain.traced,
        "peak_bytes": plain.peak, "kept_bytes_recompute": recomputed.kept, "traced_bytes_recompute": recomputed.traced,
        "peak_bytes_recompute": recomputed.peak, "run_dir": str(run_dir),
    }  # fmt: skip


def measure(model: VisionTransformer, batch: int, recompute: bool) -> MemoryReport:
    """One step on random images; which ones makes no difference."""
    model.set_grad_checkpointing(recompute)
    shape = (batch, model.patch_embed.in_chans, *model.patch_embed.img_size)
    images, labels = generator(0, "memory").standard_normal(shape, np.float32), np.zeros(batch, int)
    ops.cross_entropy(model(images[:1]), labels[:1]).backward(into={})  # what is loaded for a first step does not count
    return training_memory(model, lambda logits: ops.cross_entropy(logits, labels), images)


def table(by: str, report: MemoryReport) -> str:
    """Bytes and share of each op or block."""
    totals = report.totals(by)
    width = max(map(len, totals))
    lines = [f"{name:{width}}  {mega(size):>12}  {size / report.kept:6.1%}" for name, size in totals.items()]
    return "\n".join([f"by {by}", *lines])


def mega(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"


def draw(plain: MemoryReport, recomputed: MemoryReport, path: Path) -> None:
    """Two panels of stacked bars, a bar a block: what its ops keep, and what is left of it with recomputation."""
    try:
        import figures
    except ImportError:
        print("no picture was drawn: it needs matplotlib, pip install 'minivit[examples]'")
        return
    figure, panels = figures.plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    titles = ("each op keeps what it needs", "blocks keep their input, and run twice")
    for axes, title, report in zip(panels, titles, (plain, recomputed)):
        bars, stacks = stack(report)
        below = np.zeros(len(bars))
        for kind, sizes in stacks.items():
            axes.bar(range(len(bars)), sizes / 1e6, bottom=below / 1e6, color=COLOURS[kind], width=0.75, label=kind)
            below += sizes
        axes.set_title(f"{title}: {mega(report.kept)}", loc="left")
        every = -(-len(bars) // 16)
        shown = [i for i, bar in enumerate(bars) if not bar.isdigit() or int(bar) % every == 0]
        axes.set_xticks(shown, [bars[i] for i in shown])
        for label in axes.get_xticklabels():
            label.set_horizontalalignment({"embed": "right", "head": "left"}.get(label.get_text(), "center"))
        axes.set_xlabel("block")
        axes.grid(axis="x", visible=False)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("MB")
    labelled = {kind: bar for axes in panels for bar, kind in zip(*axes.get_legend_handles_labels())}
    kinds = [kind for kind in reversed(COLOURS) if kind in labelled]
    panels[1].legend([labelled[kind] for kind in kinds], kinds, framealpha=1, edgecolor="white", loc="upper right")
    figures.save(figure, path)
    print(f"picture: {path}")


def stack(report: MemoryReport) -> tuple[list[str], dict[str, np.ndarray]]:
    """The bars, "embed", the numbers of the blocks and "head", and for each kind of op its bytes in each bar."""
    bars, cells = [], {}
    for (block, op), size in report.totals("block", "op").items():
        number = block.removeprefix("blocks.")
        bar = number if number.isdigit() else "head" if bars and bars[-1] != "embed" else "embed"
        bars += [] if bar in bars else [bar]
        kind = next((kind for kind, members in KINDS.items() if op in members), OTHER)
        cells[kind, bar] = cells.get((kind, bar), 0) + size
    stacks = {kind: np.array([cells.get((kind, bar), 0) for bar in bars]) for kind in COLOURS}
    return bars, {kind: sizes for kind, sizes in stacks.items() if sizes.sum() > 0.005 * report.kept}


if __name__ == "__main__":
    try:
        print(json.dumps(main()))
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"memory: {error}")
