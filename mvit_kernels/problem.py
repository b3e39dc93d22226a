"""What one op call looks like from outside: shapes, dtypes and options, never data.

Everything that chooses between backends (:mod:`mvit_kernels.backends`) sees only these frozen classes, and every
backend and adapter takes its shape arithmetic from here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Grid = tuple[int, int, int]
"""(T, H, W) sizes of a token grid; images have T = 1."""

POOL_MODES = ("conv", "avg", "max")
RESIDUALS = ("none", "all", "no_cls")
ACTIVATIONS = ("none", "gelu")


def _x(grid: Grid) -> str:
    return "x".join(map(str, grid))


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tokens(thw: Grid) -> int:
    """Number of grid tokens, the cls token not counted."""
    return thw[0] * thw[1] * thw[2]


@dataclass(frozen=True)
class Pool:
    """The pooling operator P(.; kernel, stride, padding) of MViT section 3.1, without its weights."""

    mode: str
    kernel: Grid
    stride: Grid
    padding: Grid

    def __str__(self) -> str:
        return f"{self.mode} kernel {_x(self.kernel)} stride {_x(self.stride)} padding {_x(self.padding)}"

    def out_grid(self, thw: Grid) -> Grid:
        """Grid after pooling: floor((n + 2p - k) / s) + 1 per axis."""
        t, h, w = (
            (n + 2 * p - k) // s + 1 for n, k, s, p in zip(thw, self.kernel, self.stride, self.padding, strict=True)
        )
        return t, h, w

    @property
    def skips_tokens(self) -> bool:
        """True where a stride exceeds its kernel, so that some tokens are read by no output."""
        return any(s > k for k, s in zip(self.kernel, self.stride, strict=True))


@dataclass(frozen=True)
class TouchedGrid:
    """The tokens a strided pooling reads, as a denser grid with an equal pooling on it.

    Where the stride exceeds the kernel, dropping the untouched rows of that axis leaves windows side by side: pooling
    the remaining rows with stride = kernel gives the same numbers from fewer tokens.
    """

    rows: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    """Per axis the touched coordinates of the original grid."""
    pool: Pool

    @property
    def thw(self) -> Grid:
        return len(self.rows[0]), len(self.rows[1]), len(self.rows[2])


def touched_grid(pool: Pool, thw: Grid) -> TouchedGrid:
    """Grid of the tokens that `pool` reads on a grid `thw`, and the equal pooling on it."""
    rows, strides = [], []
    for n, k, s, p, outputs in zip(thw, pool.kernel, pool.stride, pool.padding, pool.out_grid(thw), strict=True):
        if s > k:
            starts = (o * s - p for o in range(outputs))
            rows.append(tuple(i for start in starts for i in range(start, start + k) if 0 <= i < n))
            strides.append(k)
        else:
            rows.append(tuple(range(n)))
            strides.append(s)
    stride = (strides[0], strides[1], strides[2])
    return TouchedGrid((rows[0], rows[1], rows[2]), Pool(pool.mode, pool.kernel, stride, pool.padding))


@dataclass(frozen=True)
class PoolProblem:
    """One branch of `pool3d_norm`: x (batch, heads, has_cls + T*H*W, head_dim)."""

    device: str
    dtype: torch.dtype
    batch: int
    heads: int
    head_dim: int
    thw: Grid
    has_cls: bool
    pool: Pool
    norm: bool
    needs_grad: bool

    op = "pool3d_norm"

    def __str__(self) -> str:
        return _line(self, self.geometry)

    @property
    def geometry(self) -> str:
        return f"{_x(self.thw)}{_cls(self)} {self.pool}{' + norm' if self.norm else ''}"


@dataclass(frozen=True)
class QkvPoolProblem:
    """`qkv_pool3d_norm`: one to three independent poolings in one call."""

    branches: tuple[PoolProblem, ...]

    op = "qkv_pool3d_norm"

    def __str__(self) -> str:
        return " | ".join(map(str, self.branches))

    @property
    def device(self) -> str:
        return self.branches[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.branches[0].dtype

    @property
    def head_dim(self) -> int:
        return self.branches[0].head_dim

    @property
    def needs_grad(self) -> bool:
        return any(branch.needs_grad for branch in self.branches)


@dataclass(frozen=True)
class RelPosProblem:
    """`decomposed_rel_pos`: q (batch, heads, has_cls + tokens(grid_q), head_dim)."""

    device: str
    dtype: torch.dtype
    batch: int
    heads: int
    head_dim: int
    grid_q: Grid
    grid_k: Grid
    has_cls: bool
    needs_grad: bool

    op = "decomposed_rel_pos"

    def __str__(self) -> str:
        return _line(self, f"q {_x(self.grid_q)} k {_x(self.grid_k)}{_cls(self)}")


@dataclass(frozen=True)
class AttentionProblem:
    """`pooling_attention`: q (batch, heads, num_q, head_dim), k and v (batch, heads, num_k, head_dim)."""

    device: str
    dtype: torch.dtype
    batch: int
    heads: int
    head_dim: int
    num_q: int
    num_k: int
    rel_pos: bool
    has_cls: bool
    residual: str
    needs_grad: bool
    rel_pos_entries: int = 0
    """Kt + Kh + Kw of a rel-pos row."""

    op = "pooling_attention"

    def __str__(self) -> str:
        features = (" + rel pos" if self.rel_pos else "") + ("" if self.residual == "none" else " + residual")
        return _line(self, f"Nq {self.num_q} Nk {self.num_k}{_cls(self)}{features}")


@dataclass(frozen=True)
class PooledQueryProblem:
    """`pooled_query_attention`: attention that pools its queries."""

    pool: PoolProblem
    attention: AttentionProblem

    op = "pooled_query_attention"

    def __str__(self) -> str:
        return f"{self.attention}, q of {self.pool.geometry}"

    @property
    def device(self) -> str:
        return self.attention.device

    @property
    def dtype(self) -> torch.dtype:
        return self.attention.dtype

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim

    @property
    def needs_grad(self) -> bool:
        return self.attention.needs_grad


@dataclass(frozen=True)
class LinearProblem:
    """`linear`: x (rows, inputs), weight (outputs, inputs)."""

    device: str
    dtype: torch.dtype
    rows: int
    inputs: int
    outputs: int
    bias: bool
    residual: bool
    activation: str
    needs_grad: bool

    op = "linear"

    def __str__(self) -> str:
        features = "".join(
            f" + {name}"
            for name, there in (
                ("bias", self.bias),
                (self.activation, self.activation != "none"),
                ("residual", self.residual),
            )
            if there
        )
        grad = ", with gradient" if self.needs_grad else ""
        return f"{_dtype(self.dtype)} {self.device} {self.rows} x {self.inputs} -> {self.outputs}{features}{grad}"


@dataclass(frozen=True)
class LayerNormProblem:
    """`layer_norm`: x (rows, channels), the result in `out_dtype`."""

    device: str
    dtype: torch.dtype
    rows: int
    channels: int
    out_dtype: torch.dtype
    needs_grad: bool

    op = "layer_norm"

    def __str__(self) -> str:
        out = "" if self.out_dtype == self.dtype else f" -> {_dtype(self.out_dtype)}"
        grad = ", with gradient" if self.needs_grad else ""
        return f"{_dtype(self.dtype)}{out} {self.device} {self.rows} x {self.channels}{grad}"


@dataclass(frozen=True)
class NormMlpProblem:
    """`norm_mlp`: x (rows, channels) to `hidden` and on to `outputs` channels, products in `dtype`."""

    device: str
    dtype: torch.dtype
    rows: int
    channels: int
    hidden: int
    outputs: int
    needs_grad: bool

    op = "norm_mlp"

    def __str__(self) -> str:
        grad = ", with gradient" if self.needs_grad else ""
        sizes = f"{self.rows} x {self.channels} -> {self.hidden} -> {self.outputs}"
        return f"{_dtype(self.dtype)} {self.device} {sizes}{grad}"


Problem = (
    PoolProblem
    | QkvPoolProblem
    | RelPosProblem
    | AttentionProblem
    | PooledQueryProblem
    | LinearProblem
    | LayerNormProblem
    | NormMlpProblem
)


def _cls(problem: PoolProblem | RelPosProblem | AttentionProblem) -> str:
    return " + cls" if problem.has_cls else ""


def _line(problem: PoolProblem | RelPosProblem | AttentionProblem, geometry: str) -> str:
    grad = ", with gradient" if problem.needs_grad else ""
    shape = f"B {problem.batch} H {problem.heads} D {problem.head_dim}"
    return f"{_dtype(problem.dtype)} {problem.device} {shape}, {geometry}{grad}"
