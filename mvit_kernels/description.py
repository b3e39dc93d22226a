"""One MHPA layer as data: who owns the parameters does not matter, what it computes does.

A description is made anew for every forward, from the module that owns the parameters, so that it never holds a stale
one. :func:`mvit_kernels.mhpa.forward` runs it with kernels, :func:`mvit_kernels.reference.multi_head_pooling_attention`
spells it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

from .problem import Grid, Pool
from .rel_pos_tables import IndexFormula


@dataclass(frozen=True)
class Fused:
    """One projection for q, k and v: weight (3*A, C), rows ordered [q | k | v], each [heads][head dim]."""

    linear: nn.Linear

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.linear.parameters()


@dataclass(frozen=True)
class Separate:
    """A projection each for q, k and v: weights (A, C)."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear

    def parameters(self) -> Iterator[nn.Parameter]:
        return chain.from_iterable(part.parameters() for part in (self.q, self.k, self.v))


@dataclass(frozen=True)
class PoolNorm:
    """One pooling branch with its parameters; shapes as in :func:`mvit_kernels.ops.pool3d_norm`."""

    pool: Pool
    weight: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    norm_eps: float | None = None


@dataclass(frozen=True)
class HostPool:
    """A pooling branch that a kernel does not cover, run by the host's own code.

    Attributes:
        call: (B, H, has_cls + T*H*W, D) and its grid -> pooled and normalised (B, H, N', D) and its grid.
    """

    call: Callable[[Tensor, Grid], tuple[Tensor, Grid]]


@dataclass(frozen=True)
class RelPos:
    """Stored relative-position tables (L, D) per axis, None where an axis has none, and the library's index formula.

    Attributes:
        resized: axes whose table is interpolated where the grid asks for another length. On the others rows are picked
            from the table as it is: too short a one is an IndexError, as in the library.
    """

    t: Tensor | None
    h: Tensor | None
    w: Tensor | None
    index: IndexFormula
    resized: str = "thw"


@dataclass(frozen=True)
class Windows:
    """Attention inside windows that are cut from the pooled maps of a T = 1 grid: sizes (h, w) in pooled q and k, v.

    Maps are padded with zeros on the right and at the bottom. Padded keys are not masked, so they take part in the
    softmax (detectron2, detectron2/modeling/backbone/mvit.py).
    """

    q: tuple[int, int]
    kv: tuple[int, int]


@dataclass(frozen=True)
class MHPA:
    """Multi-Head Pooling Attention.

    Attributes:
        heads: number of heads H; the head dim is A / H.
        scale: factor on q k^T.
        has_cls: token 0 is a cls token.
        qkv: the input projections, C -> A each.
        out: what turns merged heads (B, Nq, A) into the layer's output (projection and dropout).
        pool_q, pool_k, pool_v: None where the branch is not pooled (and then not normalised either).
        rel_pos: MViTv2's decomposed relative position, or None.
        residual: "none", "all" or "no_cls": where the pooled q is added to the attended values.
        pool_first: pool the input tokens, folded into `pool_heads` heads, before the projections.
        pool_heads: heads that the input is folded into with pool_first; 1 for per-channel filters.
        out_linear: the projection that `out` is, where it is nothing else now and has no hooks: it may then be fused
            with what follows.
        windows: attend inside windows of the pooled maps, or None. Without a cls token only.
    """

    heads: int
    scale: float
    has_cls: bool
    qkv: Fused | Separate
    out: Callable[[Tensor], Tensor]
    pool_q: PoolNorm | HostPool | None
    pool_k: PoolNorm | HostPool | None
    pool_v: PoolNorm | HostPool | None
    rel_pos: RelPos | None = None
    residual: str = "none"
    pool_first: bool = False
    pool_heads: int = 1
    out_linear: nn.Linear | None = None
    windows: Windows | None = None

    @property
    def pools(self) -> tuple[PoolNorm | HostPool | None, ...]:
        """The branches of q, k and v."""
        return self.pool_q, self.pool_k, self.pool_v

    @property
    def pooled(self) -> bool:
        return any(branch is not None for branch in self.pools)

    @property
    def host_pooling(self) -> bool:
        """A branch is pooled by the host's own code."""
        return any(isinstance(branch, HostPool) for branch in self.pools)

    @property
    def looks_at_grid(self) -> bool:
        """The result depends on the token grid: something is pooled, cut into windows or has relative position."""
        return self.pooled or self.rel_pos is not None or self.windows is not None

    @property
    def channels(self) -> int:
        """Channels C of the input tokens."""
        return self.weight.shape[1]

    @property
    def weight(self) -> Tensor:
        """Weight of the (first) input projection, for its dtype and device."""
        return self.qkv.linear.weight if isinstance(self.qkv, Fused) else self.qkv.q.weight

    @property
    def uses_touched_tokens(self) -> bool:
        """k and v are projected only where their pooling reads (strides larger than the kernel)."""
        return (
            not self.pool_first
            and isinstance(self.pool_k, PoolNorm)
            and isinstance(self.pool_v, PoolNorm)
            and self.pool_k.pool == self.pool_v.pool
            and self.pool_k.pool.skips_tokens
        )


@dataclass(frozen=True)
class Norm:
    """LayerNorm over channels."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Mlp:
    """fc2(gelu(fc1(x))), with the exact GELU and no dropout."""

    fc1: nn.Linear
    fc2: nn.Linear


Attend = Callable[[Tensor, Sequence[int]], "tuple[Tensor, Sequence[int]]"]


@dataclass(frozen=True)
class Block:
    """Transformer block around an MHPA layer: norms, skip path, MLP (MViT section 3.2, MViTv2 section 4.1).

        x = skip(x) + drop_path(attention(norm1(x)));  x = skip(x) + drop_path(mlp(norm2(x)))

    Attributes:
        attention: the layer, or the host's module where a call of it does more (hooks).
        mlp: the two layers, or the host's module where a call of it does more (dropout in training).
        pool_skip: max pooling of the first skip path.
        project: changes the channels of a skip path, from the normalised tokens: the first skip path's with
            `project_first`, the second's without. None where channels stay.
        drop_path: stochastic depth, where it does something now.
    """

    norm1: Norm
    attention: MHPA | Attend
    norm2: Norm
    mlp: Mlp | Callable[[Tensor], Tensor]
    has_cls: bool
    pool_skip: Pool | None = None
    project: nn.Linear | None = None
    project_first: bool = False
    drop_path: Callable[[Tensor], Tensor] | None = None
