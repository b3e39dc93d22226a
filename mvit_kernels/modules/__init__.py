"""MViT's building blocks as modules: parameters, and a description of what to compute with them."""

from .attention import MultiHeadPoolingAttention
from .block import MultiScaleBlock
from .drop_path import DropPath
from .mlp import Mlp

__all__ = ["DropPath", "Mlp", "MultiHeadPoolingAttention", "MultiScaleBlock"]
