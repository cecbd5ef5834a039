"""The same masked autoencoder in PyTorch, with the same parameter names, for minivit to be compared with."""

import numpy as np
import torch
from torch import nn
from torch_vit import TorchBlock

from minivit.models import MaskedAutoencoderViT
from minivit.models.masking import num_kept
from minivit.optim import weight_decay_groups
from minivit.training import available_cores


class TorchMAE(nn.Module):
    """A copy of a minivit MaskedAutoencoderViT, with random masks as facebookresearch/mae draws them."""

    def __init__(self, model: MaskedAutoencoderViT):
        super().__init__()
        state = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
        width, channels, height, breadth = state["patch_embed.proj.weight"].shape
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, width, (height, breadth), (height, breadth))})
        for name in ("cls_token", "pos_embed", "mask_token", "decoder_pos_embed"):
            trained = name.endswith("token")
            setattr(self, name, nn.Parameter(torch.empty(state[name].shape), requires_grad=trained))
        self.blocks, self.norm = stack(model.blocks, width, model.norm.eps)
        narrow = len(state["decoder_embed.bias"])
        self.decoder_embed = nn.Linear(width, narrow)
        self.decoder_blocks, self.decoder_norm = stack(model.decoder_blocks, narrow, model.norm.eps)
        self.decoder_pred = nn.Linear(narrow, len(state["decoder_pred.bias"]))
        self.norm_pix_loss = model.norm_pix_loss
        self.load_state_dict(state)

    def forward(self, images: torch.Tensor, noise: torch.Tensor, mask_ratio: float = 0.75) -> torch.Tensor:
        """The loss. ``noise`` (B, N): of each image the patches of the lowest stay visible."""
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]  # (B, N, D)
        batch, tokens, width = x.shape
        keep = num_kept(tokens, mask_ratio)
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        visible = x.gather(1, shuffle[:, :keep, None].expand(-1, -1, width))
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        z = self.decoder_embed(self.norm(self.blocks(torch.cat([cls, visible], dim=1))))
        gaps = self.mask_token.expand(batch, tokens - keep, -1)
        patches = torch.cat([z[:, 1:], gaps], dim=1).gather(1, restore[:, :, None].expand(-1, -1, z.shape[2]))
        z = torch.cat([z[:, :1], patches], dim=1) + self.decoder_pos_embed
        pred = self.decoder_pred(self.decoder_norm(self.decoder_blocks(z)))[:, 1:]
        losses = (pred - self.target(images)).square().mean(dim=2)  # (B, N)
        mask = (restore >= keep).float()
        return (losses * mask).sum() / mask.sum()

    def target(self, images: torch.Tensor) -> torch.Tensor:
        size = self.patch_embed["proj"].kernel_size
        patches = images.unfold(2, size[0], size[0]).unfold(3, size[1], size[1])  # (B, C, rows, columns, P, Q)
        patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        if not self.norm_pix_loss:
            return patches
        return (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()


def stack(blocks: list, width: int, eps: float) -> tuple[nn.Sequential, nn.LayerNorm]:
    """Blocks like those of minivit, and the norm that follows them."""
    made = [TorchBlock(width, block.attn.num_heads, len(block.mlp.fc1.bias), eps) for block in blocks]
    return nn.Sequential(*made), nn.LayerNorm(width, eps)


class TorchPretraining:
    """Forward, backward and AdamW on a batch, on all cores that this process may use."""

    def __init__(self, model: MaskedAutoencoderViT, compiled: bool = False):
        torch.set_num_threads(available_cores())
        self.model = TorchMAE(model)
        own = dict(self.model.named_parameters())
        groups = [
            group | {"params": [own[name] for name, p in group["params"] if p.requires_grad]}
            for group in weight_decay_groups(model, weight_decay=0.05)
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
        self.forward = torch.compile(self.model) if compiled else self.model

    def training(self, images: np.ndarray, noise: np.ndarray | None = None) -> float:
        """One step; without ``noise`` a new mask is drawn. Returns the loss."""
        x = torch.from_numpy(images)
        drawn = torch.rand(len(x), self.model.pos_embed.shape[1] - 1) if noise is None else torch.from_numpy(noise)
        self.optimizer.zero_grad()
        loss = self.forward(x, drawn)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def gradients(self) -> dict[str, np.ndarray]:
        """Of the last step, by parameter name."""
        return {name: p.grad.numpy() for name, p in self.model.named_parameters() if p.requires_grad}
