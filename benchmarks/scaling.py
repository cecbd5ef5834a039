"""Throughput of a training step over layouts: worker threads, ranks, and both.

    python benchmarks/scaling.py

A layout of R ranks with W workers each uses R · W cores, one BLAS thread each. Every layout whose R and W are powers of
two or the number of cores, and which fits the machine, takes the same batch of the same network. In a round each layout
has its turn, in fresh processes: a step that is not measured, then some that are. So what else the machine does meets
all of them; ratios are taken within a round, and their median and quartiles reported. Ranks are started by the
``mpiexec`` that lies beside python. ``all_reduce_seconds`` is the time of a sum of the flat gradient over the ranks.

The last line is a JSON object.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from contenders import Job, make_contender
from measuring import NO_MPI, draw, mpiexec, positive, quartiles, run_child, seconds_of, use_cores
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from minivit.models import VisionTransformer, list_models
from minivit.training import connect

Cut = tuple[int, int]  # ranks, workers of each


def cuts(cores: int, with_ranks: bool = True) -> list[Cut]:
    """All (ranks, workers) of powers of two, and of all cores, that need at most ``cores``; the smallest first.

    >>> cuts(4)
    [(1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1)]
    """
    counts = {2**i for i in range(cores.bit_length())} | {cores}
    found = [(ranks, workers) for ranks in counts for workers in counts if ranks * workers <= cores]
    return sorted((cut for cut in found if with_ranks or cut[0] == 1), key=lambda cut: (cut[0] * cut[1], cut[0]))


def measure(cut: Cut, options: argparse.Namespace) -> dict:
    """One turn of a layout: what ``inside`` prints in processes of its own."""
    ranks, workers = cut
    start = [mpiexec(), "-n", str(ranks)] if ranks > 1 else []
    command = [*start, sys.executable, __file__, "--inside", "--model", options.model, "--batch", str(options.batch)]
    command += ["--workers", str(workers), "--steps", str(options.steps)]
    return run_child(command + (["--micro-batch", str(options.micro_batch)] if options.micro_batch else []))


def inside(options: argparse.Namespace) -> None:
    """Be one rank, or the only one: seconds of a step and of an all-reduce, medians, printed by rank 0."""
    ranks = connect()
    with ranks.together():
        job = Job(options.model, options.batch, workers=options.workers, micro_batch=options.micro_batch)
        contender = make_contender(job, ranks)
        share = slice(ranks.rank * job.batch // ranks.size, (ranks.rank + 1) * job.batch // ranks.size)
        images, labels = (part[share] for part in job.make_batch())
        gradient = contender.optimizer.flat.grad
        steps, sums = [], []
        with contender.layout, threadpool_limits(1, "blas"):
            for _ in range(1 + options.steps):
                steps.append(seconds_of(lambda: contender.training(images, labels, job.batch)))
                ranks.any(False)  # nobody goes on before all are here
                sums.append(seconds_of(lambda: ranks.sum(gradient)))
        figures = {"step_seconds": float(np.median(steps[1:])), "all_reduce_seconds": float(np.median(sums[1:]))}
        print(json.dumps(figures | {"micro_batch": contender.layout.micro_batch, "gradient_bytes": gradient.nbytes}))


def rate(turns: list[dict], batch: int) -> np.ndarray:
    """Images a second, one entry a round."""
    return batch / np.array([turn["step_seconds"] for turn in turns])


def rows_of(turns: dict[Cut, list[dict]], batch: int) -> list[dict]:
    """A row a layout: throughput, and how many times that of one core."""
    one = rate(turns[1, 1], batch)
    rows = []
    for (ranks, workers), seen in turns.items():
        own = rate(seen, batch)
        low, median, high = quartiles(own / one)
        row = {"ranks": ranks, "workers": workers, "micro_batch": seen[0]["micro_batch"]}
        row |= {"images_per_second": float(np.median(own)), "speedup": median, "spread": [low, high]}
        sums = [turn["all_reduce_seconds"] for turn in seen]
        rows.append(row | {"all_reduce_seconds": float(np.median(sums)) if ranks > 1 else 0.0})
    return rows


def claims(turns: dict[Cut, list[dict]], rows: list[dict], batch: int) -> dict:
    """The flat keys of the report: speed-ups of pure workers and ranks, and one against the other."""
    found = {}
    for row in rows:
        for one, many in (("ranks", "workers"), ("workers", "ranks")):
            if row[one] == 1 < row[many]:
                found[f"speedup_{row[many]}_{many}"] = row["speedup"]
                found[f"spread_{row[many]}_{many}"] = row["spread"]
        if row["workers"] == 1 < row["ranks"]:
            n = row["ranks"]
            low, median, high = quartiles(rate(turns[n, 1], batch) / rate(turns[1, n], batch))
            found |= {f"ranks_{n}_vs_workers_{n}": median, f"spread_ranks_{n}_vs_workers_{n}": [low, high]}
            found["all_reduce_seconds"] = row["all_reduce_seconds"]  # of the most ranks
    return found


def show(rows: list[dict]) -> None:
    """The rows for people."""
    print("ranks  workers  images/s  times one core        all-reduce")
    for row in rows:
        low, high = row["spread"]
        line = f"{row['ranks']:5} {row['workers']:8} {row['images_per_second']:9.2f}"
        line += f"  {row['speedup']:4.2f} ({low:.2f} … {high:.2f})"
        print(line + (f" {1e3 * row['all_reduce_seconds']:9.1f} ms" if row["ranks"] > 1 else ""))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, known = parser.add_argument, list_models(VisionTransformer)
    add("--model", choices=known, default="vit_tiny_patch16_224", metavar="NAME", help="default: %(default)s")
    add("--batch", type=positive, default=32, help="images a step, of all ranks together (default: 32)")
    add("--micro-batch", type=positive, help="images at a time (default: what fits the cache)")
    add("--threads", type=positive, help="keep all to so many cores (default: all cores)")
    add("--rounds", type=positive, default=7, help="turns of each layout (default: 7)")
    add("--steps", type=positive, default=2, help="steps that are measured in a turn (default: 2)")
    add("--picture", type=Path, default=Path("runs/scaling.png"), help="default: runs/scaling.png")
    add("--quick", action="store_true", help="a tiny model and one round: does the script work?")
    add("--inside", action="store_true", help="be one of the processes that are measured")
    add("--workers", type=positive, default=1, help="with --inside: worker threads of each rank")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.batch, options.rounds, options.steps = "vit_nano_patch7_28", 8, 1, 1
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.inside:
        inside(options)
        return
    cores = use_cores(options.threads)
    layouts = cuts(min(cores, options.batch), with_ranks=mpiexec() is not None)
    if mpiexec() is None:
        print(NO_MPI, file=sys.stderr)
    turns: dict[Cut, list[dict]] = {cut: [] for cut in layouts}
    for cut in tqdm(options.rounds * layouts, desc="scaling", disable=None, leave=False):
        turns[cut].append(measure(cut, options))
    rows = rows_of(turns, options.batch)
    show(rows)
    draw("draw_scaling", rows, options.picture)
    report = {"benchmark": "scaling", "name": options.model, "batch": options.batch, "threads": cores}
    report |= {"rounds": options.rounds, "gradient_bytes": turns[1, 1][0]["gradient_bytes"]}
    print(json.dumps(report | claims(turns, rows, options.batch) | {"rows": rows}))


if __name__ == "__main__":
    main()
