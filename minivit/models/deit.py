"""DeiT's distillation token (Touvron et al., "Training data-efficient image transformers & distillation through
attention", 2020, arXiv:2012.12877): a Vision Transformer with a second class token, which listens to a teacher.

    tokens       [class, distillation, patch 1 … patch N] + positions (N + 2 rows)
    logits       head(LN(z_depth)[0])           learn from the labels
    logits_dist  head_dist(LN(z_depth)[1])      learn from the teacher, see ``minivit/distillation.py``

In use the network's answer is the mean of both logits. All else is ``vit.py``'s; names are DeiT's and timm's.
"""

from typing import Any

import numpy as np

from minivit.autograd import Parameter, Tensor
from minivit.models.vit import POOL_ALIASES, VisionTransformer
from minivit.nn import Identity, Linear, init


class VisionTransformerDistilled(VisionTransformer):
    """Images (B, in_chans, H, W) → while training (logits, logits_dist), else their mean; each (B, num_classes).

    The arguments are those of ``VisionTransformer``; with ``reg_tokens`` registers stand behind the two. Raises
    ValueError for a ``global_pool`` other than "token": the heads read the two tokens.

    >>> model = VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
    >>> images = np.zeros((5, 3, 32, 32), np.float32)
    >>> logits, logits_dist = model(images)
    >>> logits.shape, logits_dist.shape, model.eval()(images).shape
    ((5, 1000), (5, 1000), (5, 1000))
    """

    def __init__(
        self, img_size: int | tuple[int, int] = 224, patch_size: int | tuple[int, int] = 16, in_chans: int = 3,
        num_classes: int = 1000, global_pool: str = "token", embed_dim: int = 768, weight_init: str = "timm",
        seed: int = 0, **options: Any,
    ):  # fmt: skip
        if POOL_ALIASES.get(global_pool, global_pool) != "token":
            raise ValueError(f'global_pool must be "token", as each head reads a token of its own; got {global_pool!r}')
        self.dist_token = Parameter(np.zeros((1, 1, embed_dim), np.float32))  # prefix_tokens counts it
        super().__init__(
            img_size, patch_size, in_chans, num_classes, global_pool, embed_dim, weight_init="skip", **options
        )
        with init.deferred():
            self.head_dist = Linear(embed_dim, num_classes) if num_classes else Identity()
        init.init_weights(self, weight_init, seed)

    @property
    def prefix_tokens(self) -> list[Parameter]:
        class_token, *registers = super().prefix_tokens
        return [class_token, self.dist_token, *registers]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(images, keep=2))

    def forward_head(self, z: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens (B, prefix + N, D) → both logits while training, else their mean."""
        logits = self.head(self.head_drop(self.fc_norm(z[:, 0])))
        logits_dist = self.head_dist(self.head_drop(self.fc_norm(z[:, 1])))
        return (logits, logits_dist) if self.training else (logits + logits_dist) * 0.5


def _deit(embed_dim: int, depth: int, num_heads: int, patch_size: int | tuple[int, int] = 16, img_size: int = 224):
    return dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, patch_size=patch_size, img_size=img_size)


_small = dict(num_classes=10, weight_init="book")
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "deit_tiny_distilled_patch16_224": _deit(192, 12, 3),
    "deit_small_distilled_patch16_224": _deit(384, 12, 6),
    "deit_base_distilled_patch16_224": _deit(768, 12, 12),
    "deit_base_distilled_patch16_384": _deit(768, 12, 12, img_size=384),
    # the small ones of registry.py, with a distillation token
    "deit_nano_distilled_patch7_28": _deit(64, 4, 4, 7, 28) | _small | dict(in_chans=1),
    "deit_nano_distilled_patch4_28": _deit(64, 6, 4, 4, 28) | _small | dict(in_chans=1),
    "deit_nano_distilled_patch8_32": _deit(96, 4, 4, 8, 32) | _small,
    "deit_nano_distilled_patch4_32": _deit(96, 6, 3, 4, 32) | _small | dict(mlp_ratio=2.0),
    "deit_nano_distilled_patch4x8_32": _deit(96, 6, 3, (4, 8), 32) | _small | dict(mlp_ratio=2.0),
    "deit_micro_distilled_patch4_32": _deit(128, 6, 4, 4, 32) | _small,
}
