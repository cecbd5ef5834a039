"""One training step of a Vision Transformer: minivit against the same network in PyTorch, on this machine's CPU.

    python benchmarks/train_step.py [--compile]

A step is forward, backward and AdamW on a whole batch. minivit takes the batch in micro-batches, whose gradients add
up; PyTorch takes it whole, unless ``--torch-micro-batch`` is given. Both get the same weights, and their logits and
gradients are compared first. They then take turns in one process, so that whatever else the machine does meets both;
each turn gives a ratio of times, of which the median and the quartiles are reported. Peak memory above the start
(after the imports) is measured in a process for each, on Linux. The last line is a JSON object.

Threads: as many as OPENBLAS_NUM_THREADS says, else one for each core.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import trange

from minivit import no_grad, ops
from minivit.backend import reuse_freed_memory
from minivit.data import Batch
from minivit.models import VisionTransformer, create_model, list_models
from minivit.optim import AdamW, weight_decay_groups
from minivit.random import generator
from minivit.training import Layout, train_step

BATCHES = {"vit_tiny_patch16_224": 64, "vit_cifar_patch4_32": 128}
QUICK = {"vit_nano_patch7_28": 4}
WHOLE = 1 << 30
CONTENDERS = ("minivit", "torch_eager", "torch_compile")


class MinivitStep:
    """Forward, backward and AdamW on a batch, ``micro_batch`` images at a time."""

    def __init__(self, model: VisionTransformer, micro_batch: int):
        self.model = model
        self.layout = Layout(micro_batch=micro_batch)
        self.optimizer = AdamW(weight_decay_groups(model, weight_decay=0.05), lr=1e-3)

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> None:
        batch = Batch(images, labels, np.arange(len(images)))
        train_step(self.model, ops.cross_entropy, batch, self.optimizer, seed=0, step=0, layout=self.layout)

    def logits(self, images: np.ndarray) -> np.ndarray:
        with no_grad():
            return self.model(images).numpy()

    def gradients(self) -> dict[str, np.ndarray]:
        """Of the last step, by parameter name."""
        return {name: p.grad for name, p in self.model.named_parameters()}


def make_step(contender: str, model: VisionTransformer, options: argparse.Namespace) -> Callable:
    """The step of one contender, starting from the weights of ``model``."""
    if contender == "minivit":
        reuse_freed_memory()  # as the training examples do; in a race it holds for PyTorch too
        return MinivitStep(model, options.micro_batch)
    from torch_vit import TorchStep  # here, so that minivit's memory can be measured without PyTorch

    return TorchStep(model, options.torch_micro_batch, threads(), compiled=contender == "torch_compile")


def threads() -> int:
    """How many threads NumPy's matrix products use, and PyTorch shall use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(os.environ.get("OPENBLAS_NUM_THREADS", cores))


def make_batch(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels that fit a model: what is in them does not change the time."""
    embed = create_model(name, weight_init="skip").patch_embed
    rng = generator(0, "benchmark", name)
    shape = (size, embed.proj.weight.shape[1], *embed.img_size)
    return rng.standard_normal(shape, np.float32), rng.integers(10, size=size)


def compare(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Largest difference of logits, and of gradients relative to each one's largest entry, on a few images.

    Exits with a sentence where they are too large for rounding: the times of different networks say nothing.
    """
    images, labels = make_batch(name, 4)
    model = create_model(name)
    ours, theirs = make_step("minivit", model, options), make_step("torch_eager", model, options)
    logits = float(np.abs(ours.logits(images) - theirs.logits(images)).max())
    for step in (ours, theirs):
        step(images, labels)
    a, b = ours.gradients(), theirs.gradients()
    gradients = max(float(np.abs(a[n] - b[n]).max() / np.abs(b[n]).max()) for n in a.keys() | b.keys())
    if not (logits < 1e-4 and gradients < 1e-3):
        sys.exit(f"{name}: minivit and PyTorch differ by {logits:.1e} in logits and {gradients:.1e} in gradients")
    return {"logits_difference": logits, "gradients_difference": gradients}


def race(name: str, batch: int, contenders: list[str], options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Seconds of each contender's steps, one row a turn: every contender once, in order."""
    images, labels = make_batch(name, batch)
    steps = {contender: make_step(contender, create_model(name), options) for contender in contenders}
    for step in steps.values():  # compilation, first touch of memory
        step(images, labels)
    seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in trange(options.pairs, desc=name, leave=False, disable=None):
        for contender, step in steps.items():
            start = time.perf_counter()
            step(images, labels)
            seconds[contender].append(time.perf_counter() - start)
    return {contender: np.array(times) for contender, times in seconds.items()}


def peak_memory(name: str, batch: int, contender: str, options: argparse.Namespace) -> int | None:
    """Bytes that two steps need at their peak above the start, in a process of its own; None if not on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    command = [sys.executable, __file__, "--only", contender, "--model", name, "--batch", str(batch)]
    command += ["--micro-batch", str(options.micro_batch), "--torch-micro-batch", str(options.torch_micro_batch)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)["peak_bytes"]


def measure_memory(name: str, batch: int, contender: str, options: argparse.Namespace) -> int:
    """What ``peak_memory`` runs in the other process."""
    if contender != "minivit":
        importlib.import_module("torch_vit")
    images, labels = make_batch(name, batch)
    start = _memory("VmRSS")
    step = make_step(contender, create_model(name), options)
    step(images, labels)
    step(images, labels)
    return _memory("VmHWM") - start


def _memory(field: str) -> int:
    """Bytes now (VmRSS) or at the highest (VmHWM). getrusage would start from the peak of the parent process."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def benchmark(name: str, batch: int, options: argparse.Namespace) -> dict:
    """Compare, race and weigh one model; the row of the report."""
    contenders = [c for c in CONTENDERS if c != "torch_compile" or options.compile]
    row = {"name": name, "batch": batch, "threads": threads(), "pairs": options.pairs}
    row |= {key: min(batch, getattr(options, key)) for key in ("micro_batch", "torch_micro_batch")}
    row |= compare(name, options)
    memory = {contender: peak_memory(name, batch, contender, options) for contender in contenders}
    seconds = race(name, batch, contenders, options)
    for contender in contenders:
        row[f"{contender}_images_per_second"] = batch / float(np.median(seconds[contender]))
        row[f"{contender}_memory_bytes"] = memory[contender]
        if contender != "minivit":
            low, median, high = np.quantile(seconds[contender] / seconds["minivit"], [0.25, 0.5, 0.75]).tolist()
            row |= {f"speedup_vs_{contender}": median, _spread(contender): [low, high]}
            row[f"memory_vs_{contender}"] = memory["minivit"] / memory[contender] if memory[contender] else None
    return row


def _spread(contender: str) -> str:
    return "spread" if contender == "torch_eager" else f"spread_vs_{contender}"


def show(row: dict) -> None:
    """A row for people."""
    print(f"\n{row['name']}, batch {row['batch']}, threads {row['threads']}, turns {row['pairs']}")
    print(f"  difference: logits {row['logits_difference']:.1e}, gradients {row['gradients_difference']:.1e}")
    for contender in CONTENDERS:
        if f"{contender}_images_per_second" not in row:
            continue
        bytes_ = row[f"{contender}_memory_bytes"]
        line = f"  {contender:14}{row[f'{contender}_images_per_second']:9.1f} images/s"
        line += f"{bytes_ / 1e6:9.0f} MB" if bytes_ is not None else ""
        if contender != "minivit":
            low, high = row[_spread(contender)]
            line += f"   minivit is {row[f'speedup_vs_{contender}']:.2f} times as fast ({low:.2f} … {high:.2f})"
        print(line)


def positive(text: str) -> int:
    """A whole number of at least 1, for the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", action="append", choices=list_models(), metavar="NAME", help=f"default: {', '.join(BATCHES)}")
    add("--batch", type=positive, help="images a step (default: 128 for vit_cifar_patch4_32, else 64)")
    add("--micro-batch", type=positive, default=8, help="images at a time for minivit (default: 8)")
    add("--torch-micro-batch", type=positive, default=WHOLE, help="images at a time for PyTorch (default: all)")
    add("--pairs", type=positive, default=10, help="turns (default: 10)")
    add("--compile", action="store_true", help="also against torch.compile, which needs a C++ compiler")
    add("--quick", action="store_true", help="a tiny model and two turns, to see that the script works")
    add("--only", choices=CONTENDERS, help="print the peak memory of one contender, and nothing else")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.only != "minivit" and importlib.util.find_spec("torch") is None:
        sys.exit("this benchmark compares minivit with PyTorch, which is not installed: pip install torch")
    defaults = QUICK if options.quick else BATCHES
    if options.quick:
        options.pairs = 2
    models = {name: options.batch or defaults.get(name, 64) for name in options.model or defaults}
    if options.only:
        for name, batch in models.items():
            print(json.dumps({"name": name, "peak_bytes": measure_memory(name, batch, options.only, options)}))
        return
    rows = []
    for name, batch in models.items():
        rows.append(benchmark(name, batch, options))
        show(rows[-1])
    print(json.dumps({"benchmark": "train_step", "rows": rows}))


if __name__ == "__main__":
    main()
