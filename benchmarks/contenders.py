"""Who is measured, doing what: a training step, or inference, of a network, by minivit or by PyTorch.

Run as a program, it measures one contender in a process of its own: see ``measure_alone``.
"""

import argparse
import functools
import importlib.util
import json
import os
import shutil
import sys
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import memory, run_child, seconds_of

from minivit.backend import reuse_freed_memory
from minivit.data import Batch
from minivit.models import ResNet, VisionTransformer, create_model, list_models
from minivit.nn import summary
from minivit.objective import Classification
from minivit.ops.shape import pair
from minivit.optim import AdamW, weight_decay_groups
from minivit.random import generator
from minivit.training import Layout, Ranks, choose_layout, predict, train_step

MODES = ("training", "inference")


@dataclass(frozen=True)
class Job:
    """What is computed. ``options``: arguments of the model. ``workers`` and pieces of None: contenders choose."""

    model: str
    batch: int
    contender: str = "minivit"
    mode: str = "training"
    workers: int | None = None
    micro_batch: int | None = None
    torch_micro_batch: int | None = None
    same_allocator: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def create_model(self, **overrides: Any) -> VisionTransformer | ResNet:
        return create_model(self.model, **self.options | overrides)

    def make_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Random images and labels that fit the model: what is in them does not change the time."""
        rng = generator(0, "benchmark", self.model)
        shape = (self.batch, *image_shape(self.create_model(weight_init="skip")))
        return rng.standard_normal(shape, np.float32), rng.integers(10, size=self.batch)


def image_shape(model: VisionTransformer | ResNet) -> tuple[int, int, int]:
    """(C, H, W) of what the network is made for."""
    if isinstance(model, ResNet):
        return model.conv1.weight.shape[1], *pair(model.img_size)
    return model.patch_embed.in_chans, *model.patch_embed.img_size


class Minivit:
    """``training``: forward, backward and AdamW on a batch; ``inference``: its logits. Both inside ``with layout``."""

    def __init__(self, model: VisionTransformer | ResNet, layout: Layout):
        self.model, self.layout = model, layout

    @functools.cached_property
    def optimizer(self) -> AdamW:
        """For training only: inference needs no room for gradients and moments."""
        return AdamW(weight_decay_groups(self.model, weight_decay=0.05), lr=1e-3)

    def training(self, images: np.ndarray, labels: np.ndarray, total: int | None = None) -> None:
        """``total``: images of the batch on all ranks, where these are a share of it."""
        batch = Batch(images, labels, np.arange(len(images)), total)
        train_step(self.model, Classification(), batch, self.optimizer, seed=0, step=0, layout=self.layout)

    def inference(self, images: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        return predict(self.model, images, self.layout)

    def gradients(self) -> dict[str, np.ndarray]:
        """Of the last step, by parameter name."""
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}


def make_contender(job: Job, ranks: Ranks | None = None) -> Any:
    """A Minivit, or the TorchContender with the same methods; equal jobs start from equal weights."""
    model = job.create_model()
    if job.contender == "minivit":
        reuse_freed_memory()  # as the training examples do
        image = np.zeros((1, *image_shape(model)), np.float32)
        return Minivit(model, choose_layout(model, image, job.batch, job.workers, job.micro_batch, ranks))
    from torch_vit import TorchContender  # here, so that minivit's memory can be measured without PyTorch

    contender = TorchContender(model, job.torch_micro_batch or job.batch, compiled=job.contender == "torch_compile")
    contender.layout = nullcontext() if job.same_allocator else UsualAllocator()
    return contender


class UsualAllocator(AbstractContextManager):
    """Inside: memory is allocated as it is where nobody asks for anything else, for PyTorch's turns in a race."""

    def __enter__(self) -> None:
        reuse_freed_memory(False)

    def __exit__(self, *exception: object) -> None:
        reuse_freed_memory()


def available() -> list[str]:
    """The contenders that can run here: torch.compile needs a C++ compiler and Python's header files."""
    if importlib.util.find_spec("torch") is None:
        return ["minivit"]
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    ready = header.exists() and any(shutil.which(name) for name in compilers if name)
    return ["minivit", "torch_eager", *(["torch_compile"] if ready else [])]


def taking_part(options: argparse.Namespace) -> list[str]:
    """The contenders for ``--compile`` and ``--quick``. Exits with a sentence where those wanted are not here."""
    contenders = available()
    if "torch_eager" not in contenders:
        sys.exit("this benchmark compares minivit with PyTorch, which is not installed: pip install torch")
    if options.compile and "torch_compile" not in contenders:
        sys.exit("--compile needs a C++ compiler and Python's header files, which are not here")
    if options.compile is False or (options.quick and not options.compile):
        return ["minivit", "torch_eager"]
    return contenders


def compare(job: Job) -> dict[str, float]:
    """Largest difference of logits, and of gradients relative to each one's largest entry, on a few images.

    Exits with a sentence where they are too large for rounding: the times of different networks say nothing.
    """
    job = replace(job, batch=4)
    images, labels = job.make_batch()
    ours, theirs = (make_contender(replace(job, contender=name)) for name in ("minivit", "torch_eager"))
    with ours.layout:
        logits = float(np.abs(ours.inference(images) - theirs.inference(images)).max())
        ours.training(images, labels)
    theirs.training(images, labels)
    a, b = ours.gradients(), theirs.gradients()
    gradients = max(float(np.abs(a[n] - b[n]).max() / np.abs(b[n]).max()) for n in a.keys() | b.keys())
    if not (logits < 1e-4 and gradients < 1e-3):
        sys.exit(f"{job.model}: minivit and PyTorch differ by {logits:.1e} in logits and {gradients:.1e} in gradients")
    return {"logits_difference": logits, "gradients_difference": gradients}


def flops_per_image(job: Job, whole: bool = True) -> int:
    """Operations of the matrix products that the job takes for an image, a multiply-add being two.

    ``whole``: of the network as it is defined, and as PyTorch computes it: all tokens go through all blocks. Otherwise
    of what minivit computes, whose last block leaves out the tokens that the head does not read. Training: each
    product of forward has two in backward, one for each factor; but the images need no gradient.
    """

    def count(**options: Any) -> int:
        model = job.create_model(weight_init="skip", **options)
        flops = {layer.name: layer.flops for layer in summary(model, np.zeros((1, *image_shape(model)), np.float32))}
        first = "conv1" if isinstance(model, ResNet) else "patch_embed"
        return flops[""] if job.mode == "inference" else 3 * flops[""] - flops[first]

    if job.model in list_models(ResNet):
        return count()
    pool = {"global_pool": "avg"} if whole else {}  # a head that reads all tokens
    one, two = (
        count(depth=1, **pool),
        count(depth=2, **pool),
    )  # further blocks add the same again: so a large network need not run to be counted
    return one + (len(job.create_model(weight_init="skip").blocks) - 1) * (two - one)


def measure_alone(job: Job, repeats: int = 3) -> dict[str, Any]:
    """Time and memory of a job in a process of its own.

    ``seconds``: the fastest of ``repeats``, after an unmeasured one. ``peak_bytes``: the peak, above what the process
    had when all was imported and the images were made (None if not on Linux).
    """
    return run_child([sys.executable, __file__, json.dumps(asdict(job)), str(repeats)])


def load() -> None:
    """Have loops compiled, if there are any, so that the compiler does not count as memory of a step."""
    tiny = make_contender(Job("vit_nano_patch4_28", 2))
    with tiny.layout:
        tiny.training(*Job("vit_nano_patch4_28", 2).make_batch())


def main(text: str, repeats: str) -> None:
    job = Job(**json.loads(text))
    if job.contender != "minivit":
        importlib.import_module("torch_vit").load(compiler=job.contender == "torch_compile")
    else:
        load()
    images, labels = job.make_batch()
    start = memory("VmRSS")
    contender = make_contender(job)
    with contender.layout:
        work = getattr(contender, job.mode)
        seconds = [seconds_of(lambda: work(images, labels)) for _ in range(1 + int(repeats))]
    peak = None if start is None else memory("VmHWM") - start
    print(json.dumps({"seconds": min(seconds[1:]), "peak_bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
