"""How far minivit's networks and layers are from the references, in the largest difference of any number.

    python -m tests.golden.report

prints a line for each network and precision, and at the end one JSON object with the worst. Needs no PyTorch. Logits
are compared as they are (they are of order 1), a gradient in units of its parameter's largest entry, or of a hundredth
of the largest entry of all: some gradients, such as that of a bias added to all keys, are zero but for rounding. The
stored numbers were computed in float64, so what float32 shows is minivit's own rounding; the logits that the
reference gave in float32 are stored too.
"""

import json
from dataclasses import dataclass

import numpy as np

from minivit import Tensor, ops
from minivit.models import VisionTransformer, create_model
from tests.golden import cases, distillation_cases, mae_cases, position_cases, resnet_cases, variant_cases


@dataclass(frozen=True)
class Differences:
    """Largest absolute difference of the logits, of the loss, and largest relative difference of any gradient."""

    logits: float
    logits_float32: float  # from the logits that the reference computed in float32
    loss: float
    gradients: float
    worst: str  # the parameter whose gradient differs most


def build(name: str, **overrides) -> VisionTransformer:
    """minivit's network of a case, its weights still zero."""
    case = cases.MODELS[name]
    options = case.config | {"weight_init": "skip"} | overrides
    return create_model(case.name, **options) if case.name else VisionTransformer(**options)


def run(name: str, model: VisionTransformer, dtype: type) -> dict[str, np.ndarray]:
    """Logits, loss and gradients with the reference's weights, under the names of the file, computed in ``dtype``."""
    model.eval().astype(dtype)
    model.load_state_dict(cases.weights(name, {n: p.shape for n, p in model.named_parameters()}))
    images = Tensor(cases.images(name, cases.MODELS[name].image_shape).astype(dtype), requires_grad=True)
    logits = model(images)
    *shape, classes = logits.shape
    loss = ops.cross_entropy(logits, cases.labels(name, tuple(shape), classes))
    loss.backward()
    gradients = {"images": images.grad} | {n: p.grad for n, p in model.named_parameters()}
    results = {"logits": logits.numpy(), "loss": loss.numpy()}
    return results | {f"{n}.grad": cases.stored(name, n, g) for n, g in gradients.items()}


def compare(name: str, results: dict[str, np.ndarray]) -> Differences:
    """The differences of ``results`` from the stored ones. Raises KeyError where a name is on one side only."""
    stored = cases.load(name)
    single = stored.pop("logits.float32")
    if odd := stored.keys() ^ results.keys():
        raise KeyError(f"{name}: only on one side: {', '.join(sorted(odd))}")
    largest = {key: np.abs(value).max() for key, value in stored.items() if key.endswith(".grad")}
    floor = 0.01 * max(largest.values())
    gradients = {k: float(np.abs(results[k] - stored[k]).max() / max(unit, floor)) for k, unit in largest.items()}
    worst = max(gradients, key=gradients.get)
    return Differences(
        logits=float(np.abs(results["logits"] - stored["logits"]).max()),
        logits_float32=float(np.abs(results["logits"] - single).max()),
        loss=float(np.abs(results["loss"] - stored["loss"])),
        gradients=gradients[worst],
        worst=worst.removesuffix(".grad"),
    )


def main() -> None:
    figures: dict[str, float] = {}
    print(f"{'network':22} {'precision':9} {'logits':>9} {'loss':>9} {'gradients':>9}  worst gradient")
    for name in cases.MODELS:
        for dtype in (np.float32, np.float64):
            d = compare(name, run(name, build(name), dtype))
            precision = np.dtype(dtype).name
            print(f"{name:22} {precision:9} {d.logits:9.1e} {d.loss:9.1e} {d.gradients:9.1e}  {d.worst}")
            for what in ("logits", "gradients"):
                key = f"{cases.MODELS[name].reference}_{what}_{precision}"
                figures[key] = max(figures.get(key, 0.0), getattr(d, what))
    layers = {
        "positions": position_cases.differences,
        "variants": variant_cases.differences,
        "distillation": distillation_cases.differences,
        "mae": mae_cases.differences,
        "resnets": resnet_cases.differences,
    }
    for file, differences in layers.items():
        print(f"\n{file:32} largest difference, relative to the largest entry")
        for name, difference in differences().items():
            print(f"{name:32} {difference:9.1e}")
            key = f"{file}_{cases.load(file)[name].dtype.name}"
            figures[key] = max(figures.get(key, 0.0), difference)
    print(json.dumps({"report": "parity", "networks": len(cases.MODELS)} | figures))


if __name__ == "__main__":
    main()
