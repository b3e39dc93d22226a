"""The reference PyTorch MViT v1 / v2 (video and image), its published configurations and checkpoint key maps."""

from .checkpoints import Conversion, convert_state_dict, translate_state_dict
from .config import BlockConfig, MViTConfig
from .mvit import MViT
from .registry import create, list_models, model_config
from .shapes import LayerShape, layer_shapes
from .torchvision import from_torchvision

__all__ = [
    "BlockConfig",
    "Conversion",
    "LayerShape",
    "MViT",
    "MViTConfig",
    "convert_state_dict",
    "create",
    "from_torchvision",
    "layer_shapes",
    "list_models",
    "model_config",
    "translate_state_dict",
]
