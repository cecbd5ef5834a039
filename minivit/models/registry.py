"""Named configurations: timm's Vision Transformers, DeiT's, the book's, and small ones for small images.

Those of the other models stand at the ends of their own files; here all names come together.
"""

import difflib
from typing import Any

from minivit.models import deit, mae, resnet, simmim
from minivit.models.vit import VisionTransformer
from minivit.nn import Module


def _vit(
    embed_dim: int, depth: int, num_heads: int, patch_size: int | tuple[int, int], img_size: int = 224, **options
) -> dict[str, Any]:
    return (
        dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, patch_size=patch_size, img_size=img_size) | options
    )


def _sizes() -> dict[str, dict[str, Any]]:
    widths = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
    made = {"tiny": (16,), "small": (8, 16, 32), "base": (8, 16, 32), "large": (14, 16, 32)}
    models = {
        f"vit_{size}_patch{patch}_{img_size}": _vit(*widths[size], patch, img_size)
        for img_size in (224, 384)
        for size, patches in made.items()
        for patch in patches
        if img_size == 224 or patch in (16, 32)
    }
    models["vit_huge_patch14_224"] = _vit(1280, 32, 16, 14)
    models |= {f"deit_{size}_patch16_224": _vit(*widths[size], 16) for size in ("tiny", "small", "base")}
    return models


VIT: dict[str, dict[str, Any]] = _sizes() | {
    # the network of the book Vision Transformer入門, chapter 2: 2 × 2 patches of a 32 px image
    "vit_book": _vit(384, 7, 8, 16, 32, num_classes=10, qkv_bias=False, norm_eps=1e-5, weight_init="book"),
    # Small ones, 64 to 192 wide. At such widths timm's weights of 0.02 are small, and learning starts late; the book's
    # start, with positions of length √D, does not have this (compare with weight_init="timm").
    # for MNIST and its like, in 4 × 4 or 7 × 7 patches of a 28 px image
    "vit_nano_patch7_28": _vit(64, 4, 4, 7, 28, num_classes=10, in_chans=1, weight_init="book"),
    "vit_nano_patch4_28": _vit(64, 6, 4, 4, 28, num_classes=10, in_chans=1, weight_init="book"),
    # for 32 px images; patches of 4 × 8 px halve the tokens of 4 × 4, and so the time of an epoch
    "vit_nano_patch8_32": _vit(96, 4, 4, 8, 32, num_classes=10, weight_init="book"),
    "vit_nano_patch4_32": _vit(96, 6, 3, 4, 32, num_classes=10, mlp_ratio=2.0, weight_init="book"),
    "vit_nano_patch4x8_32": _vit(96, 6, 3, (4, 8), 32, num_classes=10, mlp_ratio=2.0, weight_init="book"),
    "vit_micro_patch4_32": _vit(128, 6, 4, 4, 32, num_classes=10, weight_init="book"),
    # the CIFAR network of Lee et al., "Vision Transformer for Small-Size Datasets", 2021 (arXiv:2112.13492)
    "vit_cifar_patch4_32": _vit(192, 9, 12, 4, 32, num_classes=10, mlp_ratio=2.0),
}


FAMILIES: dict[type[Module], dict[str, dict[str, Any]]] = {
    VisionTransformer: VIT,
    deit.VisionTransformerDistilled: deit.CONFIGURATIONS,
    mae.MaskedAutoencoderViT: mae.CONFIGURATIONS,
    simmim.SimMIM: simmim.CONFIGURATIONS,
    resnet.ResNet: resnet.CONFIGURATIONS,
}
MODELS = {name: (family, options) for family, named in FAMILIES.items() for name, options in named.items()}


def list_models(family: type[Module] | None = None) -> list[str]:
    """The names that ``create_model`` knows; of one ``family``, those of that class.

    >>> "vit_tiny_patch16_224" in list_models() and "mae_vit_base_patch16" in list_models(mae.MaskedAutoencoderViT)
    True
    """
    return [name for name, (of, _) in MODELS.items() if family in (None, of)]


def create_model(name: str, **overrides: Any) -> Module:
    """The named model; ``overrides`` are arguments of its class that replace the named ones.

    Raises ValueError for an unknown name, with the names nearest to it.

    >>> create_model("vit_book").num_parameters()
    12715402
    >>> create_model("vit_nano_patch4_28", num_classes=3)(np.zeros((1, 1, 28, 28), np.float32)).shape
    (1, 3)
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS) or list(MODELS)
        raise ValueError(f"there is no model {name!r}; perhaps {', '.join(near)}")
    family, options = MODELS[name]
    return family(**options | overrides)
