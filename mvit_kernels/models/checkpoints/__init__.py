"""Checkpoint key maps among the libraries that have MViT; SlowFast's names are the hub."""

from .convert import Conversion, convert_state_dict, translate_state_dict

__all__ = ["Conversion", "convert_state_dict", "translate_state_dict"]
