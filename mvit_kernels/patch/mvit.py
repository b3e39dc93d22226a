"""The official image repository of MViTv2: facebookresearch/mvit, mvit/models/attention.py.

Its tables are not interpolated: a grid larger than the one they are stored for is an IndexError, as in the library.
Until August 2022 its residual included the cls row; layers of that age that have a cls token are left alone.
"""

from __future__ import annotations

from typing import Any

from ..description import MHPA
from . import layouts
from .adapter import adapts
from .slowfast import describe_layer


@adapts(layouts.tokens_and_grid("hw_shape", 2, list), "mvit.models.attention.MultiScaleAttention")
def describe(m: Any) -> MHPA:
    return describe_layer(m, table_t=None, residual="no_cls" if m.residual_pooling else "none", resized="")
