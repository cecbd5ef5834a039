"""Where a token is. Attention alone treats tokens as a set: without positions, a shuffled image gives the same answer.

Reading order: ``sinusoidal`` (fixed tables, added to the tokens; a Vision Transformer's own, learned table is a
Parameter ``pos_embed`` of the model), ``relative`` (what a position may do inside attention), ``bias_table``, ``t5``,
``shaw`` and ``rope`` (which do it), ``resize`` (learned tables for images of another size).
"""

from minivit.nn.position.bias_table import BiasTable
from minivit.nn.position.relative import Grid, RelativePosition
from minivit.nn.position.resize import resize_pos_embed, resize_rel_pos_bias_table
from minivit.nn.position.rope import AxialRope, MixedRope, mixed_frequencies
from minivit.nn.position.shaw import ShawPosition
from minivit.nn.position.sinusoidal import ABSOLUTE, absolute_table, sincos_1d, sincos_2d
from minivit.nn.position.t5 import T5Bias

__all__ = [
    "ABSOLUTE", "RELATIVE", "AxialRope", "BiasTable", "MixedRope", "RelativePosition", "ShawPosition", "T5Bias",
    "absolute_table", "mixed_frequencies", "relative_position", "resize_pos_embed", "resize_rel_pos_bias_table",
    "sincos_1d", "sincos_2d",
]  # fmt: skip

RELATIVE: dict[str, type[RelativePosition]] = {
    "rel_bias": BiasTable,
    "rel_shaw": ShawPosition,
    "rel_t5": T5Bias,
    "rope_axial": AxialRope,
    "rope_mixed": MixedRope,
}


def relative_position(name: str, grid: Grid, prefix_tokens: int, num_heads: int, head_dim: int) -> RelativePosition:
    """A relative position embedding by name, for one attention layer over ``prefix_tokens`` and a grid of patches.

    Raises ValueError for another name, and a head_dim that does not fit.

    >>> relative_position("rope_axial", grid=(2, 3), prefix_tokens=1, num_heads=2, head_dim=4)
    AxialRope(grid=(2, 3), prefix_tokens=1)
    """
    if name not in RELATIVE:
        raise ValueError(f"name must be one of {', '.join(RELATIVE)}, got {name!r}")
    return RELATIVE[name](grid, prefix_tokens, num_heads, head_dim)
