"""How far the kernels are from their formulas: ``python -m tests.cuda.report``, and on a GPU with ``--gpu``.

Each stand-in gets random numbers of its own types, the formula the same ones in float64. The error is the largest of
the value and all cotangents, relative to the largest number there. Of float32, one rounding is 6.0e-08, of bfloat16
3.9e-03; a result that is computed exactly and then rounded has at most that. The last line is a JSON object.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import ml_dtypes  # noqa: F401  NumPy knows the name "bfloat16" from here on
import numpy as np

from minivit import cuda
from minivit.backend import FUSED, to_device
from minivit.cuda import launch, precision
from tests.compare import errors, exact, numbers, relative
from tests.cuda import emulator, fake_cublaslt
from tests.cupy_twin import twin
from tests.devices import standing_in

N = partial(numbers, 0)
LABELS = np.arange(24) % 40
SAMPLES = np.arange(5) * 2**33
ADAMW = np.array([1 - 1e-4, 0.9, 0.1, 0.999, 1e-3, 1e-8, 1e-2], "f")  # its numbers, in the order of the formula
SGD = np.array([1e-4, 0.9, 1e-2, 1e-2], "f")


def of_ops(t: str) -> list[tuple[Callable, tuple, dict]]:
    """Stand-ins of ops, their arguments with activations of type ``t``, and their options."""
    return [
        (cuda.patches.patchify, (N(2, 3, 16, 24, dtype=t),), {"patch_size": (8, 8)}),
        (cuda.linear.linear, (N(24, 64, dtype=t), numbers(1, 96, 64), numbers(2, 96)), {}),
        (cuda.linear.matmul, (N(3, 24, 32, dtype=t), numbers(1, 3, 32, 16, dtype=t)), {}),
        (cuda.normalization.layer_norm, (N(24, 384, dtype=t), 1 + numbers(1, 384), numbers(2, 384)), {}),
        (
            cuda.normalization.add_layer_norm,
            (N(24, 384), numbers(3, 24, 384, dtype=t), 1 + numbers(1, 384), numbers(2, 384)),
            {},
        ),
        (cuda.attention.self_attention, (N(1, 50, 192, dtype=t),), {"num_heads": 2}),
        (cuda.attention.scaled_dot_product_attention, tuple(numbers(i, 2, 2, 9, 32, dtype=t) for i in range(3)), {}),
        (cuda.activation.gelu, (N(24, 64, dtype=t, scale=2),), {}),
        (cuda.activation.gelu, (N(24, 64, dtype=t, scale=2),), {"approximate": "tanh"}),
        (cuda.activation.softmax, (N(24, 200, dtype=t, scale=2),), {}),
        (cuda.activation.log_softmax, (N(24, 200, dtype=t, scale=2),), {}),
        (cuda.elementwise.add, (N(24, 64), numbers(1, 24, 64, dtype=t)), {}),
        (cuda.elementwise.add, (N(4, 24, 64, dtype=t), numbers(1, 1, 24, 64)), {}),
        (cuda.elementwise.scale, (N(24, 64, dtype=t), 0.7), {}),
        (cuda.elementwise.scale, (N(4, 24, 64, dtype=t), numbers(1, 4, 24, 64, dtype=t)), {}),
        (cuda.elementwise.scale, (N(4, 24, 64, dtype=t), numbers(1, 4, 1, 1, dtype=t)), {}),
        (cuda.loss.cross_entropy, (N(24, 40, dtype=t, scale=2), LABELS), {"label_smoothing": 0.1}),
    ]


def of_functions() -> list[tuple[Callable, tuple]]:
    """Stand-ins of plain functions; what they return or, where that is nothing, write is compared."""
    p, g, m, v = (numbers(i, 4096) for i in range(4))
    return [
        (cuda.reduction.sum_rows, (N(1000, 64),)),
        (cuda.optim.norm_and_scale, (g, 1.0)),
        (cuda.optim.adamw, (ADAMW, None, p, g, m, v * v)),
        (cuda.optim.sgd, (SGD, None, p, g, m)),
        (cuda.optim.move_average, (p, g, 0.99)),
        (cuda.optim.write, (np.zeros((2, 7), "f"), [tuple(map(float, range(i, i + 7))) for i in (0, 10)])),
    ]


def of_function(stand_in: Callable, xp: ModuleType, args: tuple) -> float:
    def results(function: Callable, args: tuple) -> list:
        returned = function(*args)
        written = [x for x in args if hasattr(x, "dtype")]
        return list(returned if isinstance(returned, tuple) else written if returned is None else [returned])

    found = results(stand_in, tuple(xp.asarray(x) if isinstance(x, np.ndarray) else x for x in args))
    right = results(stand_in.formula, tuple(map(exact, args)))
    return max(relative(exact(a), np.asarray(b)) for a, b in zip(found, right))


def measured(xp: ModuleType) -> list[dict[str, Any]]:
    """A row for each stand-in, options and type: its error, and the kernels that were started."""
    rows, started, compiled = [], [], launch._compiled

    def watch(*args: Any) -> Any:
        started.append(args[3])
        return compiled(*args)

    def row(stand_in: Callable, kind: str, note: str, error: float) -> None:
        rows.append({"name": stand_in.__name__ + note, "type": kind, "error": error, "kernels": sorted(set(started))})
        started.clear()

    with mock.patch.object(launch, "_compiled", watch):
        for kind, name in (("float32", "fp32"), ("bfloat16", "bf16")):
            for stand_in, args, options in of_ops(kind):
                with precision(name):
                    error = max(errors(stand_in, xp, args, **options))
                row(stand_in, kind, ", tanh" if "approximate" in options else "", error)
        for stand_in, args in of_functions():
            row(stand_in, "float32", "", of_function(stand_in, xp, args))
        uniform = cuda.random.uniform((1, 2), xp.asarray(SAMPLES), (7,), xp)
        error = relative(exact(uniform), exact(cuda.random.uniform.formula((1, 2), SAMPLES, (7,))))
        row(cuda.random.uniform, "float32", "", error)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--gpu", action="store_true", help="on an NVIDIA GPU, not with the kernels compiled for the CPU"
    )
    gpu, kernels = parser.parse_args().gpu, dict(FUSED)
    if gpu:
        try:
            to_device(np.zeros(1), "cuda")
        except RuntimeError as error:
            sys.exit(str(error))
    with ExitStack() as stack:
        xp = stack.enter_context(standing_in("cupy" if gpu else "twin"))
        if not gpu:
            stack.enter_context(mock.patch.object(twin, "RawModule", emulator.RawModule, create=True))
        stack.enter_context(fake_cublaslt.installed(xp))
        stack.enter_context(mock.patch.dict(FUSED, kernels))
        rows = measured(xp)
    for row in rows:
        print(f"{row['name']:30} {row['type']:9} {row['error']:8.1e}   {', '.join(row['kernels'])}")
    print(json.dumps({"report": "kernels", "device": "gpu" if gpu else "emulator", "rows": rows}))


if __name__ == "__main__":
    main()
