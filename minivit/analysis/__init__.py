"""Looking inside trained networks."""

from minivit.analysis.attention_maps import attention_maps, class_attention

__all__ = ["attention_maps", "class_attention"]
