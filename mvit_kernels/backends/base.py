"""What a backend is: what it can't do, in words, and the ops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from ..problem import Grid, NormMlpProblem, Pool, PooledQueryProblem, Problem


class UnsupportedError(RuntimeError):
    """The chosen backend can't run a problem; the message lists its reasons."""


class Backend(ABC):
    """One implementation of the ops: checked inputs, signatures and shapes of `mvit_kernels.reference`."""

    name: str
    pools_queries = False
    """It has a kernel of attention that pools its queries."""

    def serves(self, device: str) -> bool:
        """Whether it is for tensors on this type of device."""
        return True

    @abstractmethod
    def reasons_not_supported(self, problem: Problem) -> Iterator[str]:
        """Why this backend can't run `problem`, one reason a string, in words a user would use; none if it can."""

    def reasons_here(self) -> Iterator[str]:
        """Why this backend can't run any problem at this place in the program, a torch.func transform for one."""
        yield from ()

    def reasons(self, problem: Problem) -> list[str]:
        """Everything against running `problem` on this backend here and now; empty if it can."""
        return [*self.reasons_here(), *self.reasons_not_supported(problem)]

    def can_run(self, problem: Problem) -> bool:
        """Whether there is nothing against it; looks no further than the first reason."""
        return next(chain(self.reasons_not_supported(problem), self.reasons_here()), None) is None

    def unavailable(self) -> str | None:
        """Why this backend can't run anything in this process, or None."""
        return None

    def notes(self, problem: Problem) -> Iterator[str]:
        """What a user should know about how this backend runs `problem`."""
        yield from ()

    def reasons_to_pool_before(self, problem: PooledQueryProblem) -> Iterator[str]:
        """Why this backend, which can run `problem`, is taken to be no faster at it than at its parts."""
        yield "no kernel here gains by it"

    def gains_by_norm_mlp(self, problem: NormMlpProblem) -> bool:
        """Whether this backend, which can run `problem`, is faster at it than at its parts."""
        return False

    def variant(self) -> str | None:
        """The instruction set or architecture the kernels were chosen for."""
        return None

    @abstractmethod
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
    ) -> Tensor: ...

    @abstractmethod
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
    ) -> list[Tensor]: ...

    @abstractmethod
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
    ) -> Tensor: ...

    @abstractmethod
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
    ) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
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
    ) -> Tensor: ...

    @abstractmethod
    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *, residual: Tensor | None, activation: str
    ) -> Tensor: ...

    @abstractmethod
    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, dtype: torch.dtype
    ) -> Tensor: ...

    @abstractmethod
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
    ) -> Tensor: ...
