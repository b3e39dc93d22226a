"""Where a layer's q is pooled: by an op of its own with k and v, or by the attention kernel as it begins.

The second keeps pooled q, and its rows of relative position, out of memory. It needs a backend with such a kernel, and
is for inference. Everything else about a layer is the same either way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from . import backends
from .description import MHPA, Fused, PoolNorm
from .problem import AttentionProblem, Grid, PooledQueryProblem, PoolProblem, tokens
from .projection import compute_dtype

ENVIRONMENT_VARIABLE = "MVIT_KERNELS_QUERY_POOLING"
WAYS = ("auto", "fused", "separate")

NOT_IN_IT = "q is pooled before attention, not in it: "

_FROM_ENVIRONMENT = os.environ.get(ENVIRONMENT_VARIABLE) or None
_chosen: ContextVar[str | None] = ContextVar("mvit_kernels_query_pooling", default=None)


@contextmanager
def use_query_pooling(way: str) -> Iterator[None]:
    """Choose where q is pooled in every layer that runs inside the `with`.

    Overrides the environment variable MVIT_KERNELS_QUERY_POOLING, which does the same for a whole process.

    Args:
        way: "fused": inside the attention kernel wherever there is one for it. "separate": by an op of its own. "auto",
            the default: fused where a model of the backend says that it pays (mvit_kernels/backends/
            query_pooling_model.py). `explain_model` shows what was taken and why.
    Raises:
        ValueError: another way.
    """
    token = _chosen.set(_checked(way))
    try:
        yield
    finally:
        _chosen.reset(token)


def _checked(way: str) -> str:
    if way not in WAYS:
        raise ValueError(f"query pooling {way!r} is not known: one of {', '.join(WAYS)}")
    return way


def pool_of_attention(layer: MHPA, x: Tensor, grid: Grid) -> PoolNorm | None:
    """The pooling of q that the attention kernel is to do; None where q is not pooled, or by an op of its own.

    Args:
        x: (B, N, C), the layer's input on `grid`.
    """
    way = _chosen.get() or _checked(_FROM_ENVIRONMENT or "auto")
    if way == "separate" or not isinstance(layer.pool_q, PoolNorm) or not _pools_right_before_attention(layer):
        return None
    if way == "auto" and not backends.pools_queries(x.device.type):
        return None
    problem = _problem(layer, layer.pool_q, x, grid)
    backend = backends.peek(problem.attention)
    if backend is None or not backend.pools_queries:
        if way == "fused":
            backends.remark(f"{NOT_IN_IT}no kernel for it on {'any backend' if backend is None else backend.name}")
        return None
    reasons = backend.reasons(problem) or (list(backend.reasons_to_pool_before(problem)) if way == "auto" else [])
    if reasons:
        backends.remark(NOT_IN_IT + "; ".join(reasons))
    return None if reasons else layer.pool_q


def _pools_right_before_attention(layer: MHPA) -> bool:
    return not layer.pool_first and layer.windows is None and not layer.host_pooling


def _problem(layer: MHPA, pool_q: PoolNorm, x: Tensor, grid: Grid) -> PooledQueryProblem:
    device, dtype, batch = x.device.type, compute_dtype(x), x.shape[0]
    head_dim = layer.weight.shape[0] // (3 if isinstance(layer.qkv, Fused) else 1) // layer.heads
    grid_k = layer.pool_k.pool.out_grid(grid) if isinstance(layer.pool_k, PoolNorm) else grid
    tables = () if layer.rel_pos is None else (layer.rel_pos.t, layer.rel_pos.h, layer.rel_pos.w)
    rel_pos = any(table is not None for table in tables)
    norms = [
        tensor
        for branch in layer.pools
        if isinstance(branch, PoolNorm)
        for tensor in (branch.weight, branch.norm_weight, branch.norm_bias)
    ]
    needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *layer.qkv.parameters(), *norms, *tables)
    )
    sizes = (device, dtype, batch, layer.heads, head_dim)
    return PooledQueryProblem(
        PoolProblem(*sizes, grid, layer.has_cls, pool_q.pool, pool_q.norm_eps is not None, needs_grad),
        AttentionProblem(
            *sizes,
            num_q=int(layer.has_cls) + tokens(pool_q.pool.out_grid(grid)),
            num_k=int(layer.has_cls) + tokens(grid_k),
            rel_pos=rel_pos,
            has_cls=layer.has_cls,
            residual=layer.residual,
            needs_grad=needs_grad,
            rel_pos_entries=sum(grid_k) if rel_pos else 0,
        ),
    )
