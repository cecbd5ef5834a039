"""torchvision's residual networks: the arrays of ``resnets.npz``, in float64.

Needs torch and torchvision; only ``make_golden.py`` imports this file. Each array has the name of minivit's own in
``resnet_cases.py``, and is computed from the same numbers, under the same names.
"""

import numpy as np
import torch
import torch.nn.functional as F

from tests.golden import (
    reference,  # noqa: F401  (makes torchvision importable)
    resnet_cases,
)

from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet  # isort: skip

Arrays = dict[str, np.ndarray]
KINDS = {"basic": BasicBlock, "bottleneck": Bottleneck}


def golden_resnets() -> Arrays:
    return {name: array for block in KINDS for name, array in network(block).items()}


def network(block: str) -> Arrays:
    """Logits in evaluation and training, loss, gradients; then running estimates after two steps."""
    module = ResNet(KINDS[block], resnet_cases.BLOCKS[block], resnet_cases.CLASSES).double()
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    numbers = resnet_cases.weights(block, shapes)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in numbers.items()})
    (images, labels), (others, _) = (map(torch.from_numpy, batch) for batch in resnet_cases.batches(block))
    images.requires_grad_()
    with torch.no_grad():
        found = {"evaluation": module.eval()(images)}
    logits = module.train()(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    found |= {"logits": logits, "loss": loss, "images.grad": images.grad}
    found |= {f"{name}.grad": p.grad for name, p in module.named_parameters()}
    with torch.no_grad():
        module(others)
        found |= dict(module.named_buffers())
        found["afterwards"] = module.eval()(others)
    arrays = {name: tensor.detach().double().numpy() for name, tensor in found.items()}
    return {f"{block}.{name}": resnet_cases.some(block, name, array) for name, array in arrays.items()}
