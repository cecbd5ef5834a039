"""Who is measured on a GPU, minivit and PyTorch, and by which clock: for ``gpu.py``."""

import copy
import functools
import gc
import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from contenders import Job

from minivit.backend import array_module, to_device
from minivit.cuda import blas, precision
from minivit.data import Batch
from minivit.models import VisionTransformer
from minivit.models.registry import VIT
from minivit.objective import Classification
from minivit.optim import AdamW, weight_decay_groups
from minivit.training import CapturedStep, Layout, train_step
from minivit.training.step import forward_and_backward

CONTENDERS = ("minivit", "captured", "torch_eager", "torch_compile")
LIMITS = {"tf32": 0.01, "bf16": 0.1}  # of ‖x − x̂‖ / ‖x̂‖, for all gradients as one vector; a wrong network is at 1
SIDE = 8192  # of the large product
TORCH_DEVICE = "cuda"


def available() -> list[str]:
    """The contenders that can run here."""
    if importlib.util.find_spec("torch") is None:
        return ["minivit", "captured"]
    import torch

    if TORCH_DEVICE == "cuda" and not torch.cuda.is_available():
        return ["minivit", "captured"]
    return [*CONTENDERS[:3], *(["torch_compile"] if importlib.util.find_spec("triton") else [])]


@functools.lru_cache(1)
def original(model: str) -> VisionTransformer:
    """The network that all contenders copy: to draw the weights of a large one takes seconds."""
    return Job(model, 1).create_model()


@functools.lru_cache(1)
def images_and_labels(model: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The batch that all contenders take."""
    return Job(model, batch).make_batch()


class Minivit:
    """Steps of minivit, op by op or as a CUDA graph, of a batch that lies on the GPU."""

    def __init__(self, job: Job, name: str = "bf16", captured: bool = False):
        self.precision = name
        self.model = copy.deepcopy(original(job.model)).to("cuda")
        self.optimizer = AdamW(weight_decay_groups(self.model, weight_decay=0.05), lr=1e-4)
        images, labels = images_and_labels(job.model, job.batch)
        self.batch = Batch(images, labels, np.arange(len(images))).to("cuda")
        self.captured_step = CapturedStep(self.model, Classification(), self.optimizer, seed=0) if captured else None

    def step(self) -> None:
        with precision(self.precision):
            if self.captured_step:
                self.captured_step(self.batch, 0)
            else:
                train_step(self.model, Classification(), self.batch, self.optimizer, seed=0, step=0)

    def seen(self) -> dict[str, np.ndarray]:
        """Logits and gradients, by name, in float64 on the host."""
        with precision(self.precision):
            logits = self.model(self.batch.images).data
            forward_and_backward(self.model, Classification(), self.batch, self.optimizer, 0, 0, Layout())
        found = {"logits": logits} | {name: p.grad for name, p in self.model.named_parameters()}
        return {name: to_device(x, "cpu").astype(np.float64) for name, x in found.items()}


def make_contender(job: Job, name: str) -> Callable[[], None]:
    """One step of the job's contender."""
    if job.contender in ("minivit", "captured"):
        return Minivit(job, name, captured=job.contender == "captured").step
    from torch_vit import TorchOnGpu

    compiled = job.contender == "torch_compile"
    torch = TorchOnGpu(original(job.model), VIT[job.model], name, compiled, device=TORCH_DEVICE)
    return functools.partial(torch.training, *torch.batch(*images_and_labels(job.model, job.batch)))


def compare(job: Job, name: str) -> dict[str, Any]:
    """Errors of logits and gradients of both on a few images, against PyTorch in float64, and whose network that is.

    Raises ValueError where they are too large for rounding: the times of different networks say nothing.
    """
    from torch_vit import TorchOnGpu

    job = Job(job.model, 8)
    found = {"minivit": Minivit(job, name).seen()}
    for exact in (False, True):
        torch = TorchOnGpu(original(job.model), VIT[job.model], name, exact=exact, device=TORCH_DEVICE)
        found["exact" if exact else "torch"] = torch.seen(*images_and_labels(job.model, job.batch))
    row: dict[str, Any] = {"torch_network": type(torch.model).__module__.partition(".")[0]}
    right = found.pop("exact")
    for who, own in found.items():
        assert own.keys() == right.keys()
        for what, names in (("logits", ["logits"]), ("gradients", sorted(right.keys() - {"logits"}))):
            a, b = (np.concatenate([x[n].ravel() for n in names]) for x in (own, right))
            row[f"{who}_{what}_error"] = error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
            if not error < LIMITS[name]:
                raise ValueError(f"the {what} of {who} differ from those in float64 by {error:.1e}: nothing was timed")
    return row


def gpu_seconds(run: Callable[[], object]) -> float:
    """How long the GPU takes for one call, waiting for Python included."""
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    run()
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1000


def release_memory(compiled: bool = False) -> int:
    """Give back what CuPy and PyTorch keep for later, with ``compiled`` networks; how many bytes are free then."""
    import cupy

    gc.collect()
    cupy.cuda.Device().synchronize()
    cupy.get_default_memory_pool().free_all_blocks()
    if "torch_vit" in sys.modules:
        sys.modules["torch_vit"].release(compiled)
    return free_memory()[0]


def free_memory() -> tuple[int, int]:
    """Bytes of the GPU that are free, and that it has."""
    import cupy

    return cupy.cuda.runtime.memGetInfo()


def gpu_name() -> str:
    import cupy

    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()


class Turn(AbstractContextManager):
    """Around a turn: a step before it that is not timed; after it what is kept is given back, where memory is short."""

    def __init__(self, step: Callable[[], None]):
        self.step = step

    def __enter__(self) -> None:
        self.step()

    def __exit__(self, *exception: object) -> None:
        free, total = free_memory()
        if free < total / 3:
            release_memory()


@functools.cache
def large_product() -> tuple[Callable[[], None], float]:
    """Some products of large bf16 matrices of random numbers, and their FLOPs."""
    from ml_dtypes import bfloat16

    rng = np.random.default_rng(0)
    x, y = (to_device(rng.standard_normal((SIDE, SIDE), np.float32).astype(bfloat16), "cuda") for _ in range(2))
    out = array_module(x).empty((SIDE, SIDE), x.dtype)
    return lambda: [blas.matmul(x, y, out=out) for _ in range(10)], 10 * 2.0 * SIDE**3
