"""The masked autoencoder to compare: the numbers that go in, and what minivit makes of them.

``ours()`` has the same names as the golden file ``mae.npz``, which ``mae.py`` makes with facebookresearch/mae and with
transformers. No PyTorch is needed here. Masks come from a given noise, and are rounded as the originals round.
"""

import numpy as np

from minivit import Tensor
from minivit.models.mae import MaskedAutoencoderViT
from minivit.nn import absolute_table
from minivit.random import generator
from tests.golden import cases

GRID, RATIO, BATCH, ENTRIES = 4, 0.7, 2, 32
_SMALL = dict(
    img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=4, mlp_ratio=2.0,
    decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
MODELS = {
    "facebookresearch": _SMALL,
    "facebookresearch_norm_pix": _SMALL | dict(norm_pix_loss=True),
    "transformers": _SMALL | dict(in_chans=2, norm_eps=1e-12),
    "transformers_norm_pix": _SMALL | dict(in_chans=2, norm_eps=1e-12, norm_pix_loss=True),
}
TABLES = {"table": 16, "table_wide": 48}  # widths of tables of positions
FIXED = {"pos_embed", "decoder_pos_embed"}  # not trained, and drawn like weights here, so that each place counts
NAMED = ("mae_vit_base_patch16", "mae_vit_large_patch16", "mae_vit_huge_patch14")
INIT = dict(
    img_size=16, patch_size=4, embed_dim=48, depth=1, num_heads=4, decoder_embed_dim=32, decoder_depth=1,
    decoder_num_heads=4,
)  # fmt: skip


def images(name: str) -> np.ndarray:
    """Images (B, C, H, W), in float64."""
    size = MODELS[name]["img_size"]
    return cases.images(name, (BATCH, MODELS[name].get("in_chans", 3), size, size))


def noise(name: str) -> np.ndarray:
    """The noise (B, N) that decides which patches stay."""
    return generator(0, "golden", name, "noise").random((BATCH, GRID * GRID))


def entries(case: str, name: str, gradient: np.ndarray) -> np.ndarray:
    """A gradient as it is stored: no more than ENTRIES of it, chosen by key."""
    if gradient.size <= ENTRIES:
        return gradient
    return gradient.ravel()[generator(0, "golden", case, "entries", name).choice(gradient.size, ENTRIES, replace=False)]


def build(name: str) -> MaskedAutoencoderViT:
    """minivit's network of a case, with the weights of both sides in float64."""
    model = MaskedAutoencoderViT(**MODELS[name], weight_init="skip").astype(np.float64)
    model.load_state_dict(cases.weights(name, {n: p.shape for n, p in model.named_parameters()}))
    return model


def run(name: str, model: MaskedAutoencoderViT) -> dict[str, np.ndarray]:
    """Loss, prediction, mask and the gradients of all trained parameters."""
    loss, pred, mask = model(Tensor(images(name)), RATIO, noise=noise(name), original_rounding=True)
    loss.backward()
    results = {f"{name}.loss": loss.numpy(), f"{name}.pred": pred.numpy(), f"{name}.mask": mask}
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return results | {f"{name}.{n}.grad": entries(name, n, gradient) for n, gradient in trained.items()}


def ours() -> dict[str, np.ndarray]:
    """minivit's results for all cases, computed in float64, and its tables of positions."""
    results = {name: absolute_table("sincos_mae", width, (GRID, GRID), 1)[0] for name, width in TABLES.items()}
    for name in MODELS:
        results |= run(name, build(name))
    return results


def differences() -> dict[str, float]:
    """As ``cases.differences`` has it."""
    return cases.differences("mae", ours())
