"""The part that every backend behind the compiled `torch.ops.mvit_kernels` ops shares: the call itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..op_arguments import flat, stored, stored_eps
from ..problem import Grid, Pool
from ..tracing import constant_in_graphs
from .base import Backend


@constant_in_graphs  # torch.compile can't trace the setting; it guards it
def tf32_allowed() -> bool:
    """Whether PyTorch's products of float32 matrices may round to TF32.

    Read from its new setting, which the old ones change too. After a change by the new one, reading an old one raises.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


class CompiledBackend(Backend):
    namespace = "mvit_kernels"

    @property
    def ops(self) -> Any:
        return getattr(torch.ops, self.namespace)

    def tf32(self, dtype: torch.dtype) -> bool:
        """Whether the matrix products of an op may round their operands to TF32; asked for before the op runs."""
        return False

    def reasons_here(self) -> Iterator[str]:
        if torch._C._are_functorch_transforms_active():
            yield "inside a torch.func transform: the compiled ops have no rules for vmap, jvp and nested grad"
        elif forward_ad._current_level >= 0:
            yield "inside forward-mode differentiation: the compiled ops have no forward derivatives"
        elif torch.jit.is_tracing():
            yield "under torch.jit.trace: TorchScript can't record the compiled ops"

    def pool3d_norm(
        self,
        x: Tensor,
        thw: Grid,
        pool: Pool,
        *,
        has_cls: bool,
        weight: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        norm_eps: float | None,
    ) -> Tensor:
        return self.ops.pool3d_norm(
            x, thw, has_cls, pool.mode, pool.kernel, pool.stride, pool.padding, weight, norm_weight, norm_bias, norm_eps
        )

    def qkv_pool3d_norm(
        self,
        x: Sequence[Tensor],
        thw: Sequence[Grid],
        pool: Sequence[Pool],
        *,
        has_cls: bool,
        weight: Sequence[Tensor | None],
        norm_weight: Sequence[Tensor | None],
        norm_bias: Sequence[Tensor | None],
        norm_eps: Sequence[float | None],
    ) -> list[Tensor]:
        return self.ops.qkv_pool3d_norm(
            list(x),
            flat(thw),
            has_cls,
            [p.mode for p in pool],
            flat(p.kernel for p in pool),
            flat(p.stride for p in pool),
            flat(p.padding for p in pool),
            *(stored(parameters, x[0]) for parameters in (weight, norm_weight, norm_bias)),
            stored_eps(norm_eps),
        )

    def decomposed_rel_pos(
        self,
        q: Tensor,
        grid_q: Grid,
        grid_k: Grid,
        *,
        has_cls: bool,
        table_t: Tensor | None,
        table_h: Tensor | None,
        table_w: Tensor | None,
    ) -> Tensor:
        return self.ops.decomposed_rel_pos(q, grid_q, grid_k, has_cls, table_t, table_h, table_w)

    def pooling_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        rel_pos: Tensor | None,
        grid_k: Grid | None,
        scale: float,
        has_cls: bool,
        residual: str,
    ) -> tuple[Tensor, Tensor]:
        grid = (0, 0, 0) if grid_k is None else grid_k
        return self.ops.pooling_attention(q, k, v, rel_pos, grid, scale, has_cls, residual, self.tf32(q.dtype))

    def pooled_query_attention(
        self,
        x: Tensor,
        thw: Grid,
        pool: Pool,
        k: Tensor,
        v: Tensor,
        *,
        has_cls: bool,
        weight: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        norm_eps: float | None,
        table_t: Tensor | None,
        table_h: Tensor | None,
        table_w: Tensor | None,
        grid_k: Grid | None,
        scale: float,
        residual: str,
    ) -> Tensor:
        geometry = (has_cls, pool.mode, pool.kernel, pool.stride, pool.padding)
        norm = (weight, norm_weight, norm_bias, norm_eps)
        grid = (0, 0, 0) if grid_k is None else grid_k
        return self.ops.pooled_query_attention(
            x, thw, k, v, *geometry, *norm, table_t, table_h, table_w, grid, scale, residual
        )

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *, residual: Tensor | None, activation: str
    ) -> Tensor:
        return torch.ops.mvit_kernels.linear(x, weight, bias, residual, activation)

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, dtype: torch.dtype
    ) -> Tensor:
        return torch.ops.mvit_kernels.layer_norm(x, weight, bias, eps, dtype)

    def norm_mlp(
        self,
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        fc1_weight: Tensor,
        fc1_bias: Tensor | None,
        fc2_weight: Tensor,
        fc2_bias: Tensor | None,
        *,
        eps: float,
        residual: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        return torch.ops.mvit_kernels.norm_mlp(
            x, norm_weight, norm_bias, eps, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, dtype
        )
