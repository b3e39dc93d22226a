"""The reference PyTorch MViT v1 / v2 (video and image), its published configurations and checkpoint key maps."""

from .config import BlockConfig, MViTConfig
from .keys import convert_state_dict
from .mvit import MViT
from .registry import create, list_models, model_config
from .shapes import LayerShape, layer_shapes
from .torchvision import from_torchvision

__all__ = [
    "BlockConfig",
    "LayerShape",
    "MViT",
    "MViTConfig",
    "convert_state_dict",
    "create",
    "from_torchvision",
    "layer_shapes",
    "list_models",
    "model_config",
]
