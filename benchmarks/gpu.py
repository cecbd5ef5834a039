"""A training step of Vision Transformers on an NVIDIA GPU: minivit against PyTorch, in one run.

    python benchmarks/gpu.py

A step is forward, backward and AdamW on a batch that lies on the GPU. minivit makes it op by op (``train_step``) and as
a CUDA graph (``CapturedStep``); PyTorch eagerly and compiled, in bf16 by autocast or with TF32 products, and with its
fused AdamW. The network is timm's, if that is installed. All have the same weights; before anything is timed, logits
and gradients of both are compared with PyTorch's in float64.

Then they take turns of some steps, timed by CUDA events; ratios are taken within a round, and their median and
quartiles reported. One large bf16 product has its turn too: FLOP/s are also told as a share of its own. They are those
of the network as it is defined, all tokens through all blocks, a multiply-add being two; minivit's last block leaves
some of them out. Memory is what a contender takes of the GPU's, from making its optimizer to its third step.

``--ladder`` measures instead what each part of ``minivit/cuda`` brings, beside what was predicted of it.
The run is bounded by ``--minutes``: what there was no time for is named. The last line is a JSON object.
"""

import argparse
import functools
import json
import math
import sys
import time
import traceback
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
from contenders import Job, flops_per_image
from gpu_contenders import (
    CONTENDERS,
    Minivit,
    Turn,
    available,
    compare,
    free_memory,
    gpu_name,
    gpu_seconds,
    large_product,
    make_contender,
    release_memory,
)
from measuring import positive, quartiles, take_turns
from tqdm import tqdm

from minivit.backend import FUSED, formulas_only, to_device
from minivit.cuda import attention, blas
from minivit.models import VisionTransformer, list_models

SMALL, BASE, CIFAR = "vit_small_patch16_224", "vit_base_patch16_224", "vit_cifar_patch4_32"
WORK = [  # the most telling first: time may run out
    (SMALL, 256, "bf16"), (CIFAR, 128, "bf16"), (BASE, 256, "bf16"), (SMALL, 256, "tf32"), (CIFAR, 128, "tf32"),
    (SMALL, 64, "bf16"), (BASE, 64, "bf16"), (BASE, 256, "tf32"), (SMALL, 64, "tf32"), (BASE, 64, "tf32"),
]  # fmt: skip
SHORTEST = 20.0  # seconds without which a network is not begun
COMPILING = 90.0  # seconds without which torch.compile is not begun
PRODUCTS = {"linear", "matmul", "self_attention", "scaled_dot_product_attention"}
LADDER = [  # what, milliseconds predicted for vit_small, batch 256, precision, stand-ins (None: all), and more
    ("plain formulas", "270", "fp32", set(), ()),
    ("products by cublasLt, in TF32", "130", "tf32", PRODUCTS, ()),
    ("all kernels", "45 to 50", "tf32", None, ()),
    ("bf16", "22 to 28", "bf16", None, ("products",)),
    ("attention of whole rows", "18 to 20", "bf16", None, ()),
    ("as a CUDA graph", "0 to 5 % less", "bf16", None, ("captured",)),
    ("cublasLt's fastest of eight", "17 to 18", "bf16", None, ("captured", "tuned")),
]


@functools.cache
def flops(model: str) -> tuple[int, int]:
    """Of an image's training step: of the network as it is defined, and of what minivit computes."""
    return flops_per_image(Job(model, 1)), flops_per_image(Job(model, 1), whole=False)


def benchmark(job: Job, name: str, contenders: list[str], options: argparse.Namespace, deadline: float) -> dict:
    """One network in one precision: a row of the report."""
    row: dict[str, Any] = {"name": job.model, "batch": job.batch, "precision": name, "steps": options.steps}
    release_memory(compiled=True)
    product, product_flops = large_product()  # the first use of cublasLt, whose workspace is then nobody's
    if "torch_eager" in contenders:
        row |= compare(job, name)
    steps, expected, failed = {}, 0.0, {}
    for who in contenders:
        if who == "torch_compile" and deadline - time.monotonic() < COMPILING:
            failed[who] = "no time left"
            continue
        free = release_memory()
        try:
            step = make_contender(Job(job.model, job.batch, who), name)
            for _ in range(2):
                step()
            expected += gpu_seconds(step)
        except Exception as error:  # of memory, or of the compiler: the others may run
            traceback.print_exc()
            failed[who] = f"{type(error).__name__}: {error}"[:200]
            continue
        row[f"{who}_memory_bytes"] = free - free_memory()[0]
        steps[who] = step
    tasks = {who: (Turn(step), lambda step=step: [step() for _ in range(options.steps)]) for who, step in steps.items()}
    affordable = int((deadline - time.monotonic()) / ((1 + options.steps) * expected + 0.1)) - 1
    row["rounds"] = rounds = min(options.rounds, max(affordable, 2))
    seconds = take_turns(
        tasks | {"product": (nullcontext(), product)}, rounds, f"{job.model} {job.batch} {name}", gpu_seconds
    )
    rates = product_flops / seconds.pop("product")
    row["product_tflops"] = float(np.median(rates)) / 1e12
    whole, computed = (job.batch * options.steps * count for count in flops(job.model))
    for who, taken in seconds.items():
        row[f"{who}_images_per_second"] = job.batch * options.steps / float(np.median(taken))
        row[f"{who}_tflops"] = whole / float(np.median(taken)) / 1e12
        row[f"{who}_product_share"] = float(np.median(whole / taken / rates))
        for other in {"torch_eager", "torch_compile"} & (seconds.keys() - {who}):
            low, median, high = quartiles(seconds[other] / taken)
            row |= {f"{who}_vs_{other}": median, f"{who}_vs_{other}_spread": [low, high]}
    return row | {"computed_share": computed / whole} | ({"failed": failed} if failed else {})


def table(row: dict) -> str:
    """A row for people: a line for each contender."""
    lines = [f"{row['name']}, batch {row['batch']}, {row['precision']}: {row.get('error', '')}"]
    for who in CONTENDERS:
        if f"{who}_tflops" in row:
            line = f"  {who:14}{row[f'{who}_images_per_second']:8,.0f} images/s {row[f'{who}_tflops']:6.0f} TFLOP/s"
            line += f" ({row[f'{who}_product_share']:4.0%}){row[f'{who}_memory_bytes'] / 2**30:7.1f} GiB"
            for other in ("torch_eager", "torch_compile"):
                if f"{who}_vs_{other}" in row:
                    low, high = row[f"{who}_vs_{other}_spread"]
                    line += f"   {row[f'{who}_vs_{other}']:.2f} × {other} ({low:.2f} … {high:.2f})"
            lines.append(line)
    failed = row.get("failed", {})
    return "\n".join(lines + [f"  {who}: {why}" for who, why in failed.items()])


# --- the ladder ------------------------------------------------------------------------------------------------------


class Rung(AbstractContextManager):
    """Inside, the kernels of a rung are in their places."""

    def __init__(self, names: set[str] | None, more: tuple[str, ...]):
        self.names, self.more = names, more

    def __enter__(self) -> None:
        kept = {f: kernel for f, kernel in FUSED.items() if self.names is None or kernel.__name__ in self.names}
        self.stack = ExitStack()
        self.stack.enter_context(formulas_only())
        FUSED.update(kept)
        if "products" in self.more:
            self.stack.enter_context(mock.patch.object(attention, "MAX_TOKENS", 0))

    def __exit__(self, *exception: object) -> None:
        self.stack.close()


@contextmanager
def newly_tuned():
    """Inside, products find their fastest kernels anew."""
    blas.on_device.cache_clear()
    with blas.tuned():
        yield


def ladder(job: Job, options: argparse.Namespace, deadline: float) -> list[dict]:
    """Milliseconds of a step with ever more of ``minivit/cuda``."""
    rows = []
    for what, predicted, name, names, more in LADDER:
        if time.monotonic() > deadline:
            break
        release_memory()
        row = {"step": what, "name": job.model, "batch": job.batch, "precision": name, "predicted": predicted}
        try:
            with Rung(names, more):
                one = Minivit(job, name, captured="captured" in more)
                with newly_tuned() if "tuned" in more else nullcontext():
                    one.step()
                task = {what: (Turn(one.step), lambda one=one: [one.step() for _ in range(options.steps)])}
                taken = take_turns(task, min(options.rounds, 5), what, gpu_seconds)[what] / options.steps
            row["milliseconds"] = 1000 * float(np.median(taken))
        except Exception as error:  # the other steps may run
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        rows.append(row)
        print(
            f"{what:32}{name}  predicted {predicted:>14}  measured {row.get('milliseconds', math.nan):7.2f} ms",
            flush=True,
        )
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, known = parser.add_argument, list_models(VisionTransformer)
    add("--model", action="append", choices=known, metavar="NAME", help=f"default: {SMALL}, {BASE}, {CIFAR}")
    add("--batch", type=positive, help="images a step (default: 256 and 64; of the CIFAR network 128)")
    add("--precision", action="append", choices=["bf16", "tf32"], help="default: both")
    add("--contender", action="append", choices=CONTENDERS, help="default: all that can run")
    add("--rounds", type=positive, default=10, help="turns of each (default: 10; fewer where time is short)")
    add("--steps", type=positive, default=5, help="steps a turn (default: 5)")
    add("--minutes", type=positive, default=8, help="for the whole run (default: 8)")
    add("--ladder", action="store_true", help="what each part of minivit/cuda brings, beside its prediction")
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> list[tuple[str, int, str]]:
    """Network, batch and precision of the rows, in the order in which they are measured."""
    known = [SMALL, BASE, CIFAR]
    work = [(m, b, p) for m, b, p in WORK if m in (options.model or known)]
    work += [(m, 64, p) for m in options.model or [] if m not in known for p in ("bf16", "tf32")]
    work = [(m, options.batch or b, p) for m, b, p in work if p in (options.precision or ("bf16", "tf32"))]
    return list(dict.fromkeys(work))


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        to_device(np.zeros(1), "cuda")
    except RuntimeError as error:
        sys.exit(f"this benchmark measures a GPU: {error}")
    deadline = time.monotonic() + 60 * options.minutes
    contenders = [who for who in available() if who in (options.contender or CONTENDERS)]
    print(f"{gpu_name()}: {', '.join(contenders)}", flush=True)
    report: dict[str, Any] = {"benchmark": "gpu_ladder" if options.ladder else "gpu", "gpu": gpu_name(), "rows": []}
    if options.ladder:
        report["rows"] = ladder(Job((options.model or [SMALL])[0], options.batch or 256), options, deadline)
    work = [] if options.ladder else chosen(options)
    for number, (model, batch, name) in enumerate(tqdm(work, "networks", leave=False, disable=None)):
        if number and time.monotonic() > deadline - SHORTEST:
            report["left_out"] = [list(job) for job in work[number:]]
            print(f"no time left for {', '.join(f'{m} {b} {p}' for m, b, p in work[number:])}")
            break
        try:
            row = benchmark(Job(model, batch), name, contenders, options, deadline)
        except Exception as error:  # it is told, and the others are measured
            traceback.print_exc()
            row = {"name": model, "batch": batch, "precision": name, "error": f"{type(error).__name__}: {error}"[:300]}
        report["rows"].append(row)
        print(table(row), flush=True)
    print(json.dumps(report))
    sys.exit(1 if any("error" in row for row in report["rows"]) else 0)


if __name__ == "__main__":
    main()
