"""Residual networks to compare: the numbers that go in, and what minivit makes of them.

``ours()`` has the same names as the golden file ``resnets.npz``, which ``resnets.py`` makes with torchvision. Of each
parameter 48 numbers are compared, chosen by key: torchvision's networks begin with 64 channels, which makes millions.
"""

from collections.abc import Iterator

import numpy as np

from minivit import Tensor, ops
from minivit.models.resnet import ResNet
from minivit.random import generator
from tests.golden import cases

BLOCKS = {"basic": (1, 1, 1, 1), "bottleneck": (1, 2, 1, 1)}  # how many of each kind in the stages
CLASSES = 5
IMAGES_SHAPE = (4, 3, 40, 40)  # 40, 20, 10, 5, 3 and 2 pixels: odd sizes among them
ENTRIES = 48


def weights(block: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """As for the other networks; a running variance is above 0, and no batch has been counted."""
    drawn = cases.weights(f"resnet_{block}", shapes)
    change = {"running_var": np.exp, "num_batches_tracked": np.zeros_like}
    return {name: change.get(name.rpartition(".")[2], np.asarray)(value) for name, value in drawn.items()}


def batches(block: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of two steps of training, the first of which is differentiated."""
    for step in (1, 2):
        case = f"resnet_{block}_{step}"
        yield cases.images(case, IMAGES_SHAPE), cases.labels(case, IMAGES_SHAPE[:1], CLASSES)


def some(block: str, name: str, array: np.ndarray) -> np.ndarray:
    """The part of an array that is stored."""
    if array.size <= ENTRIES:
        return array
    return array.ravel()[generator(0, "golden", block, name).integers(array.size, size=ENTRIES)]


def build(block: str) -> ResNet:
    model = ResNet(block, BLOCKS[block], num_classes=CLASSES, weight_init="skip").astype(np.float64)
    model.load_state_dict(weights(block, {name: p.shape for name, p in model.named_parameters()}))
    return model


def results(block: str, model: ResNet) -> dict[str, np.ndarray]:
    """Logits in evaluation and training, loss, gradients; then running estimates after two steps."""
    (images, labels), (others, _) = batches(block)
    found = {"evaluation": model.eval()(images).numpy()}
    x = Tensor(images, requires_grad=True)
    logits = model.train()(x)
    loss = ops.cross_entropy(logits, labels)
    loss.backward()
    found |= {"logits": logits.numpy(), "loss": loss.numpy(), "images.grad": x.grad}
    found |= {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.requires_grad}
    model(others)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    found |= {name: array for name, array in model.state_dict().items() if name not in trained}
    found["afterwards"] = model.eval()(others).numpy()
    return {f"{block}.{name}": some(block, name, array) for name, array in found.items()}


def ours() -> dict[str, np.ndarray]:
    """What minivit makes of all of them, in float64."""
    return {name: array for block in BLOCKS for name, array in results(block, build(block)).items()}


def differences() -> dict[str, float]:
    """As ``cases.differences`` has it."""
    return cases.differences("resnets", ours())
