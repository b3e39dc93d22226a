"""Putting the kernels into a model that exists, and taking them out again."""

from .adapter import SCOPES
from .apply import accelerate, accelerated, restore
from .explain import explain_model
from .report import Report

__all__ = ["SCOPES", "Report", "accelerate", "accelerated", "explain_model", "restore"]
