"""Models, and their named configurations."""

from minivit.models.deit import VisionTransformerDistilled
from minivit.models.mae import MaskedAutoencoderViT
from minivit.models.registry import create_model, list_models
from minivit.models.resnet import ResNet
from minivit.models.simmim import SimMIM
from minivit.models.vit import VisionTransformer

__all__ = [
    "MaskedAutoencoderViT", "ResNet", "SimMIM", "VisionTransformer", "VisionTransformerDistilled", "create_model",
    "list_models",
]  # fmt: skip
