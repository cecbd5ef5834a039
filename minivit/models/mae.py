"""The masked autoencoder (He et al., "Masked Autoencoders Are Scalable Vision Learners", 2021, arXiv:2111.06377).

A Vision Transformer learns without labels: it is shown a quarter of an image's patches, and has to paint the others.

    image ──PatchEmbed──▶ N tokens + positions ──masking──▶ the visible ones, a quarter
    class token, visible tokens ──blocks──norm──▶ latent                        the encoder, wide and deep
    latent ──decoder_embed──▶ put back in order, a mask token in each gap, + positions
           ──decoder_blocks──decoder_norm──decoder_pred──▶ pred (B, N, P·Q·C)   the decoder, narrow and shallow
    loss = the mean of (pred − pixels)² over the masked patches

The encoder never sees a mask token. So it works on few tokens while it learns, which is fast, and on whole images
afterwards, without a change: it is a ``VisionTransformer``, and ``encoder_state`` gives its weights. The decoder is
thrown away then.

Arguments and parameter names are facebookresearch/mae's, so its state dicts load as they are. Pixels of a patch are in
its order too, (row, column, channel).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.backend import Array, array_module
from minivit.models.masking import draw_masking, masked_mean
from minivit.nn import Block, LayerNorm, Linear, Module, PatchEmbed, absolute_table, checkpoint, init, prepend_tokens
from minivit.nn.module import as_tensor
from minivit.ops.shape import Size


class MaskedAutoencoderViT(Module):
    """Images (B, in_chans, H, W) → loss, prediction (B, N, P·Q·C) and mask (B, N) of 1 (masked) and 0.

    - ``img_size``, ``patch_size``: numbers, or pairs (height, width); ``in_chans`` any number of channels.
    - the encoder: ``embed_dim`` D, ``depth``, ``num_heads``, ``drop_path_rate`` as of ``VisionTransformer``
    - the decoder: ``decoder_embed_dim``, ``decoder_depth``, ``decoder_num_heads``
    - ``mlp_ratio`` and ``norm_eps`` of both.
    - ``norm_pix_loss``: predict each patch with its own mean subtracted, and divided by its own standard deviation.
      Features got better by it (table 1d); predictions are harder to look at: see ``analysis/reconstruction.py``.
    - ``weight_init`` a preset of ``nn.init``, drawn from ``seed``.

    Positions are fixed sines and cosines in both, Parameters that are not trained. Raises ValueError for arguments that
    do not go together.

    >>> from minivit.models.mae import MaskedAutoencoderViT
    >>> model = MaskedAutoencoderViT(32, 8, embed_dim=24, depth=2, num_heads=3, decoder_embed_dim=16, decoder_depth=1)
    >>> loss, pred, mask = model(np.zeros((5, 3, 32, 32), np.float32), mask_ratio=0.75)
    >>> loss.shape, pred.shape, mask.sum(axis=1)
    ((), (5, 16, 192), array([12., 12., 12., 12., 12.], dtype=float32))
    """

    num_prefix_tokens = 1  # the class token

    def __init__(
        self, img_size: int | Size = 224, patch_size: int | Size = 16, in_chans: int = 3, embed_dim: int = 1024,
        depth: int = 24, num_heads: int = 16, decoder_embed_dim: int = 512, decoder_depth: int = 8,
        decoder_num_heads: int = 16, mlp_ratio: float = 4.0, norm_pix_loss: bool = False, norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0, weight_init: str = "mae", seed: int = 0,
    ):  # fmt: skip
        self.norm_pix_loss = norm_pix_loss
        self.grad_checkpointing = False
        with init.deferred():
            self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
            grid, (p, q) = self.patch_embed.grid_size, self.patch_embed.patch_size
            if norm_pix_loss and p * q * in_chans < 2:
                raise ValueError("norm_pix_loss needs patches of at least two numbers, which have a variance")
            self.cls_token = Parameter(np.zeros((1, 1, embed_dim), np.float32))
            self.pos_embed = Parameter(absolute_table("sincos_mae", embed_dim, grid, 1), requires_grad=False)
            self.blocks = [
                Block(
                    embed_dim, num_heads, mlp_ratio, drop_path=drop_path_rate * i / max(depth - 1, 1), norm_eps=norm_eps
                )
                for i in range(depth)
            ]
            self.norm = LayerNorm(embed_dim, norm_eps)

            self.decoder_embed = Linear(embed_dim, decoder_embed_dim)
            self.mask_token = Parameter(np.zeros((1, 1, decoder_embed_dim), np.float32))
            table = absolute_table("sincos_mae", decoder_embed_dim, grid, 1)
            self.decoder_pos_embed = Parameter(table, requires_grad=False)
            self.decoder_blocks = [
                Block(decoder_embed_dim, decoder_num_heads, mlp_ratio, norm_eps=norm_eps) for _ in range(decoder_depth)
            ]
            self.decoder_norm = LayerNorm(decoder_embed_dim, norm_eps)
            self.decoder_pred = Linear(decoder_embed_dim, p * q * in_chans)
        init.init_weights(self, weight_init, seed)

    def forward(self, images: Tensor, mask_ratio: float = 0.75, **masking: Any) -> tuple[Tensor, Tensor, Array]:
        """``masking``: the other arguments of ``draw_masking``: ``mask_kind``, ``noise``, ``mask``, …"""
        latent, mask, ids_restore = self.forward_encoder(images, mask_ratio, **masking)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(images, pred, mask), pred, mask

    def forward_encoder(self, images: Tensor, mask_ratio: float = 0.75, **masking: Any) -> tuple[Tensor, Array, Array]:
        """Images → latent (B, 1 + keep, D) of the class token and the visible patches, mask and ids_restore (B, N)."""
        z = self.patch_embed(images) + self.pos_embed[:, 1:]
        masked = draw_masking(len(z), self.patch_embed.grid_size, mask_ratio, xp=array_module(z.data), **masking)
        return self.encode(ops.take_tokens(z, masked.ids_keep)), masked.mask, masked.ids_restore

    def forward_features(self, images: Tensor) -> Tensor:
        """The encoder on whole images, nothing masked: (B, 1 + N, D), class token first."""
        return self.encode(self.patch_embed(images) + self.pos_embed[:, 1:])

    def encode(self, z: Tensor) -> Tensor:
        """Patch tokens that have their positions (B, n, D) → (B, 1 + n, D), with the class token."""
        z = prepend_tokens(z, self.cls_token + self.pos_embed[:, :1])
        return self.norm(run_blocks(self.blocks, z, recompute=self.grad_checkpointing and self.training))

    def forward_decoder(self, latent: Tensor, ids_restore: Array) -> Tensor:
        """Latent (B, 1 + keep, D) → the pixels of all patches, (B, N, P·Q·C)."""
        z = self.decoder_embed(latent)
        batch, tokens, width = z.shape
        gaps = ops.broadcast_to(self.mask_token, (batch, ids_restore.shape[1] + 1 - tokens, width))
        patches = ops.take_tokens(ops.concatenate(z[:, 1:], gaps, axis=1), ids_restore)
        z = ops.concatenate(z[:, :1], patches, axis=1) + self.decoder_pos_embed
        z = run_blocks(self.decoder_blocks, z, recompute=self.grad_checkpointing and self.training)
        return self.decoder_pred(self.decoder_norm(z))[:, 1:]

    def forward_loss(self, images: Tensor, pred: Tensor, mask: Array) -> Tensor:
        """The mean of (pred − target)² over the pixels of masked patches. No gradient reaches the target."""
        return masked_mean(ops.mse_loss(pred, self.target(images), reduction="none").mean(axis=-1), mask)

    def target(self, images: Tensor) -> Array:
        """What ``pred`` should be: the pixels of each patch, or with ``norm_pix_loss`` the normalised ones."""
        patches = self.patchify(as_tensor(images).data)
        if not self.norm_pix_loss:
            return patches
        mean, std = patch_statistics(patches)
        return (patches - mean) / std

    def patchify(self, images: Array) -> Array:
        """Images (B, C, H, W) → their patches (B, N, P·Q·C), row by row; the inverse of ``unpatchify``."""
        return patchify(images, self.patch_embed.patch_size)

    def unpatchify(self, patches: Array) -> Array:
        """Patches (B, N, P·Q·C) → images (B, C, H, W)."""
        return unpatchify(patches, self.patch_embed.patch_size, self.patch_embed.grid_size)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """While training, let blocks keep only their inputs: see ``nn/recompute.py``."""
        self.grad_checkpointing = enable


def run_blocks(blocks: list[Block], z: Tensor, recompute: bool) -> Tensor:
    """z through one block after another; with ``recompute`` each keeps its input only, and runs again on the way back.

    >>> run_blocks([Block(8, 2), Block(8, 2)], Tensor(np.ones((1, 5, 8), np.float32)), recompute=False).shape
    (1, 5, 8)
    """
    for block in blocks:
        z = checkpoint(block, z) if recompute else block(z)
    return z


def patchify(images: Array, patch_size: Size) -> Array:
    """Cut (B, C, H, W) into patches (P, Q): (B, N, P·Q·C), row by row, each flattened as (row, column, channel).

    (``ops.patchify`` has the channel first, as the weight of a convolution.)

    >>> patchify(np.arange(8).reshape(1, 2, 2, 2), (1, 2))   # channels 0 … 3 and 4 … 7
    array([[[0, 4, 1, 5],
            [2, 6, 3, 7]]])
    """
    (b, c, h, w), (p, q) = images.shape, patch_size
    patches = images.reshape(b, c, h // p, p, w // q, q).transpose(0, 2, 4, 3, 5, 1)
    return patches.reshape(b, -1, p * q * c)


def unpatchify(patches: Array, patch_size: Size, grid: Size) -> Array:
    """Put patches (B, N, P·Q·C) of a grid (rows, columns) together: (B, C, H, W), the inverse of ``patchify``.

    Raises ValueError where the grid is of another number of patches.

    >>> images = np.arange(24.0).reshape(1, 2, 2, 6)
    >>> bool((unpatchify(patchify(images, (1, 2)), (1, 2), (2, 3)) == images).all())
    True
    """
    (b, n, numbers), (p, q), (rows, columns) = patches.shape, patch_size, grid
    if n != rows * columns or numbers % (p * q):
        raise ValueError(
            f"patches of {p} x {q} pixels on a grid of {rows} x {columns} have shape (B, {rows * columns}, {p * q} C), "
            f"got {patches.shape}"
        )
    return patches.reshape(b, rows, columns, p, q, -1).transpose(0, 5, 1, 3, 2, 4).reshape(b, -1, rows * p, columns * q)


def patch_statistics(patches: Array, eps: float = 1e-6) -> tuple[Array, Array]:
    """Mean μ and √(σ² + eps) of each patch, (B, N, 1) both; σ² is the unbiased variance, Σ (x − μ)² / (n − 1).

    >>> patch_statistics(np.array([[[1.0, 3.0]]]), eps=0.0)
    (array([[[2.]]]), array([[[1.41421356]]]))
    """
    variance = patches.var(axis=-1, ddof=1, keepdims=True)
    return patches.mean(axis=-1, keepdims=True), array_module(patches).sqrt(variance + eps)


def encoder_state(source: Module | Mapping[str, np.ndarray], norm: bool = True) -> dict[str, np.ndarray]:
    """The encoder's part of a model, or of a state dict: what a ``VisionTransformer`` of the same size has too.

    Left out are the decoder and the mask token; with ``norm=False`` the last LayerNorm also, for a network that pools
    first and normalises then (``fc_norm``). A head is not among it. The table of positions is: a learned one can start
    from it.

    >>> from minivit.models import VisionTransformer
    >>> from minivit.models.mae import MaskedAutoencoderViT, encoder_state
    >>> sizes = dict(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2)
    >>> pretrained = MaskedAutoencoderViT(**sizes, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)
    >>> state = encoder_state(pretrained)
    >>> model = VisionTransformer(**sizes, num_classes=10)
    >>> model.load_state_dict(state, strict=False)
    >>> set(model.state_dict()) - set(state) == {"head.weight", "head.bias"}
    True
    """
    state = source.state_dict() if isinstance(source, Module) else source
    left_out = ("decoder_", "mask_token") if norm else ("decoder_", "mask_token", "norm.")
    return {name: array for name, array in state.items() if not name.startswith(left_out)}


def _mae(encoder: tuple[int, int, int], decoder: tuple[int, int, int], patch_size: int, img_size: int, **options: Any):
    names = ("embed_dim", "depth", "num_heads")
    sizes = dict(zip(names, encoder)) | {f"decoder_{name}": size for name, size in zip(names, decoder)}
    return sizes | dict(patch_size=patch_size, img_size=img_size) | options


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # facebookresearch/mae's
    "mae_vit_base_patch16": _mae((768, 12, 12), (512, 8, 16), 16, 224),
    "mae_vit_large_patch16": _mae((1024, 24, 16), (512, 8, 16), 16, 224),
    "mae_vit_huge_patch14": _mae((1280, 32, 16), (512, 8, 16), 14, 224),
    # their encoders are those of vit_nano_patch4_28 and so on; decoders are about half as wide, and of two blocks
    "mae_nano_patch4_28": _mae((64, 6, 4), (48, 2, 4), 4, 28, in_chans=1),
    "mae_nano_patch4_32": _mae((96, 6, 3), (48, 2, 3), 4, 32, mlp_ratio=2.0),
    "mae_micro_patch4_32": _mae((128, 6, 4), (64, 2, 4), 4, 32),
    "mae_cifar_patch4_32": _mae((192, 9, 12), (96, 2, 6), 4, 32, mlp_ratio=2.0),
}
