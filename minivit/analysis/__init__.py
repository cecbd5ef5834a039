"""Looking inside networks."""

from minivit.analysis.attention_maps import attention_maps, class_attention
from minivit.analysis.cka import CKAResult, cka
from minivit.analysis.features import collect_features, read_features
from minivit.analysis.few_shot import few_shot, few_shot_layers
from minivit.analysis.filters import patch_filters
from minivit.analysis.memory import MemoryReport, training_memory
from minivit.analysis.relevance import relevance
from minivit.analysis.rollout import class_rollout, rollout
from minivit.analysis.shape_bias import error_consistency, shape_bias

__all__ = [
    "CKAResult", "MemoryReport", "attention_maps", "cka", "class_attention", "class_rollout", "collect_features",
    "error_consistency", "few_shot", "few_shot_layers", "patch_filters", "read_features", "relevance", "rollout",
    "shape_bias", "training_memory",
]  # fmt: skip
