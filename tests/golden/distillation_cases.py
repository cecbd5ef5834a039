"""Distillation to compare: a student with two heads, a teacher, and losses, from the same numbers on both sides.

``ours()`` has the same names as the golden file ``distillation.npz``, which ``distillation.py`` makes with DeiT's own
program. No PyTorch is needed here.
"""

import numpy as np

from minivit import Tensor
from minivit.distillation import HardDistillation, LogitDistillation, SoftDistillation, Teacher
from minivit.models.deit import VisionTransformerDistilled
from minivit.nn import Linear, Module
from tests.golden import cases

STUDENT = dict(img_size=(8, 12), patch_size=4, num_classes=5, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2.0)
IMAGES_SHAPE = (4, 3, 8, 12)
LOSSES = {  # minivit's arguments
    "soft": ("soft", dict(alpha=0.1, temperature=3.0, reduction="mean")),
    "soft_smooth": ("soft", dict(alpha=0.5, temperature=1.0, reduction="mean", label_smoothing=0.1)),
    "soft_batchmean": ("soft", dict(alpha=0.3, temperature=2.0, reduction="batchmean")),
    "hard": ("hard", dict(alpha=0.5)),
    "hard_smooth": ("hard", dict(alpha=0.8, label_smoothing=0.1)),
}


class LinearTeacher(Module):
    """One linear layer from all pixels to the classes."""

    def __init__(self):
        self.fc = Linear(int(np.prod(IMAGES_SHAPE[1:])), STUDENT["num_classes"])

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.reshape(len(images), -1))


def with_weights(name: str, model: Module) -> Module:
    """The model in float64, with the weights that both sides draw."""
    model.astype(np.float64)
    model.load_state_dict(cases.weights(name, {n: p.shape for n, p in model.named_parameters()}))
    return model


def student(**options) -> VisionTransformerDistilled:
    return with_weights("distillation", VisionTransformerDistilled(**STUDENT, weight_init="skip", **options))


def objective(name: str) -> LogitDistillation:
    kind, options = LOSSES[name]
    teacher = Teacher(with_weights("distillation.teacher", LinearTeacher()))
    return {"soft": SoftDistillation, "hard": HardDistillation}[kind](teacher, **options)


def given() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels."""
    images = cases.images("distillation", IMAGES_SHAPE)
    return images, cases.labels("distillation", IMAGES_SHAPE[:1], STUDENT["num_classes"])


def ours(model: VisionTransformerDistilled | None = None) -> dict[str, np.ndarray]:
    """Both logits, what they are in evaluation, and the losses with all gradients, computed in float64."""
    model = model or student()
    images, labels = given()
    logits, logits_dist = model.train()(images)
    results = {"logits": logits.numpy(), "logits_dist": logits_dist.numpy()}
    for name in LOSSES:
        model.zero_grad()
        loss, _ = objective(name)(model, images, labels)
        loss.backward()
        results[name] = loss.numpy()
        results |= {f"{name}.{parameter}.grad": p.grad for parameter, p in model.named_parameters()}
    return results | {"evaluation": model.eval()(images).numpy()}


def differences() -> dict[str, float]:
    """As ``cases.differences`` has it."""
    return cases.differences("distillation", ours())
