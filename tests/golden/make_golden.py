"""Write the golden files, or compare them with what the references compute now.

    python -m tests.golden.make_golden           writes tests/golden/*.npz
    python -m tests.golden.make_golden mae       writes tests/golden/mae.npz only
    python -m tests.golden.make_golden --check   exits with 1 where a file says something else

Where a reference cannot be downloaded, its files are not made, or not compared, and that is said.

Needs torch, torchvision, timm, transformers and vit-pytorch; the files were written with 2.13, 0.28, 1.0.31, 5.23 and
1.26. All weights are random. Two files of facebookresearch/mae are downloaded, and two of facebookresearch/deit: see
``mae.py`` and ``github.py``.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.golden import cases, reference
from tests.golden.distillation import golden_distillation
from tests.golden.mae import golden_mae, golden_mae_initialization
from tests.golden.positions import golden_positions
from tests.golden.resnets import golden_resnets
from tests.golden.variants import golden_variants

Arrays = dict[str, np.ndarray]


def golden_files(names: Sequence[str] = ()) -> tuple[dict[str, Arrays], list[str]]:
    """The golden files by name, or those of ``names``, computed from scratch; and why some of them could not be."""
    torch.manual_seed(0)
    files, missing = {}, []
    for name in names or MAKERS:
        try:
            files[name] = MAKERS[name]()
        except ConnectionError as error:
            missing.append(f"{name} was not made: {error}")
    return files, missing


def golden_model(name: str) -> Arrays:
    """Logits, loss and gradients in float64, and the logits in float32 too: the reference's own rounding."""
    case = cases.MODELS[name]
    network = reference.build(case)
    network.load(cases.weights(name, network.shapes()))
    images = torch.from_numpy(cases.images(name, case.image_shape))
    with torch.no_grad():
        single = _logits(network, images.float())

    network.module.double()
    network.load(cases.weights(name, network.shapes()))
    images.requires_grad_()
    logits = _logits(network, images)
    *shape, classes = logits.shape
    labels = torch.from_numpy(cases.labels(name, tuple(shape), classes))
    loss = F.cross_entropy(logits.reshape(-1, classes), labels.reshape(-1))
    loss.backward()
    gradients = {"images": images.grad.numpy()} | network.gradients()
    results = {"logits": logits.detach().numpy(), "logits.float32": single.numpy(), "loss": np.array(loss.item())}
    return results | {f"{n}.grad": cases.stored(name, n, g) for n, g in gradients.items()}


def _logits(network: reference.Reference, images: torch.Tensor) -> torch.Tensor:
    output = network.module(images)
    return getattr(output, "logits", output)


def golden_ops() -> Arrays:
    """Values and input gradients of single ops, in float64."""
    results = {}
    for name, case in cases.OPS.items():
        arrays = [torch.from_numpy(x) for x in cases.op_inputs(name)]
        inputs = [x.requires_grad_() for x in arrays if x.is_floating_point()]  # not labels
        y = reference.OPS[case.op](*arrays, **case.options)
        y.backward(torch.from_numpy(cases.cotangent(name, tuple(y.shape))))
        results[name] = y.detach().numpy()
        results |= {f"{name}.grad{i}": x.grad.numpy() for i, x in enumerate(inputs)}
    return results


def golden_optimizers() -> Arrays:
    """All parameters, one after another, after each step: (STEPS, parameters); norms, averages and learning rates."""
    results = {}
    for name, case in cases.OPTIMIZERS.items():
        results |= _trajectory(name, case)
    results["schedule"] = reference.warmup_cosine(**cases.SCHEDULE)
    return results


def _trajectory(name: str, case: cases.OptimizerCase) -> Arrays:
    model = _Problem()
    optimizer = reference.optimizer(case, model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cases.EMA_DECAY))
    average.update_parameters(model)  # the first update copies
    path, norms, averages = [], [], []
    for step in range(cases.STEPS):
        for n, p in model.named_parameters():
            p.grad = torch.from_numpy(cases.step_gradient(step, n, p.detach().numpy()))
        if case.clip is not None:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), case.clip).item())
        optimizer.step()
        average.update_parameters(model)
        path.append(_flat(model))
        averages.append(_flat(average.module))
    results = {name: np.stack(path), f"{name}.ema": np.stack(averages)}
    return results | ({f"{name}.norms": np.array(norms)} if norms else {})


class _Problem(nn.Module):
    """Parameters of the names and shapes of ``cases.PROBLEM``, in its order."""

    def __init__(self):
        super().__init__()
        for name, value in cases.weights("optimizers", cases.PROBLEM).items():
            *path, last = name.split(".")
            for part in path:
                self.add_module(part, getattr(self, part, nn.Module()))
            self.get_submodule(".".join(path)).register_parameter(last, nn.Parameter(torch.from_numpy(value)))


def _flat(model: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def golden_initialization() -> Arrays:
    """Mean, standard deviation and kurtosis of every parameter's initial values, for each preset."""
    results = {}
    for preset in cases.INIT_PRESETS:
        values = reference.initialized(preset).values()
        results |= {f"{preset}/{name}": cases.statistics(value) for name, value in values.items()}
    return results


def write(files: dict[str, Arrays]) -> None:
    """Write each file under a temporary name, then rename it."""
    for name, arrays in files.items():
        path = cases.FOLDER / f"{name}.npz"
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
        print(f"{path.name:28} {path.stat().st_size / 1024:7.1f} KiB, {len(arrays)} arrays")


def differences(files: dict[str, Arrays]) -> list[str]:
    """A sentence for each stored array that is not what ``files`` has: rounding differs between CPUs, by this much."""
    on_disk = {path.stem for path in cases.FOLDER.glob("*.npz")}
    sentences = _only_once("the folder", on_disk, set(MAKERS))
    for name in sorted(on_disk & set(files)):
        stored, made = cases.load(name), files[name]
        sentences += _only_once(f"{name}.npz", set(stored), set(made))
        for key in sorted(set(stored) & set(made)):
            tolerance = 1e-5 if made[key].dtype == np.float32 else 1e-9
            if name.endswith("initialization"):  # float64 statistics of float32 draws, which AVX-512 rounds otherwise
                tolerance = 1e-7
            if stored[key].shape != made[key].shape:
                sentences.append(f"{name}.npz: {key} has shape {stored[key].shape}, made {made[key].shape}")
            elif not np.allclose(stored[key], made[key], rtol=0, atol=tolerance * max(1, np.abs(made[key]).max())):
                sentences.append(f"{name}.npz: {key} differs by {np.abs(stored[key] - made[key]).max():.1e}")
    return sentences


def _only_once(where: str, stored: set[str], made: set[str]) -> list[str]:
    surplus = [f"{where} has {name}, which the references do not make" for name in sorted(stored - made)]
    return surplus + [f"{where} lacks {name}, which the references make" for name in sorted(made - stored)]


MAKERS: dict[str, Callable[[], Arrays]] = {name: partial(golden_model, name) for name in cases.MODELS} | {
    "ops": golden_ops,
    "optimizers": golden_optimizers,
    "initialization": golden_initialization,
    "positions": golden_positions,
    "variants": golden_variants,
    "resnets": golden_resnets,
    "distillation": golden_distillation,
    "mae": golden_mae,
    "mae_initialization": golden_mae_initialization,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="these files only")
    parser.add_argument("--check", action="store_true", help="compare with the stored files instead of writing them")
    options = parser.parse_args()
    if unknown := set(options.names) - set(MAKERS):
        parser.error(f"there are no golden files {', '.join(sorted(unknown))}")
    files, missing = golden_files(options.names)
    print("\n".join(missing), end="\n" if missing else "")
    if not options.check:
        write(files)
        return 1 if missing else 0
    sentences = differences(files)
    print("\n".join(sentences) or f"{len(files)} golden files say what the references say now")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
