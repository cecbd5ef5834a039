"""The Vision Transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, arXiv:2010.11929).

    image ──PatchEmbed──▶ N tokens ──+ class token, + positions──▶ z_0
    z_l = Block(z_{l−1}),  l = 1 … depth
    logits = head(pool(LN(z_depth)))

Arguments and parameter names are timm's, so a timm state dict loads as it is.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from minivit import ops
from minivit.autograd import Parameter, Tensor
from minivit.backend import to_device
from minivit.nn import (
    Block,
    Dropout,
    Identity,
    LayerNorm,
    Linear,
    Module,
    PatchEmbed,
    ShiftedPatchEmbed,
    checkpoint,
    init,
    prepend_tokens,
)
from minivit.nn.position import ABSOLUTE, RELATIVE, absolute_table, relative_position, resize_pos_embed

POOLS = ("token", "avg", "avgmax", "max", "")
POOL_ALIASES = {"cls": "token", "gap": "avg"}
POSITIONS = ("learn", "none", *ABSOLUTE, *RELATIVE)
EMBEDDINGS = {"patch": PatchEmbed, "spt": ShiftedPatchEmbed}


class VisionTransformer(Module):
    """Images (B, in_chans, H, W) → logits (B, num_classes).

    - ``img_size``, ``patch_size``: numbers, or pairs (height, width); ``in_chans`` any number of channels.
    - ``embed_dim`` D, ``depth`` blocks, ``num_heads`` H, ``mlp_ratio`` hidden width over D, ``qkv_bias``, ``qk_norm``,
      ``act`` ("gelu", "gelu_tanh", "relu"), ``norm_eps``; ``attn_layer`` "softmax", "rela" or "lsa". ``head_dim`` is
      D / H unless given; with it, ``num_heads`` may be a list, of one number for each block.
    - ``embed_layer`` "patch", or "spt" for shifted patches; ``class_token``, ``reg_tokens`` how many registers.
    - ``pos_embed``: where a token is. "learn" a table that is learned, "none"; fixed tables "sincos_1d", "sincos_mae",
      "sincos_simple", "sincos_timm"; in every attention layer "rel_bias", "rel_shaw", "rel_t5", "rope_axial",
      "rope_mixed": see ``nn/position``. With ``no_embed_class`` a table is added before the class and register tokens
      are put in front, so those have no place.
    - ``global_pool``: what the head reads. "token" (or "cls") the class token; "avg" (or "gap"), "max", "avgmax" pool
      the patch tokens, which are then normalised (``fc_norm``, on by default there) instead of normalising before
      pooling (``norm``); "" gives the head all tokens. ``final_norm=False`` leaves both norms out, ``pre_norm`` adds
      one in front.
    - ``init_values``: LayerScale's start, None for no LayerScale. ``drop_rate`` before the head, ``pos_drop_rate``
      after the positions, ``proj_drop_rate`` after projections and in the MLP, ``attn_drop_rate`` on attention
      weights; ``drop_path_rate`` grows linearly from 0 in the first block to this in the last.
    - ``num_classes=0`` leaves the head out. ``weight_init`` a preset of ``nn.init``, drawn from ``seed``.

    Raises ValueError for arguments that do not go together.

    >>> from minivit.models import VisionTransformer
    >>> model = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=10)
    >>> model(np.zeros((5, 3, 32, 32), np.float32)).shape
    (5, 10)
    """

    def __init__(
        self, img_size: int | tuple[int, int] = 224, patch_size: int | tuple[int, int] = 16, in_chans: int = 3,
        num_classes: int = 1000, global_pool: str = "token", embed_dim: int = 768, depth: int = 12,
        num_heads: int | Sequence[int] = 12, mlp_ratio: float = 4.0, qkv_bias: bool = True, qk_norm: bool = False,
        init_values: float | None = None, class_token: bool = True, pos_embed: str = "learn",
        no_embed_class: bool = False, reg_tokens: int = 0, pre_norm: bool = False, final_norm: bool = True,
        fc_norm: bool | None = None, drop_rate: float = 0.0, pos_drop_rate: float = 0.0, proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0, drop_path_rate: float = 0.0, weight_init: str = "timm", norm_eps: float = 1e-6,
        act: str = "gelu", seed: int = 0,
        attn_layer: str = "softmax", embed_layer: str = "patch", head_dim: int | None = None,
    ):  # fmt: skip
        global_pool = POOL_ALIASES.get(global_pool, global_pool)
        if global_pool not in POOLS:
            raise ValueError(f"global_pool must be one of {(*POOLS, *POOL_ALIASES)}, got {global_pool!r}")
        if global_pool == "token" and not class_token:
            raise ValueError('global_pool "token" reads the class token, but class_token is False: use "avg"')
        if pos_embed not in POSITIONS:
            raise ValueError(f"pos_embed must be one of {', '.join(POSITIONS)}, got {pos_embed!r}")
        if embed_layer not in EMBEDDINGS:
            raise ValueError(f"embed_layer must be one of {', '.join(EMBEDDINGS)}, got {embed_layer!r}")
        heads = [num_heads] * depth if isinstance(num_heads, int) else list(num_heads)
        if len(heads) != depth or (head_dim is None and not isinstance(num_heads, int)):
            raise ValueError(
                f"num_heads as a list needs a number for each of the {depth} blocks, and head_dim: "
                f"got {num_heads} and head_dim={head_dim}"
            )
        self.global_pool = global_pool
        self.no_embed_class = no_embed_class
        self.grad_checkpointing = False
        self.position = pos_embed
        use_fc_norm = global_pool in ("avg", "avgmax", "max") if fc_norm is None else fc_norm
        with init.deferred():
            self.patch_embed = EMBEDDINGS[embed_layer](img_size, patch_size, in_chans, embed_dim, bias=not pre_norm)
            grid = self.patch_embed.grid_size
            self.cls_token = Parameter(np.zeros((1, 1, embed_dim), np.float32)) if class_token else None
            self.reg_token = Parameter(np.zeros((1, reg_tokens, embed_dim), np.float32)) if reg_tokens else None
            self.num_prefix_tokens = sum(token.shape[1] for token in self.prefix_tokens)
            places = self.num_placed + self.patch_embed.num_patches
            self.pos_embed = Parameter(np.zeros((1, places, embed_dim), np.float32)) if pos_embed == "learn" else None
            if pos_embed in ABSOLUTE:
                table = absolute_table(pos_embed, embed_dim, grid, self.num_placed)
                self.pos_embed = Parameter(table, requires_grad=False)
            rel_pos = partial(relative_position, pos_embed, grid, self.num_prefix_tokens)
            rel_pos = rel_pos if pos_embed in RELATIVE else None
            self.pos_drop = Dropout(pos_drop_rate)
            self.norm_pre = LayerNorm(embed_dim, norm_eps) if pre_norm else Identity()
            self.blocks = [
                Block(
                    embed_dim, heads[i], mlp_ratio, qkv_bias, qk_norm, proj_drop_rate, attn_drop_rate, init_values,
                    drop_path_rate * i / max(depth - 1, 1), norm_eps, act, attn_layer, rel_pos, head_dim,
                )
                for i in range(depth)
            ]  # fmt: skip
            self.norm = LayerNorm(embed_dim, norm_eps) if final_norm and not use_fc_norm else Identity()
            self.fc_norm = LayerNorm(embed_dim, norm_eps) if final_norm and use_fc_norm else Identity()
            self.head_drop = Dropout(drop_rate)
            self.head = Linear(embed_dim, num_classes) if num_classes else Identity()
        init.init_weights(self, weight_init, seed)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images, keep=1 if self.global_pool == "token" else None))

    def forward_features(self, images: Tensor, keep: int | None = None) -> Tensor:
        """The encoder: images (B, C, H, W) → all tokens (B, prefix + N, D), normalised by ``norm``.

        With ``keep`` the last block computes only the first so many tokens: (B, keep, D), the same numbers.
        """
        z = self.norm_pre(self.pos_drop(self.embed_positions(self.patch_embed(images))))
        keeps = [None] * (len(self.blocks) - 1) + [keep]
        for block, kept in zip(self.blocks, keeps):
            z = checkpoint(block, z, keep=kept) if self.grad_checkpointing and self.training else block(z, keep=kept)
        return self.norm(z if keep is None else z[:, :keep])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """While training, let blocks keep only their inputs, and compute the rest again on the way back.

        See ``nn/recompute.py``. Outputs and gradients stay the same to the last bit.

        >>> model = VisionTransformer(32, 8, embed_dim=24, depth=2, num_heads=3)
        >>> model.set_grad_checkpointing()
        >>> y = model(np.zeros((1, 3, 32, 32), np.float32)).sum()
        """
        self.grad_checkpointing = enable

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """From now on take images of another size: what was learned about places is carried over to the new grid.

        A learned table is resampled (bicubic, antialiased), a fixed one made anew; relative positions are as each kind
        says. Parameters that depend on the size are new ones, so make an optimizer afterwards.
        Raises ValueError where patches do not divide the size.

        >>> model = VisionTransformer(32, 8, embed_dim=24, depth=2, num_heads=3, num_classes=10)
        >>> model.set_input_size((48, 40))
        >>> model(np.zeros((5, 3, 48, 40), np.float32)).shape
        (5, 10)
        """
        old = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size)
        grid = self.patch_embed.grid_size
        if self.pos_embed is not None:
            learned = self.position == "learn"
            if learned:
                table = resize_pos_embed(to_device(self.pos_embed.data, "cpu"), old, grid, self.num_placed)
            else:
                table = absolute_table(self.position, self.pos_embed.shape[-1], grid, self.num_placed)
            table = to_device(table.astype(self.pos_embed.dtype, copy=False), self.pos_embed.device)
            self.pos_embed = Parameter(table, requires_grad=learned)
        for block in self.blocks:
            if block.attn.rel_pos is not None:
                block.attn.rel_pos = block.attn.rel_pos.resized(grid)

    @property
    def prefix_tokens(self) -> list[Parameter]:
        """The tokens in front of the patches, from first to last: class token, registers."""
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

    @property
    def num_placed(self) -> int:
        """How many prefix tokens have a row in the table of positions."""
        return 0 if self.no_embed_class else self.num_prefix_tokens

    def embed_positions(self, x: Tensor) -> Tensor:
        """Patch tokens (B, N, D) → (B, prefix + N, D): class token, registers, patches, plus their positions."""
        if self.pos_embed is None:
            return prepend_tokens(x, *self.prefix_tokens)
        if self.no_embed_class:
            return prepend_tokens(x + self.pos_embed, *self.prefix_tokens)
        return prepend_tokens(x, *self.prefix_tokens) + self.pos_embed

    def forward_head(self, z: Tensor) -> Tensor:
        """Tokens (B, prefix + N, D) → logits (B, num_classes)."""
        return self.head(self.head_drop(self.fc_norm(self.pool(z))))

    def pool(self, z: Tensor) -> Tensor:
        """Tokens (B, prefix + N, D) → what the head reads, (B, D), or all of them for ``global_pool=""``."""
        if self.global_pool == "":
            return z
        if self.global_pool == "token":
            return z[:, 0]
        patches = z[:, self.num_prefix_tokens :]
        if self.global_pool == "avg":
            return patches.mean(axis=1)
        largest = ops.amax(patches, axis=1)
        return largest if self.global_pool == "max" else (patches.mean(axis=1) + largest) * 0.5
