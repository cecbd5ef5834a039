"""Distillation by the program of DeiT's authors, its network and its loss: ``distillation.npz``.

Needs torch and timm, and the internet once; only ``make_golden.py`` imports this file. Each array has the name of
minivit's own in ``distillation_cases.py``, and is computed from the same numbers, in float64.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.golden import (
    cases,
    distillation_cases,
    github,
    reference,  # noqa: F401  (makes torchvision importable, which timm imports)
)

Arrays = dict[str, np.ndarray]
DEIT = ("facebookresearch/deit", "7e160fe43f0252d17191b71cbb5826254114ea5b")
LOSSES = ("losses.py", "cd5e3cb42f59a3f404a7f61e2c6e5fa885365f1517f18b8728e8726079267d5f")
MODELS = ("models.py", "28d2d573aece3dfe67780b58548a766c978c23b276df45f08589a77da45ff5fb")


def golden_distillation() -> Arrays:
    """Both logits, what they are in evaluation, and the losses with all gradients."""
    network = github.module(*DEIT, *MODELS).DistilledVisionTransformer
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    student = drawn("distillation", network(**distillation_cases.STUDENT, qkv_bias=True, norm_layer=norm))
    images, labels = map(torch.from_numpy, distillation_cases.given())
    logits, logits_dist = student.train()(images)
    results = {"logits": logits.detach().numpy(), "logits_dist": logits_dist.detach().numpy()}
    for name, (kind, options) in distillation_cases.LOSSES.items():
        student.zero_grad()
        loss = criterion(kind, **options)(images, student(images), labels)
        loss.backward()
        results[name] = loss.detach().numpy()
        results |= {f"{name}.{parameter}.grad": p.grad.numpy().copy() for parameter, p in student.named_parameters()}
    return results | {"evaluation": student.eval()(images).detach().numpy()}


def criterion(kind, alpha, temperature=1.0, reduction="mean", label_smoothing=0.0):
    """DeiT's loss; a divergence that is a mean over images is not DeiT's, but PyTorch's."""
    teacher = drawn("distillation.teacher", LinearTeacher()).eval()
    truth = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    if kind == "hard" or reduction == "mean":
        return github.module(*DEIT, *LOSSES).DistillationLoss(truth, teacher, kind, alpha, temperature)

    def per_image(images, outputs, labels):
        with torch.no_grad():
            target = F.softmax(teacher(images) / temperature, 1)
        divergence = F.kl_div(F.log_softmax(outputs[1] / temperature, 1), target, reduction=reduction)
        return (1 - alpha) * truth(outputs[0], labels) + alpha * temperature**2 * divergence

    return per_image


class LinearTeacher(nn.Module):
    def __init__(self):
        super().__init__()
        _, *image = distillation_cases.IMAGES_SHAPE
        self.fc = nn.Linear(int(np.prod(image)), distillation_cases.STUDENT["num_classes"])

    def forward(self, images):
        return self.fc(images.flatten(1))


def drawn(name: str, module: nn.Module) -> nn.Module:
    """The module in float64, with the weights that both sides draw."""
    shapes = {parameter: tuple(p.shape) for parameter, p in module.named_parameters()}
    weights = {parameter: torch.from_numpy(w) for parameter, w in cases.weights(name, shapes).items()}
    module.double().load_state_dict(weights)
    return module
