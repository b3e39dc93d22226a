"""Fused kernels for Multiscale Vision Transformers, put into the models people already have.

import mvit_kernels
report = mvit_kernels.accelerate(model)
print(report)
mvit_kernels.restore(model)
"""

from . import models, ops
from .backends import UnsupportedError, explain, use_backend
from .patch import Report, accelerate, accelerated, explain_model, restore
from .query_pooling import use_query_pooling

__version__ = "0.1.0"

__all__ = [
    "Report",
    "UnsupportedError",
    "accelerate",
    "accelerated",
    "explain",
    "explain_model",
    "models",
    "ops",
    "restore",
    "use_backend",
    "use_query_pooling",
]
