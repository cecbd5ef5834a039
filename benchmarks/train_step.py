"""A training step, and inference, of a network: minivit against the same network in PyTorch, on this CPU.

    python benchmarks/train_step.py                     # three Vision Transformers
    python benchmarks/train_step.py --model resnet20    # a residual network

A training step is forward, backward and AdamW on a whole batch; inference is forward alone. minivit cuts the batch as
``choose_layout`` finds for this machine; PyTorch has a thread for every core and takes the batch whole. They get the
same weights, and their logits and gradients are compared first. Then they take turns in one process, so that whatever
else the machine does meets all; each turn gives ratios of times, of which the median and the quartiles are reported.
minivit asks the C library to keep freed memory, as its examples do; in PyTorch's turns the library does what it does by
itself, unless ``--same-allocator`` is given. Peak memory is above that of a process which has imported all and made the
images, measured in a process for each, on Linux.

torch.compile takes part where there is a C++ compiler, in races of its own after those of eager: what it leaves behind
keeps the heap from shrinking, and then eager need not take again the memory that by itself it gives away in each step.

Matrix products take their turn too: NumPy's of 1024 × 1024 float32 matrices, one on each core or on all cores together,
whichever is faster at the moment. Their FLOP/s are this machine's SGEMM rate. minivit's FLOP/s are those that the
network as it is defined needs: all tokens through all blocks, a multiply-add being two, nothing but matrix products.
``sgemm_share`` is the ratio of the two. As minivit's last block computes only what the head reads, it does less than
that: ``sgemm_share_computed`` counts only what it does.

The last line is a JSON object.
"""

import argparse
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
from contenders import MODES, Job, compare, flops_per_image, make_contender, measure_alone, taking_part
from measuring import Task, Warm, engine, positive, quartiles, take_turns, use_cores

from minivit.models import VisionTransformer, list_models, resnet
from minivit.random import generator
from minivit.training import Layout

BATCHES = {"vit_tiny_patch16_224": 64, "vit_small_patch16_224": 16, "vit_cifar_patch4_32": 128}
QUICK = {"vit_nano_patch7_28": 4}
RESNETS = [name for name, options in resnet.CONFIGURATIONS.items() if options.get("shortcut") == "A"]  # as torch_resnet
SIDE, PRODUCTS = 1024, 8  # matrices, and how many products a core in a turn: about a quarter of a second


def sgemm_tasks(cores: int) -> tuple[dict[str, Task], int]:
    """Matrix products for all cores, one on each, or all on each; and the FLOPs of either."""
    rng = generator(0, "benchmark", "sgemm")
    a, b = rng.standard_normal((2, SIDE, SIDE), np.float32)
    out = np.empty((cores, SIDE, SIDE), np.float32)
    apart = Layout(cores)

    def multiply(core: int, piece: slice | None = None) -> None:
        for _ in range(PRODUCTS):
            np.matmul(a, b, out=out[core])

    tasks = {
        "sgemm_apart": (apart, lambda: apart.map(multiply, cores)),
        "sgemm_together": (nullcontext(), lambda: [multiply(core) for core in range(cores)]),
    }
    return tasks, 2 * SIDE**3 * PRODUCTS * cores


def benchmark(job: Job, modes: list[str], contenders: list[str], rounds: int, cores: int) -> list[dict]:
    """Compare, race and weigh one network: a row of the report for each mode."""
    differences = compare(job)
    images, labels = job.make_batch()
    made = {name: make_contender(replace(job, contender=name)) for name in contenders}
    layout = made["minivit"].layout
    rows = []
    for mode in modes:
        jobs = {name: replace(job, contender=name, mode=mode) for name in contenders}
        peaks = {name: measure_alone(jobs[name], repeats=1)["peak_bytes"] for name in contenders}
        works = {name: partial(getattr(one, mode), images, labels) for name, one in made.items()}
        tasks: dict[str, Task] = {name: (Warm(one.layout, works[name]), works[name]) for name, one in made.items()}
        products, product_flops = sgemm_tasks(cores)
        seconds = take_turns(tasks | products, rounds, f"{job.model} {mode}")
        sgemm_rates = product_flops / np.minimum(*(seconds[name] for name in products))
        whole, computed = (job.batch * flops_per_image(jobs["minivit"], whole) for whole in (True, False))
        row = {"name": job.model, "mode": mode, "batch": job.batch, "threads": cores, "rounds": rounds}
        piece = layout.pieces(job.batch, graph=mode == "training")[-1]  # the largest
        row |= {"engine": engine(), "workers": layout.workers, "micro_batch": piece.stop - piece.start}
        row |= {"torch_micro_batch": job.torch_micro_batch or job.batch, **differences}
        row |= against(seconds, peaks, contenders, job.batch)
        row["minivit_gflops"] = whole / float(np.median(seconds["minivit"])) / 1e9
        row["sgemm_gflops"] = float(np.median(sgemm_rates)) / 1e9
        row["sgemm_share"] = float(np.median(whole / seconds["minivit"] / sgemm_rates))
        row["sgemm_share_computed"] = row["sgemm_share"] * computed / whole
        show(row)
        rows.append(row)
    return rows


def against(
    seconds: Mapping[str, np.ndarray], peaks: Mapping[str, int | None], contenders: list[str], batch: int
) -> dict:
    """The part of a row that compares: of each its throughput and memory, of all but minivit the ratios."""
    row = {}
    for name in contenders:
        row[f"{name}_images_per_second"] = batch / float(np.median(seconds[name]))
        row[f"{name}_memory_bytes"] = peaks[name]
        if name != "minivit":
            low, median, high = quartiles(seconds[name] / seconds["minivit"])
            row |= {f"speedup_vs_{name}": median, spread_key(name): [low, high]}
            row[f"memory_vs_{name}"] = peaks["minivit"] / peaks[name] if peaks[name] else None
    return row


def spread_key(contender: str) -> str:
    return "spread" if contender == "torch_eager" else f"spread_vs_{contender}"


def show(row: dict) -> None:
    """A row for people."""
    print(f"\n{row['name']}, {row['mode']}, batch {row['batch']}, cores {row['threads']}, rounds {row['rounds']}")
    print(f"  minivit: {row['engine']}; workers {row['workers']}, {row['micro_batch']} images at a time", end="")
    print(f"; PyTorch: {row['torch_micro_batch']} images at a time")
    print(f"  difference: logits {row['logits_difference']:.1e}, gradients {row['gradients_difference']:.1e}")
    for name in (key.removesuffix("_images_per_second") for key in row if key.endswith("_images_per_second")):
        peak = row[f"{name}_memory_bytes"]
        line = f"  {name:14}{row[f'{name}_images_per_second']:9.1f} images/s"
        line += f"{peak / 1e6:9.0f} MB" if peak is not None else ""
        if name != "minivit":
            low, high = row[spread_key(name)]
            line += f"   minivit is {row[f'speedup_vs_{name}']:.2f} times as fast ({low:.2f} … {high:.2f})"
            ratio = row[f"memory_vs_{name}"]
            line += f", in {100 * ratio:.0f} % of the memory" if ratio is not None else ""
        print(line)
    print(f"  minivit: {row['minivit_gflops']:.0f} GFLOP/s, {100 * row['sgemm_share']:.0f} % of", end=" ")
    print(f"{row['sgemm_gflops']:.0f} for matrix products alone; {100 * row['sgemm_share_computed']:.0f} %", end=" ")
    print("without what the last block leaves out", flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, known = parser.add_argument, list_models(VisionTransformer) + RESNETS
    add("--model", action="append", choices=known, metavar="NAME", help=f"default: {', '.join(BATCHES)}")
    add("--mode", action="append", choices=MODES, help="default: both")
    add("--batch", type=positive, help="images a step (default: 64, vit_small 16, vit_cifar 128)")
    add("--workers", type=positive, help="threads of minivit (default: one for each core)")
    add("--micro-batch", type=positive, help="images at a time for minivit (default: what fits the cache)")
    add("--torch-micro-batch", type=positive, help="images at a time for PyTorch (default: all)")
    add("--same-allocator", action="store_true", help="let PyTorch keep freed memory too, as minivit does")
    add("--threads", type=positive, help="keep all to so many cores (default: all cores)")
    add("--rounds", type=positive, help="turns of each (default: 10)")
    add("--compile", action=argparse.BooleanOptionalAction, help="also torch.compile (default: if there is a compiler)")
    add("--quick", action="store_true", help="a tiny model, two rounds, no torch.compile: does the script work?")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    contenders = taking_part(options)
    cores = use_cores(options.threads)
    defaults = QUICK if options.quick else BATCHES
    rows: dict[tuple[str, str], dict] = {}
    for rival in contenders[1:]:
        for name in options.model or defaults:
            job = Job(
                name, options.batch or defaults.get(name, 64), workers=options.workers,
                micro_batch=options.micro_batch, torch_micro_batch=options.torch_micro_batch,
                same_allocator=options.same_allocator,
            )  # fmt: skip
            rounds = options.rounds or (2 if options.quick else 10)
            for row in benchmark(job, options.mode or list(MODES), ["minivit", rival], rounds, cores):
                key = name, row["mode"]
                rows[key] = row | rows.get(key, {})  # what both races say of minivit is of the first
    print(json.dumps({"benchmark": "train_step", "rows": list(rows.values())}))


if __name__ == "__main__":
    main()
