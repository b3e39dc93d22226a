"""The published layers as the CUDA kernels meet them, for the tests of how a problem is divided."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from mvit_kernels import models
from mvit_kernels.models import LayerShape
from mvit_kernels.problem import Grid, Pool, touched_grid

LAYERS = [
    (f"{name} block {layer.block}", layer) for name in models.list_models() for layer in models.layer_shapes(name)
]

MULTIPROCESSORS = {"A100": 108, "H100": 132, "B200": 148, "RTX 5090": 170, "RTX 3060": 28}

LEAST_SHARED_BYTES = 99 << 10
"""Of a block on sm_86, sm_89 and sm_120; others have more."""

ATTENTION_KERNELS = [("bfloat16", False), ("float32", False), ("float32", True)]
"""dtype and TF32."""


def attention_sizes(layer: LayerShape, batch: int) -> tuple[int, int, int, int, int]:
    return batch, layer.heads, layer.num_q, layer.num_kv, layer.head_dim


def grid_of_rel_pos(layer: LayerShape) -> Grid:
    return layer.grid_kv if any(layer.table_rows) else (0, 0, 0)


def attention_plans(
    emulation: ModuleType, dtype: str, tf32: bool, batch: int, multiprocessors: int
) -> Iterator[tuple[str, LayerShape, dict[str, Any]]]:
    for where, layer in LAYERS:
        sizes, grid = attention_sizes(layer, batch), grid_of_rel_pos(layer)
        yield where, layer, emulation.attention_plan(dtype, tf32, sizes, grid, multiprocessors)


def branch(thw: Grid, pooling: Pool, **more: object) -> dict[str, Any]:
    """One branch for the emulation with addresses that nothing follows."""
    parameter = (256, "float32")
    return {
        **{"x": 256, "strides": (0, 0, 0), "out": 0, "thw": thw, "kernel": pooling.kernel, "mode": pooling.mode},
        **{"stride": pooling.stride, "padding": pooling.padding, "norm_eps": 1e-6, "per_head_weight": False},
        **{"weight": parameter, "norm_weight": parameter, "norm_bias": parameter},
        **more,
    }


def branches_of(layer: LayerShape) -> list[dict[str, Any]]:
    """q, k and v as the layer calls them: those of k and v on their touched tokens."""
    found = [branch(layer.grid, layer.pool_q)] if layer.pool_q is not None else []
    if layer.pool_kv is not None:
        touched = touched_grid(layer.pool_kv, layer.grid)
        found += [branch(touched.thw, touched.pool)] * 2
    return found


def pool_plan(emulation: ModuleType, batch: int, layer: LayerShape, dtype: str = "bfloat16") -> list[dict[str, Any]]:
    return emulation.pool3d_norm_plan(dtype, batch, layer.heads, layer.head_dim, layer.has_cls, branches_of(layer))
