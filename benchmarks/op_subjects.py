"""The ops of one block, on random tensors of its shapes: as upstream writes them, and `mvit_kernels.ops`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import baselines
import torch
import torch.nn.functional as F
import work
from cases import KERNELS, Case
from own_kernels import must_run_here, on_backend
from subject import Computation, Forward, Subject
from torch import Tensor

from mvit_kernels import ops
from mvit_kernels.description import PoolNorm
from mvit_kernels.models import LayerShape
from mvit_kernels.problem import Grid

Op = Callable[..., list[Tensor]]
"""The op's tensors -> its outputs."""
EPS = 1e-6


def build(case: Case, batch: int, device: torch.device) -> Subject:
    shape, dtype = case.shape, getattr(torch, case.dtype)
    made = {
        "pooling_attention": _attention,
        "qkv_pool3d_norm": _pooling,
        "decomposed_rel_pos": _rel_pos,
        "layer_norm": _layer_norm,
        "norm_mlp": _norm_mlp,
    }.get(case.op, partial(_linear, case.op))(shape, batch)
    return _subject(case, dtype, device, *made)


def keys(case: Case, batch: int, device: torch.device) -> Subject:
    """Attention of 6272 queries of one head of 96 channels over a growing number of keys, without relative position."""
    n = case.value
    inputs = [_random(i, batch, 1, count, 96) for i, count in enumerate((6272, n, n))]
    counted = work.attention(6272.0 * n, 6272, n, 1, 96, 0, batch)
    upstream, ours = _attend_upstream((1, 1, n), 0, "none"), _attend_ours((1, 1, n), False, "none")
    return _subject(case, torch.float32, device, inputs, upstream, ours, counted)


def _subject(
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    inputs: list[Tensor],
    upstream: dict[str, Op],
    ours: Op,
    counted: work.Counted,
) -> Subject:
    # Relative-position rows stay float32, as the ops make them.
    wide = {3} if case.op == "pooling_attention" else set()
    leaves = [t.to(device, torch.float32 if i in wide else dtype).requires_grad_() for i, t in enumerate(inputs)]
    with torch.no_grad():
        generator = torch.Generator().manual_seed(99)
        shapes = [out.shape for out in upstream["eager"](*leaves)]
    directions = [torch.randn(s, generator=generator).to(device, dtype) for s in shapes]

    def exact() -> Computation:
        exact = [t.detach().double().requires_grad_() for t in leaves]
        return Computation(partial(upstream["eager"], *exact), exact, [d.double() for d in directions])

    def kernels(name: str) -> Forward:
        must_run_here(name)
        return on_backend(name, partial(ours, *leaves))

    makers: dict[str, Callable[[], Forward]] = {
        name: lambda op=op: partial(op, *leaves) for name, op in upstream.items()
    }
    for name in ("reference", *KERNELS):
        makers[name] = partial(kernels, name)
    return Subject(makers, leaves, directions, exact, counted(leaves[0].element_size()), device=device)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Made = tuple[list[Tensor], dict[str, Op], Op, "work.Counted"]


def _attention(s: LayerShape, batch: int) -> Made:
    inputs = [_random(i, batch, s.heads, n, s.head_dim) for i, n in enumerate((s.num_q, s.num_kv, s.num_kv))]
    if any(s.table_rows):
        inputs.append(_random(3, batch, s.heads, s.num_q, sum(s.grid_kv)))
    cls = int(s.has_cls)
    columns = sum(s.grid_kv) if any(s.table_rows) else 0
    counted = work.attention(s.scores, s.num_q, s.num_kv, s.heads, s.head_dim, columns, batch)
    return inputs, _attend_upstream(s.grid_kv, cls, s.residual), _attend_ours(s.grid_kv, s.has_cls, s.residual), counted


def _attend_upstream(grid_k: Grid, cls: int, residual: str) -> dict[str, Op]:
    def attend(name: str, q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None = None) -> list[Tensor]:
        rows = None if rows is None else rows[:, :, cls:].to(q.dtype)
        out = baselines.ATTEND[name](q, k, v, q.shape[-1] ** -0.5, rows, grid_k, cls)
        return [baselines.add_residual(out, q, residual, cls).transpose(1, 2).flatten(2)]

    return {name: partial(attend, name) for name in baselines.ATTEND}


def _attend_ours(grid_k: Grid, has_cls: bool, residual: str) -> Op:
    def ours(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None = None) -> list[Tensor]:
        grid = None if rows is None else grid_k
        out = ops.pooling_attention(q, k, v, rel_pos=rows, grid_k=grid, has_cls=has_cls, residual=residual)
        return [out.flatten(2)]

    return ours


def _pooling(s: LayerShape, batch: int) -> Made:
    """q, k and v as slices of one projection; k and v of the tokens that their pooling reads, where it leaves some out.

    Upstream pools all tokens, of which the others make no difference.
    """
    cls = int(s.has_cls)
    pools = [pool for pool in (s.pool_q, s.pool_kv, s.pool_kv) if pool is not None]
    fused = _random(0, batch, s.num_tokens, len(pools), s.heads, s.head_dim)
    weights = [_random(1 + i, s.head_dim, 1, *pool.kernel) for i, pool in enumerate(pools) if pool.mode == "conv"]
    norms = [1 + 0.1 * _random(10 + i, s.head_dim) for i in range(len(pools))]
    shifts = [0.1 * _random(20 + i, s.head_dim) for i in range(len(pools))]
    inputs = [fused, *weights, *norms, *shifts]
    count = len(pools)

    def split(values: tuple[Tensor, ...]) -> tuple[list[Tensor | None], list[Tensor], list[Tensor]]:
        filters: list[Tensor | None] = list(values[: len(weights)]) if weights else [None] * count
        return filters, list(values[-2 * count : -count]), list(values[-count:])

    def upstream(x: Tensor, *values: Tensor) -> list[Tensor]:
        branches = zip(x.permute(2, 0, 3, 1, 4), pools, *split(values), strict=True)
        return [
            baselines.pool_tokens(y, PoolNorm(pool, w, scale, shift, EPS), s.grid, cls)[0].contiguous()
            for y, pool, w, scale, shift in branches
        ]

    def ours(x: Tensor, *values: Tensor) -> list[Tensor]:
        filters, scales, biases = split(values)
        branches = [part.transpose(1, 2) for part in x.unbind(2)]
        return ops.qkv_pool3d_norm(
            branches,
            [s.grid] * count,
            pools,
            has_cls=s.has_cls,
            weight=filters,
            norm_weight=scales,
            norm_bias=biases,
            norm_eps=[EPS] * count,
        )

    return inputs, {"eager": upstream}, ours, work.pooling(pools, s, batch)


def _rel_pos(s: LayerShape, batch: int) -> Made:
    cls = int(s.has_cls)
    q = _random(0, batch, s.heads, s.num_q, s.head_dim)
    used = [rows > 0 for rows in s.table_rows]
    tables = [_random(1 + i, s.grid_q[i], s.grid_kv[i], s.head_dim) for i in range(3) if used[i]]

    def spread(values: Sequence[Tensor]) -> list[Tensor | None]:
        left = iter(values)
        return [next(left) if there else None for there in used]

    def upstream(q: Tensor, *values: Tensor) -> list[Tensor]:
        rows = baselines.rel_pos_rows(q[:, :, cls:], tuple(spread(values)), s.grid_q, s.grid_kv)
        return [F.pad(rows, (0, 0, cls, 0))]

    def ours(q: Tensor, *values: Tensor) -> list[Tensor]:
        t, h, w = spread(values)
        rows = ops.decomposed_rel_pos(q, s.grid_q, s.grid_kv, has_cls=s.has_cls, table_t=t, table_h=h, table_w=w)
        return [rows]

    return [q, *tables], {"eager": upstream}, ours, work.rel_pos(s, batch)


def _layer_norm(s: LayerShape, batch: int) -> Made:
    inputs = [_random(0, batch, s.num_tokens, s.dim), 1 + 0.1 * _random(1, s.dim), 0.1 * _random(2, s.dim)]

    def upstream(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        return [F.layer_norm(x, (s.dim,), weight, bias, EPS)]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        return [ops.layer_norm(x, weight, bias, eps=EPS)]

    return inputs, {"eager": upstream}, ours, work.elementwise(batch * s.num_tokens * s.dim)


def _linear(which: str, s: LayerShape, batch: int) -> Made:
    rows, inside, outside = projection(which, s)
    inputs: list[Any] = [
        _random(0, batch, rows, inside),
        _random(1, outside, inside) * inside**-0.5,
        _random(2, outside),
    ]
    gelu = which == "fc1"
    if which in ("out", "fc2"):
        inputs.append(_random(3, batch, rows, outside))

    def upstream(x: Tensor, w: Tensor, b: Tensor, residual: Tensor | None = None) -> list[Tensor]:
        y = F.linear(x, w, b)
        y = F.gelu(y) if gelu else y
        return [y if residual is None else residual + y]

    def ours(x: Tensor, w: Tensor, b: Tensor, residual: Tensor | None = None) -> list[Tensor]:
        return [ops.linear(x, w, b, residual=residual, activation="gelu" if gelu else "none")]

    return inputs, {"eager": upstream}, ours, work.linear(batch * rows, inside, outside, len(inputs) == 4)


def _norm_mlp(s: LayerShape, batch: int) -> Made:
    rows, dim, hidden = projection("fc1", s)
    inputs: list[Any] = [
        _random(0, batch, rows, dim),
        *(1 + 0.1 * _random(1, dim), 0.1 * _random(2, dim)),
        *(_random(3, hidden, dim) * dim**-0.5, _random(4, hidden)),
        *(_random(5, dim, hidden) * hidden**-0.5, _random(6, dim)),
    ]

    def upstream(
        x: Tensor, weight: Tensor, bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> list[Tensor]:
        normed = F.layer_norm(x, (dim,), weight, bias, EPS)
        return [x + F.linear(F.gelu(F.linear(normed, w1, b1)), w2, b2)]

    def ours(*tensors: Tensor) -> list[Tensor]:
        return [ops.norm_mlp(*tensors, eps=EPS)]

    def counted(element: int) -> work.Work:
        return work.total(
            [
                work.linear(batch * rows, dim, hidden, False)(element),
                work.linear(batch * rows, hidden, dim, True)(element),
            ]
        )

    return inputs, {"eager": upstream}, ours, counted


def projection(which: str, s: LayerShape) -> tuple[int, int, int]:
    """(rows, inputs, outputs) of one of a block's projections, of one sample; "out" and "fc2" add a residual."""
    return {
        "qkv": (s.num_tokens, s.dim, 3 * s.att_dim),
        "out": (s.num_q, s.att_dim, s.att_dim),
        "fc1": (s.num_q, s.att_dim, 4 * s.att_dim),
        "fc2": (s.num_q, 4 * s.att_dim, s.dim_out),
    }[which]
