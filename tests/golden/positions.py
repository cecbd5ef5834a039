"""The position embeddings of timm, transformers and PyTorch: the arrays of ``positions.npz``.

Needs torch, timm and transformers; only ``make_golden.py`` imports this file. Each array has the name of minivit's own
in ``position_cases.py``, and is computed from the same numbers.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.golden import position_cases as cases
from tests.golden import reference  # noqa: F401  (makes timm importable)

from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingMixed, apply_rot_embed_cat, build_sincos2d_pos_embed  # isort: skip
from timm.layers.pos_embed_rel import RelPosBias, resize_rel_pos_bias_table_simple  # isort: skip
from transformers.models.t5.modeling_t5 import T5Attention  # isort: skip
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding  # isort: skip

Arrays = dict[str, np.ndarray]


def golden_positions() -> Arrays:
    """Values, and gradients where something is learned; float64 where the reference computes in it."""
    return {
        "sincos_mae": masked_autoencoder(),
        "sincos_timm": build_sincos2d_pos_embed(list(cases.GRID), cases.WIDTH).numpy(),
        **relative_bias("rel_bias", prefix=1),
        **relative_bias("rel_bias_no_prefix", prefix=0),
        **t5(),
        **axial(),
        **mixed(),
        **mixed_in_float64(),
        **resized(),
    }


def masked_autoencoder() -> np.ndarray:
    """transformers' function, and then its halves exchanged, as transformers does for this model."""
    table = build_2d_sinusoidal_position_embedding(cases.SQUARE, cases.SQUARE, cases.WIDTH, cls_token=True)
    return table.roll(cases.WIDTH // 2, dims=-1).numpy()


def tensor(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(cases.numbers(name, *shape))


def relative_bias(name: str, prefix: int) -> Arrays:
    layer = RelPosBias(cases.GRID, cases.HEADS, prefix).double()
    table = layer.relative_position_bias_table
    with torch.no_grad():
        table.copy_(tensor(f"{name} table", *table.shape))
    bias = layer.get_bias()[0]
    bias.backward(tensor(f"{name} cotangent", *bias.shape))
    return {name: bias.detach().numpy(), f"{name}.grad": table.grad.numpy()}


def t5() -> Arrays:
    distances = torch.arange(-cases.FAR, cases.FAR + 1)
    table = nn.Parameter(tensor("rel_t5 table", 32, cases.HEADS))
    place = torch.arange(cases.LONG)
    bias = table[T5Attention._relative_position_bucket(place - place[:, None])].permute(2, 0, 1)  # key - query
    bias.backward(tensor("rel_t5 cotangent", *bias.shape))
    buckets = T5Attention._relative_position_bucket(distances)
    return {"t5_buckets": buckets.numpy(), "rel_t5": bias.detach().numpy(), "rel_t5.grad": table.grad.numpy()}


def axial() -> Arrays:
    """timm's, set up like rope-vit: column first, θ = 100, places counted from 0; the first token is not turned.

    Angles are computed in float32, here and in ``mixed``.
    """
    rope = RotaryEmbeddingCat(
        cases.HEAD, temperature=100, in_pixels=False, feat_shape=list(cases.GRID), grid_indexing="xy"
    )
    return in_float32(turned("rope_axial", rope.get_embed().double(), ()))


def mixed() -> Arrays:
    """timm's, with one layer."""
    rope = RotaryEmbeddingMixed(cases.HEADS * cases.HEAD, 1, cases.HEADS, feat_shape=list(cases.GRID))
    with torch.no_grad():
        rope.freqs.copy_(tensor("freqs", 2, cases.HEADS, cases.HEAD // 2)[:, None])
    arrays = turned("rope_mixed.float32", rope.get_embed()[0].double(), (rope.freqs,))
    arrays["rope_mixed.float32.freqs.grad"] = arrays["rope_mixed.float32.freqs.grad"][:, 0]
    return in_float32(arrays)


def in_float32(arrays: Arrays) -> Arrays:
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def mixed_in_float64() -> Arrays:
    """The product with e^(i(x ω_x + y ω_y)), in complex numbers."""
    freqs = nn.Parameter(tensor("freqs", 2, cases.HEADS, cases.HEAD // 2))
    y, x = torch.meshgrid(*(torch.arange(n).double() for n in cases.GRID), indexing="ij")
    angles = x.reshape(-1, 1) * freqs[0][:, None] + y.reshape(-1, 1) * freqs[1][:, None]  # (H, N, d/2)
    q = tensor("q", *cases.Q_SHAPE).requires_grad_()
    pairs = torch.view_as_complex(q[:, :, 1:].unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    out = torch.cat([q[:, :, :1], torch.view_as_real(pairs).flatten(-2)], 2)
    return with_gradients("rope_mixed", out, q, (freqs,))


def turned(name: str, embed: torch.Tensor, parameters: tuple) -> Arrays:
    q = tensor("q", *cases.Q_SHAPE).requires_grad_()
    out = torch.cat([q[:, :, :1], apply_rot_embed_cat(q[:, :, 1:], embed)], 2)
    return with_gradients(name, out, q, parameters)


def with_gradients(name: str, out: torch.Tensor, q: torch.Tensor, parameters: tuple) -> Arrays:
    out.backward(tensor("q cotangent", *cases.Q_SHAPE))
    gradients = {f"{name}.freqs.grad": p.grad.numpy() for p in parameters}
    return {name: out.detach().numpy(), f"{name}.grad": q.grad.numpy()} | gradients


def resized() -> Arrays:
    """Images by ``torch.nn.functional.interpolate``, bias tables by timm, which does not antialias them."""
    results = {}
    for name, (old, new, antialias) in cases.RESIZES.items():
        image = tensor(f"{name} image", *old, cases.WIDTH).permute(2, 0, 1)[None]
        image = F.interpolate(image, size=new, mode="bicubic", align_corners=False, antialias=antialias)
        results[name] = image[0].permute(1, 2, 0).numpy()
    (old, new), heads = cases.BIAS_RESIZE, cases.HEADS
    table = tensor("bias_resize table", cases.bias_rows(old), heads)
    results["bias_resize"] = resize_rel_pos_bias_table_simple(table, new, (cases.bias_rows(new), heads)).numpy()
    return results
