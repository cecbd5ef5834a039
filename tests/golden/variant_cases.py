"""Attention variants and shifted patches to compare: the numbers that go in, and what minivit makes of them.

``ours()`` has the same names as the golden file ``variants.npz``, which ``variants.py`` makes with vit-pytorch and
PyTorch. No PyTorch is needed here. Weights are drawn in minivit's layout; ``variants.py`` puts them into the other's.
"""

import numpy as np

from minivit import Parameter, Tensor
from minivit.nn import LocalitySelfAttention, Module, RectifiedAttention, ShiftedPatchEmbed
from minivit.nn.normalization import LayerNorm
from tests.golden import cases

TOKENS_SHAPE = (2, 5, 8)  # B, N, D
HEADS, HEAD = 2, 6  # H d is not D
IMAGES_SHAPE = (2, 3, 8, 12)
PATCH, WIDTH = 4, 7
NORM_EPS = 1e-5  # vit-pytorch's, which is PyTorch's


class NormalisedAttention(Module):
    """vit-pytorch has the LayerNorm in front of an attention layer inside of it."""

    def __init__(self):
        self.norm = LayerNorm(TOKENS_SHAPE[-1], NORM_EPS)
        self.attn = LocalitySelfAttention(TOKENS_SHAPE[-1], HEADS, qkv_bias=False, head_dim=HEAD)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(self.norm(x))


def layers() -> dict[str, tuple[Module, tuple[int, ...]]]:
    """minivit's layers by name, with their weights in float64, and the shape of what they are given."""
    made = {
        "lsa": (NormalisedAttention(), TOKENS_SHAPE),
        "spt": (
            ShiftedPatchEmbed(
                IMAGES_SHAPE[2:], PATCH, IMAGES_SHAPE[1], WIDTH, shift=1, directions="straight", norm_eps=NORM_EPS
            ),
            IMAGES_SHAPE,
        ),
        "rela": (RectifiedAttention(TOKENS_SHAPE[-1], HEADS, head_dim=HEAD), TOKENS_SHAPE),
    }
    for name, (layer, _) in made.items():
        layer.astype(np.float64)
        layer.load_state_dict(weights(name, layer))
    return made


def weights(name: str, layer: Module) -> dict[str, np.ndarray]:
    drawn = cases.weights(name, {parameter: p.shape for parameter, p in layer.named_parameters()})
    return {parameter: np.asarray(value) for parameter, value in drawn.items()}


def given(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return cases.images(name, shape)


def ours() -> dict[str, np.ndarray]:
    """minivit's outputs, and the gradients of the input and of all parameters, computed in float64."""
    results = {}
    for name, (layer, shape) in layers().items():
        x = Parameter(given(name, shape))
        y = layer(x)
        y.backward(cases.cotangent(name, y.shape))
        results |= {name: y.numpy(), f"{name}.grad": x.grad}
        results |= {f"{name}.{parameter}.grad": p.grad for parameter, p in layer.named_parameters()}
    return results


def differences() -> dict[str, float]:
    """As ``cases.differences`` has it."""
    return cases.differences("variants", ours())
