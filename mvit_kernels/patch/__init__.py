"""Putting the kernels into a model that exists, and taking them out again."""

from .apply import accelerate, accelerated, restore
from .explain import explain_model
from .report import Report

__all__ = ["Report", "accelerate", "accelerated", "explain_model", "restore"]
