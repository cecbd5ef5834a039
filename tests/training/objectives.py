"""Small networks and objectives for the tests of training: other than classification."""

from collections.abc import Callable
from dataclasses import dataclass, field

from minivit import Tensor, ops
from minivit.backend import array_module
from minivit.nn import Dropout, Linear, Module
from minivit.objective import Objective
from minivit.random import generator, layer_uniform


def draw_weights(module: Module, name: str) -> None:
    """Weights that are the same in every process."""
    rng = generator(0, name)
    for p in module.parameters():
        p.data[...] = rng.normal(size=p.shape, scale=0.5)


@dataclass(frozen=True)
class LossOf(Objective):
    """``function(logits, labels)``, whatever it is."""

    function: Callable

    def __call__(self, model, images, labels):
        logits = model(images)
        return self.function(logits, labels), logits


class Masked(Module):
    """A masked autoencoder of 2×2 images, whose patches are the pixels: the hidden ones from the others."""

    def __init__(self):
        self.fc1 = Linear(4, 8)
        self.drop = Dropout(0.2)
        self.fc2 = Linear(8, 4)
        draw_weights(self, "masked")

    def forward(self, images, mask_ratio=0.5, mask_kind="random"):
        pixels, count = ops.reshape(images, (len(images), 4)), round(4 * mask_ratio)
        noise = layer_uniform(len(images), (4,), array_module(images))
        hidden = (noise.argsort(-1).argsort(-1) < count).astype("float32")
        prediction = self.fc2(self.drop(ops.gelu(self.fc1(pixels * (1 - hidden)))))
        wrong = (prediction - pixels) * hidden
        return (wrong * wrong).sum() / (len(images) * count), prediction, hidden


@dataclass(frozen=True)
class Likeness(Objective):
    """Half of what a small trained layer makes of the logits should be the image: a layer that is not the model's."""

    layer: Linear = field(repr=False)

    def __call__(self, model: Module, images, labels) -> tuple[Tensor, Tensor]:
        logits = model(images)
        wrong = self.layer(logits) - images.reshape(len(images), 4)
        return ops.cross_entropy(logits, labels) + 0.5 * (wrong * wrong).mean(), logits

    @property
    def module(self) -> Module:
        return self.layer


def likeness() -> Likeness:
    layer = Linear(3, 4)
    draw_weights(layer, "likeness")
    return Likeness(layer)
