"""What the sum of the gradients over ranks costs: arithmetic that goes from two ranks to 8, 64 and 1,024.

    python benchmarks/all_reduce.py

A message of S bytes takes latency + S / bandwidth. An *all-reduce* over R ranks then takes

    ring                 2 (R−1) latency + 2 (R−1)/R · S/bandwidth      many messages, fewest bytes
    recursive doubling   ⌈log₂ R⌉ (latency + S/bandwidth)               few messages, all bytes in each
    Rabenseifner         2 ⌈log₂ R⌉ latency + 2 (R−1)/R · S/bandwidth   few messages, fewest bytes: halves, quarters, …

(Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH", 2005), and the cheapest
is taken here. Adding the numbers up is left out: memory is faster than networks. Contention is left out too.

A step without overlap is computing, then the sum, whose *share* is sum / (computing + sum). With overlap, the gradients
of the last block are on their way while backward is at the block before it. At best that hides as much of the sum as
backward lasts, two thirds of the computing: min(sum, ⅔ computing) / (computing + sum) of the step. In truth it is less,
as the first block's gradient comes last, and as on a CPU the sending needs the cores too. Each cell of the tables: the
sum's time, its share of a step, and the largest share that overlap could hide; bold where that is a tenth or more.

It prints Markdown, the page in README.md, and last a JSON object.
"""

import argparse
import itertools
import json
import math
import sys
from dataclasses import dataclass

import numpy as np
from contenders import Job, flops_per_image, measure_alone
from measuring import NO_MPI, mpiexec, positive, run_child, seconds_of

from minivit.training import connect

MODELS = {
    "ViT-Ti/16": "vit_tiny_patch16_224", "ViT-S/16": "vit_small_patch16_224", "ViT-B/16": "vit_base_patch16_224",
    "ViT-L/16": "vit_large_patch16_224", "ViT-H/14": "vit_huge_patch14_224",
}  # fmt: skip
RANKS = (8, 64, 1024)
WORTH_IT = 0.1  # of a step


@dataclass(frozen=True)
class Network:
    """What connects ranks."""

    name: str
    latency: float  # seconds before the first byte
    bandwidth: float  # bytes a second
    reach: int = 1 << 20  # ranks
    measured: bool = False


ETHERNET = [Network(f"Ethernet, {g} Gb/s", microseconds * 1e-6, g / 8 * 1e9) for g, microseconds in ((1, 50), (10, 30))]
FAST_ETHERNET = Network("Ethernet, 100 Gb/s", 10e-6, 12.5e9)
INFINIBAND = Network("InfiniBand, 400 Gb/s", 3e-6, 50e9)
NVLINK = Network("NVLink, 450 GB/s", 3e-6, 450e9, reach=8)  # the GPUs of one machine


@dataclass(frozen=True)
class Computer:
    """What a rank is."""

    name: str
    flops: float  # a second, in a training step
    batch: int  # images of a step


GPU = Computer("a GPU, assumed to reach 200 TFLOP/s", 200e12, 64)


@dataclass(frozen=True)
class Load:
    """What a rank has to do for a network: compute, FLOPs for each image, and send a gradient, bytes."""

    label: str
    flops: int
    gradient: int


def ring(ranks: int, size: float, network: Network) -> float:
    """Seconds.

    >>> round(ring(4, 8e6, Network("", latency=1e-3, bandwidth=1e9)), 9)  # 2 · 3 ms + 2 · ¾ · 8 ms
    0.018
    """
    return 2 * (ranks - 1) * network.latency + 2 * (ranks - 1) / ranks * size / network.bandwidth


def recursive_doubling(ranks: int, size: float, network: Network) -> float:
    """Seconds.

    >>> round(recursive_doubling(4, 8e6, Network("", latency=1e-3, bandwidth=1e9)), 9)  # 2 · (1 ms + 8 ms)
    0.018
    """
    return math.ceil(math.log2(ranks)) * (network.latency + size / network.bandwidth)


def rabenseifner(ranks: int, size: float, network: Network) -> float:
    """Seconds.

    >>> round(rabenseifner(4, 8e6, Network("", latency=1e-3, bandwidth=1e9)), 9)  # 2 · 2 ms + 2 · ¾ · 8 ms
    0.016
    """
    rounds = math.ceil(math.log2(ranks))
    return 2 * rounds * network.latency + 2 * (ranks - 1) / ranks * size / network.bandwidth


def all_reduce(ranks: int, size: float, network: Network) -> float:
    """Seconds of the cheapest way."""
    return min(way(ranks, size, network) for way in (ring, recursive_doubling, rabenseifner))


def shares(computing: float, summing: float) -> tuple[float, float]:
    """Of a step without overlap: the share of the all-reduce, and the largest share that overlap could hide.

    >>> shares(computing=3.0, summing=1.0), shares(computing=3.0, summing=5.0)
    ((0.25, 0.25), (0.625, 0.25))
    """
    return summing / (computing + summing), min(summing, computing * 2 / 3) / (computing + summing)


def load(label: str) -> Load:
    """Counted on the model."""
    job = Job(MODELS[label], 1)
    return Load(label, flops_per_image(job), 4 * job.create_model(weight_init="skip").num_parameters())


def measure_network() -> Network:
    """Latency and bandwidth of two ranks that share this machine's memory, from the sum of 8 bytes, and of 24 MB.

    Between two ranks every way sends S bytes: latency + S/bandwidth.
    """
    found = run_child([mpiexec(), "-n", "2", sys.executable, __file__, "--inside"])
    (_, latency), (size, seconds) = found["sums"]
    return Network("shared memory", latency, size / (seconds - latency), reach=8, measured=True)


def inside() -> None:
    """Be a rank that is measured: (bytes, median seconds of a sum), printed by rank 0."""
    ranks = connect()
    with ranks.together():
        sums = []
        for numbers, repeats in ((2, 200), (6_000_000, 20)):
            array, seconds = np.zeros(numbers, np.float32), []
            for _ in range(repeats):
                ranks.any(False)  # begin together
                seconds.append(seconds_of(lambda array=array: ranks.sum(array)))
            sums.append([array.nbytes, float(np.median(seconds))])
        print(json.dumps({"sums": sums}))


def measure_computer(batch: int) -> Computer:
    """The training FLOP/s of this machine, of a few steps of ViT-Ti/16."""
    job = Job("vit_tiny_patch16_224", batch)
    flops = batch * flops_per_image(job) / measure_alone(job)["seconds"]
    return Computer(f"a machine like this one, measured to reach {flops / 1e9:.0f} GFLOP/s", flops, batch)


def table(computer: Computer, networks: list[Network], loads: list[Load]) -> tuple[list[str], list[dict]]:
    """Markdown lines and rows: each load on each network."""
    lines = [f"| network | model | gradient | computing | {' | '.join(f'{r:,} ranks' for r in RANKS)} |"]
    lines.append("| --- | --- | ---: | ---: |" + " ---: |" * len(RANKS))
    rows = []
    for network, one in itertools.product(networks, loads):
        computing = computer.batch * one.flops / computer.flops
        cells = [network.name, one.label, f"{one.gradient / 1e6:.0f} MB", duration(computing)]
        for ranks in RANKS:
            if ranks > network.reach:
                cells.append("")
                continue
            summing = all_reduce(ranks, one.gradient, network)
            share, hidden = shares(computing, summing)
            text = f"{percent(share)} / {percent(hidden)}"
            cells.append(f"{duration(summing)}: " + (f"**{text}**" if hidden >= WORTH_IT else text))
            row = {"name": MODELS[one.label], "network": network.name, "computer": computer.name, "ranks": ranks}
            row |= {"gradient_bytes": one.gradient, "computing_seconds": computing, "all_reduce_seconds": summing}
            rows.append(row | {"all_reduce_share": share, "overlap_share": hidden})
        lines.append(f"| {' | '.join(cells)} |")
    return lines, rows


def duration(seconds: float) -> str:
    number, unit = (seconds, "s") if seconds >= 1 else (1e3 * seconds, "ms")
    return f"{number:.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def page(pairs: list[tuple[Computer, list[Network]]], loads: list[Load]) -> tuple[str, list[dict]]:
    """The Markdown page and its rows."""
    lines = [__doc__[__doc__.index("A message") : __doc__.index("It prints")].rstrip(), ""]
    rows = []
    for computer, networks in pairs:
        found, more = table(computer, networks, loads)
        lines += [f"A rank is {computer.name}, and takes {computer.batch} images a step.", "", *found, ""]
        lines += [*(verdict(network, more) for network in networks), ""]
        rows += more
    return "\n".join(lines), rows


def verdict(network: Network, rows: list[dict]) -> str:
    """What a network was taken for, and whether overlap pays there."""
    saved = [row["overlap_share"] for row in rows if row["network"] == network.name]
    worth = sum(share >= WORTH_IT for share in saved)
    figures = f"{1e6 * network.latency:.2g} µs, {network.bandwidth / 1e9:.3g} GB/s"
    line = f"- {network.name} ({'measured' if network.measured else 'assumed'}: {figures}): "
    return line + f"overlap pays in {worth} of {len(saved)} cases, and saves at most {percent(max(saved))}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--batch", type=positive, default=32, help="images a step of a CPU rank (default: 32)")
    add("--gflops", type=positive, help="what a CPU rank reaches in training, GFLOP/s (default: measured here)")
    add("--quick", action="store_true", help="ViT-Ti/16 alone, and nothing measured: does the script work?")
    add("--inside", action="store_true", help="be one of the ranks that are measured")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.inside:
        inside()
        return
    given = options.gflops or (100 if options.quick else None)
    if given:
        computer = Computer(f"a machine given to reach {given} GFLOP/s", given * 1e9, options.batch)
    else:
        computer = measure_computer(options.batch)
    report = {"benchmark": "all_reduce", "gflops": computer.flops / 1e9, "batch": computer.batch}
    measured = []
    if not options.quick and mpiexec():
        measured = [measure_network()]
        report |= {"latency_seconds": measured[0].latency, "bytes_per_second": measured[0].bandwidth}
    elif not options.quick:
        print(NO_MPI, file=sys.stderr)
    loads = [load(label) for label in list(MODELS)[: 1 if options.quick else None]]
    pairs = [(computer, [*measured, *ETHERNET, FAST_ETHERNET]), (GPU, [FAST_ETHERNET, INFINIBAND, NVLINK])]
    text, rows = page(pairs, loads)
    print(text)
    print(json.dumps(report | {"rows": rows}))


if __name__ == "__main__":
    main()
