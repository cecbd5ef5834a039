"""How time and memory of a training step grow with the batch, with the number of tokens, and with the depth.

    python benchmarks/growth.py

One of the three is varied, the others stay. Every point is measured in a process of its own: the fastest of three
steps after the first, and the peak memory above that of a process which has imported all and made the images (Linux).
PyTorch eager, where it is installed, is measured beside minivit. The picture has logarithmic axes, in which a power law
is a straight line; its exponent between the last two points is in the JSON object that is the last line.

What to expect of a Vision Transformer of N tokens and width D: attention's time and memory are quadratic in N, all else
is linear, and attention's share of the products is N / (N + 6 D) (for ``mlp_ratio`` 4). Micro-batches keep memory from
growing with the batch.
"""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

from contenders import Job, available, measure_alone
from measuring import draw, positive, use_cores
from tqdm import tqdm

from minivit.models import VisionTransformer, list_models

BASE = Job("vit_tiny_patch16_224", batch=8)
SWEEPS = {
    "batch": (1, 2, 4, 8, 16, 32, 64),
    "tokens": (32, 64, 112, 224, 448),  # pixels of a side
    "depth": (1, 3, 6, 12, 24),
}
QUICK = Job("vit_nano_patch7_28", batch=4), {"batch": (2, 4), "tokens": (14, 28), "depth": (2, 4)}


def varied(base: Job, quantity: str, value: int) -> Job:
    """The job with another batch, depth or, for "tokens", side of the image."""
    if quantity == "batch":
        return replace(base, batch=value)
    return replace(base, options=base.options | {"img_size" if quantity == "tokens" else quantity: value})


def measure(base: Job, sweeps: dict[str, tuple[int, ...]], contenders: list[str]) -> list[dict]:
    """A row for each quantity, value and contender; what several sweeps share is measured once."""
    size, depth = base.create_model(weight_init="skip").patch_embed.img_size[0], len(base.create_model().blocks)
    same = replace(base, options={"img_size": size, "depth": depth})
    points = [(quantity, value, name) for quantity in sweeps for value in sweeps[quantity] for name in contenders]
    known: dict[str, dict] = {}
    rows = []
    for quantity, value, name in tqdm(points, desc="growth", disable=None, leave=False):
        job = replace(varied(same, quantity, value), contender=name)
        if (key := repr(job)) not in known:
            known[key] = measure_alone(job)
        embed = job.create_model(weight_init="skip", depth=1).patch_embed
        x = embed.num_patches + 1 if quantity == "tokens" else value
        rows.append({"varied": quantity, "value": x, "contender": name, **known[key]})
    return rows


def exponents(rows: list[dict]) -> dict[str, float]:
    """p of y ∝ xᵖ between the two largest values of each sweep, of time and memory; PyTorch's have its name in front.

    >>> row = {"varied": "depth", "contender": "minivit", "peak_bytes": 5}
    >>> exponents([row | {"value": x, "seconds": x**2} for x in (2, 4)])
    {'time_exponent_depth': 2.0, 'memory_exponent_depth': 0.0}
    """
    found = {}
    for quantity, name in dict.fromkeys((row["varied"], row["contender"]) for row in rows):
        line = sorted((r for r in rows if (r["varied"], r["contender"]) == (quantity, name)), key=lambda r: r["value"])
        before, last = line[-2:]
        for what, key in (("time", "seconds"), ("memory", "peak_bytes")):
            if last[key] and before[key]:
                power = math.log(last[key] / before[key]) / math.log(last["value"] / before["value"])
                found[f"{'' if name == 'minivit' else name + '_'}{what}_exponent_{quantity}"] = power
    return found


def show(rows: list[dict]) -> None:
    """The rows for people."""
    for row in rows:
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:9.0f} MB"
        print(f"{row['varied']:>8} {row['value']:6} {row['contender']:>12} {row['seconds']:9.3f} s{peak}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, known = parser.add_argument, list_models(VisionTransformer)
    add("--model", choices=known, metavar="NAME", help=f"what is varied (default: {BASE.model})")
    add("--batch", type=positive, help="images a step where the batch is not varied (default: 8)")
    add("--workers", type=positive, help="threads of minivit (default: one for each core)")
    add("--micro-batch", type=positive, help="images at a time for minivit (default: what fits the cache)")
    add("--threads", type=positive, help="keep all to so many cores (default: all cores)")
    add("--torch", action=argparse.BooleanOptionalAction, default=True, help="also PyTorch, if it is installed")
    add("--picture", type=Path, default=Path("runs/growth.png"), help="default: runs/growth.png")
    add("--quick", action="store_true", help="a tiny model and two values of each: does the script work?")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    cores = use_cores(options.threads)
    base, sweeps = QUICK if options.quick else (BASE, SWEEPS)
    base = replace(base, model=options.model or base.model, batch=options.batch or base.batch)
    base = replace(base, workers=options.workers, micro_batch=options.micro_batch)
    contenders = [name for name in available() if name == "minivit" or (options.torch and name == "torch_eager")]
    if options.torch and len(contenders) == 1:
        print("PyTorch is not installed: minivit alone", file=sys.stderr)
    rows = measure(base, sweeps, contenders)
    show(rows)
    draw("draw_growth", rows, options.picture)
    report = {"benchmark": "growth", "name": base.model, "batch": base.batch, "threads": cores}
    print(json.dumps(report | exponents(rows) | {"rows": rows}))


if __name__ == "__main__":
    main()
