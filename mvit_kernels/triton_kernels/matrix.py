"""The kernel instantiations that published models need, and the table of what the compiler makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.shapes import LayerShape, layer_shapes
from ..problem import Pool
from .launch import Launch, launch_as
from .tuning import Key

if TYPE_CHECKING:
    from .aot import Report

MODELS = ("mvit_v1_b_16x4", "mvit_v2_s_16x4", "mvit_v2_b_32x3", "mvit_v2_l_40x3")

OPS = ("pool", "attention", "rel_pos")


@dataclass(frozen=True)
class Case:
    """One layer's op in one dtype, forward and backward."""

    op: str
    layer: LayerShape
    dtype: torch.dtype

    @property
    def title(self) -> str:
        layer = self.layer
        dtype = str(self.dtype).removeprefix("torch.")
        if self.op == "pool":
            stride = "x".join(map(str, layer.pool_kv.stride)) if layer.pool_kv else "none"
            return f"D {layer.head_dim} kv stride {stride} {dtype}"
        return f"D {layer.head_dim} Nk {layer.num_kv} {dtype}"


def distinct(layers: Iterable[LayerShape]) -> list[LayerShape]:
    """Layers that need kernels of their own: other geometry, head dim or features; depth, width and batch do not."""
    found: dict[Any, LayerShape] = {}
    for layer in layers:
        key = (layer.head_dim, layer.grid, layer.grid_kv, layer.pool_q, layer.pool_kv, layer.residual, layer.table_rows)
        found.setdefault(key, layer)
    return list(found.values())


def cases(
    models: Iterable[str] = MODELS, dtypes: Iterable[torch.dtype] = (torch.float16, torch.bfloat16)
) -> list[Case]:
    """Every op of every layer of `models` that needs kernels of its own."""
    return cases_of(distinct(layer for model in models for layer in layer_shapes(model)), dtypes)


def cases_of(layers: Iterable[LayerShape], dtypes: Iterable[torch.dtype]) -> list[Case]:
    """Every op that these layers have, in every dtype."""
    dtypes = list(dtypes)
    return [
        Case(op, layer, dtype)
        for layer in layers
        for dtype in dtypes
        for op in OPS
        if (op != "rel_pos" or any(layer.table_rows)) and (op != "pool" or layer.pool_kv is not None)
    ]


def launches(case: Case, batch: int = 2) -> Callable[[], Any]:
    """A function that makes the launches of a case on meta tensors."""
    from . import run_attention, run_pool, run_rel_pos

    layer, dtype = case.layer, case.dtype
    heads, dim = layer.heads, layer.head_dim

    def tokens(n: int) -> Tensor:
        return torch.empty(batch, heads, n, dim, dtype=dtype, device="meta")

    def wide(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device="meta")

    if case.op == "pool":
        pools: list[Pool] = [p for p in (layer.pool_q, layer.pool_kv, layer.pool_kv) if p is not None]
        fused = torch.empty(batch, layer.num_tokens, 3, heads, dim, dtype=dtype, device="meta")
        x = [fused[:, :, i].transpose(1, 2) for i in range(3 - len(pools), 3)]
        n = len(pools)
        weight: list[Tensor | None] = [wide(dim, 1, *p.kernel) if p.mode == "conv" else None for p in pools]
        norm: list[Tensor | None] = [wide(dim)] * n
        grids = [layer.grid] * n

        def pool_run() -> None:
            outs = run_pool.forward(x, grids, layer.has_cls, pools, weight, norm, norm, [1e-6] * n)
            run_pool.backward(outs, x, grids, layer.has_cls, pools, weight, norm, norm, [1e-6] * n, [True] * 4 * n)

        return pool_run
    q = tokens(layer.num_q)
    if case.op == "rel_pos":
        t, h, w = (
            torch.empty(nq, nk, dim, dtype=dtype, device="meta") if rows else None
            for nq, nk, rows in zip(layer.grid_q, layer.grid_kv, layer.table_rows, strict=True)
        )

        def rel_pos_run() -> None:
            rows = run_rel_pos.forward(q, layer.grid_q, layer.grid_kv, layer.has_cls, t, h, w)
            run_rel_pos.backward(rows, q, layer.grid_q, layer.grid_kv, layer.has_cls, t, h, w, [True] * 4)

        return rel_pos_run
    k = tokens(layer.num_kv)
    rows = wide(batch, heads, layer.num_q, sum(layer.grid_kv)) if any(layer.table_rows) else None
    options = (layer.grid_kv, dim**-0.5, layer.has_cls, layer.residual)

    def attention_run() -> None:
        out, lse = run_attention.forward(q, k, k, rows, *options)
        run_attention.backward(out, None, q, k, k, rows, lse, *options, [True] * 4)

    return attention_run


HEADER = ("kernel", "arch", "layer", "registers", "spilled B", "shared B", "tensor core", "async", "per SM")


def table(arches: Iterable[str], chosen: Iterable[Case]) -> Iterable[tuple[str, ...]]:
    """Rows under HEADER, one per kernel instantiation, as they are compiled."""
    from .aot import compile_launches

    chosen = list(chosen)
    for arch in arches:
        seen = set()
        for case in chosen:
            for report in compile_launches(arch, launches(case)):
                if id(report) in seen:
                    continue
                seen.add(id(report))
                cores = " ".join(f"{count} {kind}" for kind, count in sorted(report.tensor_core.items())) or "-"
                numbers = (report.registers, report.spills, report.shared, cores, report.async_copies)
                per_sm = str(report.blocks_per_multiprocessor)
                yield (report.kernel, arch, case.title, *map(str, numbers), per_sm)


@dataclass
class Summary:
    """All instantiations of one kernel for one architecture."""

    kernel: str
    arch: str
    count: int = 0
    registers: tuple[int, int] = (10**6, 0)
    shared: int = 0
    resident: tuple[int, int] = (10**6, 0)
    faults: list[str] = field(default_factory=list)

    def add(self, case: Case, report: Report) -> None:
        self.count += 1
        self.registers = min(self.registers[0], report.registers), max(self.registers[1], report.registers)
        self.shared = max(self.shared, report.shared)
        per_unit = report.blocks_per_multiprocessor
        self.resident = min(self.resident[0], per_unit), max(self.resident[1], per_unit)
        self.faults += [f"{self.kernel} {self.arch} {case.title}: {fault}" for fault in report.faults()]

    def row(self) -> tuple[str, ...]:
        registers, resident = (f"{low} to {high}" for low, high in (self.registers, self.resident))
        return (self.kernel, self.arch, str(self.count), registers, str(self.shared), resident, str(len(self.faults)))


SUMMARY_HEADER = ("kernel", "arch", "instantiations", "registers", "shared B, most", "per SM", "faults")


def summarise(arch: str, dtype: torch.dtype, models: Sequence[str]) -> list[Summary]:
    """Compile every kernel that `models` need, in one dtype for one architecture."""
    from .aot import compile_launches

    found: dict[str, Summary] = {}
    seen = set()
    for case in cases(models, [dtype]):
        for report in compile_launches(arch, launches(case)):
            if id(report) not in seen:
                seen.add(id(report))
                found.setdefault(report.kernel, Summary(report.kernel, arch)).add(case, report)
    return list(found.values())


def merged(summaries: Iterable[Summary]) -> list[Summary]:
    """One summary per kernel and architecture."""
    found: dict[tuple[str, str], Summary] = {}
    for one in summaries:
        total = found.setdefault((one.kernel, one.arch), Summary(one.kernel, one.arch))
        total.count += one.count
        total.registers = min(total.registers[0], one.registers[0]), max(total.registers[1], one.registers[1])
        total.shared = max(total.shared, one.shared)
        total.resident = min(total.resident[0], one.resident[0]), max(total.resident[1], one.resident[1])
        total.faults += one.faults
    return sorted(found.values(), key=lambda summary: (summary.kernel, summary.arch))


def timer(layer: LayerShape, dtype: torch.dtype, batch: int) -> Callable[[Key, Launch], float]:
    """Seconds of one attention kernel of a layer on this GPU with a launch of choice: the median of twenty runs."""
    from . import run_attention

    q, k = (
        torch.randn(batch, layer.heads, n, layer.head_dim, device="cuda", dtype=dtype)
        for n in (layer.num_q, layer.num_kv)
    )
    rows = (
        torch.randn(batch, layer.heads, layer.num_q, sum(layer.grid_kv), device="cuda")
        if any(layer.table_rows)
        else None
    )
    options = (layer.grid_kv, layer.head_dim**-0.5, layer.has_cls, layer.residual)
    out, lse = run_attention.forward(q, k, k, rows, *options)

    def seconds(key: Key, launch: Launch) -> float:
        with launch_as(key.kernel, launch):
            needs = {"grad_q": [True, False, False, rows is not None], "grad_kv": [False, True, True, False]}

            def once() -> None:
                if key.kernel == "forward":
                    run_attention.forward(q, k, k, rows, *options)
                else:
                    run_attention.backward(out, None, q, k, k, rows, lse, *options, needs[key.kernel])

            once()
            times = []
            for _ in range(20):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                once()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / 1e3)
        return sorted(times)[len(times) // 2]

    return seconds
