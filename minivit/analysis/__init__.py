"""Looking inside networks."""

from minivit.analysis.attention_maps import attention_maps, class_attention
from minivit.analysis.memory import MemoryReport, training_memory

__all__ = ["MemoryReport", "attention_maps", "class_attention", "training_memory"]
