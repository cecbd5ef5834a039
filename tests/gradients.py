"""How exact are the gradients? Every op, every layer and whole networks, each checked on many drawn cases.

    python -m tests.gradients [--examples 40]

prints the worst relative error of each, and as the last line a JSON object with the worst of all. The cases are those
of the test suite; what an error is measured against is said in ``minivit/gradcheck.py``.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from tqdm import tqdm

from minivit import gradcheck, ops
from tests.models import test_mae, test_resnet, test_vit
from tests.nn import test_gradients as layers
from tests.rules import one_result
from tests.strategies import CASES, generators, on_drawn


def op_error(name: str, draw: Callable[[st.SearchStrategy], Any]) -> float:
    case = draw(CASES[name])
    return gradcheck(lambda *args: one_result(getattr(ops, name))(*args, **case.options), *case.args)


def layer_error(kind: type, draw: Callable[[st.SearchStrategy], Any]) -> float:
    layer, x = draw(layers.CASES[kind])
    return layers.check_gradients(layers.randomise(layer, draw(generators)), x)


def vit_error(draw: Callable[[st.SearchStrategy], Any]) -> float:
    return layers.check_gradients(*draw(test_vit.networks()))


def mae_error(draw: Callable[[st.SearchStrategy], Any]) -> float:
    model, images, masking = draw(test_mae.autoencoders())
    return layers.check_gradients(test_mae.Loss(model, images, **masking), images)


def resnet_error(draw: Callable[[st.SearchStrategy], Any]) -> float:
    return test_resnet.check_gradients(*draw(test_resnet.networks()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=40, help="cases of each")
    examples = parser.parse_args().examples
    checks = {name: lambda draw, name=name: op_error(name, draw) for name in sorted(CASES)}
    checks |= {kind.__name__: lambda draw, kind=kind: layer_error(kind, draw) for kind in layers.CASES}
    models = {"VisionTransformer": vit_error, "ResNet": resnet_error, "MaskedAutoencoderViT": mae_error}
    checks |= models
    worst = {}
    for name, check in tqdm(checks.items(), leave=False, disable=None):
        worst[name] = max(on_drawn(st.data(), examples, lambda data, check=check: check(data.draw)))
        tqdm.write(f"{name:30} {worst[name]:.1e}")
    counts = {"ops": len(CASES), "layers": len(layers.CASES), "models": len(models), "examples": examples * len(checks)}
    print(json.dumps(counts | {"worst_relative_error": max(worst.values())}))


if __name__ == "__main__":
    main()
