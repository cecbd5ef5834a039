"""How much of the sum over ranks backward hides, where the network is slow.

    python benchmarks/overlap.py

This process computes what one rank of ``--ranks`` does. The network is simulated: a sum waits as long as the cheapest
all-reduce takes (all_reduce.py), and adds nothing. What a real one needs of the cores is therefore left out. Three
steps take turns: of a rank alone, with the sum after backward, and with the sum on the way. The last line is a JSON
object.
"""

import argparse
import json
import time
from functools import partial

import numpy as np
from all_reduce import ETHERNET, Network, all_reduce
from contenders import Job, Minivit
from measuring import Task, Warm, engine, positive, quartiles, take_turns, use_cores

from minivit.backend import reuse_freed_memory
from minivit.models import VisionTransformer, list_models
from minivit.training import Layout, Ranks, choose_layout

QUICK = "vit_nano_patch7_28"


class Waiting(Ranks):
    """Rank 0 of ``size``, on a simulated network."""

    def __init__(self, size: int, network: Network):
        self.size, self.network = size, network

    def sum(self, array: np.ndarray) -> None:
        time.sleep(all_reduce(self.size, array.nbytes, self.network))


def measure(job: Job, network: Network, ranks: int, rounds: int) -> dict:
    """A row of the report."""
    reuse_freed_memory()  # as the training examples do
    images, labels = job.make_batch()
    cut = choose_layout(job.create_model(), images[:1], job.batch)
    wires = {"alone": Ranks(), "afterwards": Waiting(ranks, network), "on_the_way": Waiting(ranks, network)}
    tasks: dict[str, Task] = {}
    for name, wire in wires.items():
        layout = Layout(cut.workers, cut.micro_batch, wire, overlap=name == "on_the_way")
        rank = Minivit(job.create_model(), layout)
        run = partial(rank.training, images, labels)
        tasks[name] = (Warm(layout, run), run)
        gradient = rank.optimizer.flat.grad.nbytes
    seconds = take_turns(tasks, rounds, job.model)
    summing = all_reduce(ranks, gradient, network)
    row = {"name": job.model, "batch": job.batch, "network": network.name, "ranks": ranks, "rounds": rounds}
    row |= {"engine": engine(), "workers": cut.workers, "micro_batch": cut.micro_batch, "all_reduce_seconds": summing}
    row |= {f"{name}_seconds": float(np.median(taken)) for name, taken in seconds.items()}
    low, median, high = quartiles(seconds["afterwards"] / seconds["on_the_way"])
    return row | {"speedup": median, "spread": [low, high]}


def show(row: dict) -> None:
    """A row for people."""
    low, high = row["spread"]
    print(f"\n{row['name']}, {row['batch']} images a rank, {row['ranks']} ranks, {row['network']} (simulated)")
    print(f"  minivit: {row['engine']}; workers {row['workers']}, {row['micro_batch']} images at a time")
    print(f"  sum alone {row['all_reduce_seconds']:.3f} s; a step without {row['alone_seconds']:.3f} s", end=", ")
    print(f"with it afterwards {row['afterwards_seconds']:.3f} s, on the way {row['on_the_way_seconds']:.3f} s:")
    print(f"  on the way a step is {row['speedup']:.2f} times as fast ({low:.2f} … {high:.2f})")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, known = parser.add_argument, list_models(VisionTransformer)
    add("--model", choices=known, default="vit_tiny_patch16_224", metavar="NAME", help="default: %(default)s")
    add("--batch", type=positive, default=32, help="images a step of a rank (default: 32)")
    add("--ranks", type=positive, default=8, help="default: 8")
    add("--threads", type=positive, help="keep all to so many cores (default: all cores)")
    add("--rounds", type=positive, default=10, help="turns of each (default: 10)")
    add("--quick", action="store_true", help="a tiny model, two rounds: does the script work?")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    use_cores(options.threads)
    model, batch, rounds = (QUICK, 8, 2) if options.quick else (options.model, options.batch, options.rounds)
    rows = [measure(Job(model, batch), network, options.ranks, rounds) for network in ETHERNET]
    for row in rows:
        show(row)
    print(json.dumps({"benchmark": "overlap", "rows": rows}))


if __name__ == "__main__":
    main()
