"""Models, and their named configurations."""

from minivit.models.registry import create_model, list_models
from minivit.models.vit import VisionTransformer

__all__ = ["VisionTransformer", "create_model", "list_models"]
