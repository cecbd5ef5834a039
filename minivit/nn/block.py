"""The encoder block: tokens talk to one another, then each thinks for itself; both steps add to what was there."""

from minivit.autograd import Tensor
from minivit.nn.attention import Attention, RelativePositions
from minivit.nn.dropout import DropPath
from minivit.nn.lsa import LocalitySelfAttention
from minivit.nn.mlp import Mlp
from minivit.nn.module import Module
from minivit.nn.normalization import Identity, LayerNorm, LayerScale
from minivit.nn.rela import RectifiedAttention

ATTENTION = {"softmax": Attention, "rela": RectifiedAttention, "lsa": LocalitySelfAttention}


class Block(Module):
    """z′ = z + MSA(LN(z)),  z″ = z′ + MLP(LN(z′)): (B, N, dim) → (B, N, dim).

    Dosovitskiy et al., 2020 (arXiv:2010.11929), eq. 2 and 3: pre-norm, the residual stream itself is never normalised.
    Each branch may be weighted by LayerScale (``init_values``) and skipped at random (``drop_path``). ``attn_layer`` is
    the kind of attention: "softmax", "rela" or "lsa"; ``rel_pos`` and ``head_dim`` are those of ``Attention``. Raises
    ValueError for another kind.

    With ``keep`` only the first so many tokens are computed, (B, keep, dim); the others give keys and values, no more.

    >>> Block(dim=8, num_heads=2)(Tensor(np.ones((1, 5, 8), np.float32))).shape
    (1, 5, 8)
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, qkv_bias: bool = True, qk_norm: bool = False,
        proj_drop: float = 0.0, attn_drop: float = 0.0, init_values: float | None = None, drop_path: float = 0.0,
        norm_eps: float = 1e-6, act: str = "gelu", attn_layer: str = "softmax",
        rel_pos: RelativePositions | None = None, head_dim: int | None = None,
    ):  # fmt: skip
        if attn_layer not in ATTENTION:
            raise ValueError(f"attn_layer must be one of {', '.join(ATTENTION)}, got {attn_layer!r}")
        self.norm1 = LayerNorm(dim, norm_eps)
        self.attn = ATTENTION[attn_layer](
            dim, num_heads, qkv_bias, qk_norm, attn_drop, proj_drop, norm_eps=norm_eps, rel_pos=rel_pos,
            head_dim=head_dim,
        )  # fmt: skip
        self.ls1 = LayerScale(dim, init_values) if init_values else Identity()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act, proj_drop)
        self.ls2 = LayerScale(dim, init_values) if init_values else Identity()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, z: Tensor, keep: int | None = None) -> Tensor:
        y = self.attn(self.norm1(z), queries=keep)
        y, z = self.norm2.of_sum(z if keep is None else z[:, :keep], self.drop_path1(self.ls1(y)))  # LN(z′) and z′
        return z + self.drop_path2(self.ls2(self.mlp(y)))
