"""SimMIM (Xie et al., "SimMIM: a Simple Framework for Masked Image Modeling", CVPR 2022, arXiv:2111.09886).

The other way to learn from patches that are not seen. There is no decoder, and nothing is left out:

    image ──PatchEmbed──▶ N tokens, the masked ones replaced by a learned mask token ──VisionTransformer──▶ z
    pred = Linear(z) (B, N, P·Q·C),   loss = the mean of |pred − pixels| over the masked patches

So the encoder works on all N tokens, a masked autoencoder's (``mae.py``) on a quarter of them; in return the decoder is
one matrix product. A mask hides single patches here, unless another is given; the paper's hides squares of 32 px, which
are several patches where patches are small. ``draw_masking`` takes any mask.
"""

from typing import Any

import numpy as np

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.backend import Array, array_module
from minivit.models.mae import patchify, run_blocks, unpatchify
from minivit.models.masking import draw_masking, masked_mean
from minivit.models.vit import VisionTransformer
from minivit.nn import Linear, init
from minivit.nn.module import as_tensor
from minivit.ops.shape import Size


class SimMIM(VisionTransformer):
    """Images (B, in_chans, H, W) → loss, prediction (B, N, P·Q·C) and mask (B, N) of 1 (masked) and 0.

    ``options`` are those of ``VisionTransformer``, but for its head; pixels of a patch are in the order (row, column,
    channel). ``encoder_state`` of ``mae.py`` gives the weights for a ``VisionTransformer`` of the same options.

    >>> from minivit.models.simmim import SimMIM
    >>> model = SimMIM(32, 8, embed_dim=24, depth=2, num_heads=3)
    >>> loss, pred, mask = model(np.zeros((5, 3, 32, 32), np.float32), mask_ratio=0.5)
    >>> loss.shape, pred.shape, mask.sum(axis=1)
    ((), (5, 16, 192), array([8., 8., 8., 8., 8.], dtype=float32))
    """

    norm_pix_loss = False  # targets are the pixels as they are

    def __init__(
        self, img_size: int | Size = 224, patch_size: int | Size = 16, in_chans: int = 3, embed_dim: int = 768,
        weight_init: str = "timm", seed: int = 0, **options: Any,
    ):  # fmt: skip
        options |= dict(embed_dim=embed_dim, num_classes=0, global_pool="", weight_init="skip")
        super().__init__(img_size, patch_size, in_chans, **options)
        p, q = self.patch_embed.patch_size
        with init.deferred():
            self.mask_token = Parameter(np.zeros((1, 1, embed_dim), np.float32))
            self.decoder_pred = Linear(embed_dim, p * q * in_chans)
        init.init_weights(self, weight_init, seed)

    def forward(self, images: Tensor, mask_ratio: float = 0.6, **masking: Any) -> tuple[Tensor, Tensor, Array]:
        """``masking``: the other arguments of ``draw_masking``: ``mask_kind``, ``noise``, ``mask``, …"""
        x = self.patch_embed(images)
        mask = draw_masking(len(x), self.patch_embed.grid_size, mask_ratio, xp=array_module(x.data), **masking).mask
        hidden = mask[:, :, None].astype(self.mask_token.dtype)
        x = ops.scale(x, 1 - hidden) + ops.scale(self.mask_token, hidden)
        z = self.norm_pre(self.pos_drop(self.embed_positions(x)))
        z = self.norm(run_blocks(self.blocks, z, recompute=self.grad_checkpointing and self.training))
        pred = self.decoder_pred(z[:, self.num_prefix_tokens :])
        return self.forward_loss(images, pred, mask), pred, mask

    def forward_loss(self, images: Tensor, pred: Tensor, mask: Array) -> Tensor:
        """The mean of |pred − pixel| over the pixels of masked patches."""
        difference = pred - self.patchify(as_tensor(images).data)
        distance = ops.relu(difference) + ops.relu(-difference)
        return masked_mean(distance.mean(axis=-1), mask)

    def patchify(self, images: Array) -> Array:
        """Images (B, C, H, W) → their patches (B, N, P·Q·C), row by row; the inverse of ``unpatchify``."""
        return patchify(images, self.patch_embed.patch_size)

    def unpatchify(self, patches: Array) -> Array:
        """Patches (B, N, P·Q·C) → images (B, C, H, W)."""
        return unpatchify(patches, self.patch_embed.patch_size, self.patch_embed.grid_size)


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "simmim_vit_base_patch16": dict(embed_dim=768, depth=12, num_heads=12),
    # encoders as those of mae_nano_patch4_28 and so on
    "simmim_nano_patch4_28": dict(img_size=28, patch_size=4, in_chans=1, embed_dim=64, depth=6, num_heads=4),
    "simmim_nano_patch4_32": dict(img_size=32, patch_size=4, embed_dim=96, depth=6, num_heads=3, mlp_ratio=2.0),
    "simmim_micro_patch4_32": dict(img_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=4),
    "simmim_cifar_patch4_32": dict(img_size=32, patch_size=4, embed_dim=192, depth=9, num_heads=12, mlp_ratio=2.0),
}
