"""Named configurations: timm's Vision Transformers, DeiT's, the book's, and small ones for small images."""

import difflib
from typing import Any

from minivit.models.vit import VisionTransformer


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


CONFIGURATIONS: dict[str, dict[str, Any]] = _sizes() | {
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


def list_models() -> list[str]:
    """The names that ``create_model`` knows.

    >>> "vit_tiny_patch16_224" in list_models()
    True
    """
    return list(CONFIGURATIONS)


def create_model(name: str, **overrides: Any) -> VisionTransformer:
    """The named Vision Transformer; ``overrides`` are arguments of ``VisionTransformer`` that replace the named ones.

    Raises ValueError for an unknown name, with the names nearest to it.

    >>> create_model("vit_book").num_parameters()
    12715402
    >>> create_model("vit_nano_patch4_28", num_classes=3)(np.zeros((1, 1, 28, 28), np.float32)).shape
    (1, 3)
    """
    if name not in CONFIGURATIONS:
        near = difflib.get_close_matches(name, CONFIGURATIONS) or list(CONFIGURATIONS)
        raise ValueError(f"there is no model {name!r}; perhaps {', '.join(near)}")
    return VisionTransformer(**CONFIGURATIONS[name] | overrides)
