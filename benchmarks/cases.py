"""What can be measured: every op, layer, block and model of every published configuration, and which of it by default.

A name such as `layer-mvit_v2_s_16x4-block3-training-bfloat16-sdpa` is what `pytest -k` searches in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from mvit_kernels import models
from mvit_kernels.models import LayerShape
from mvit_kernels.runs import KERNELS

LEVELS = ("op", "layer", "block", "sweep", "model")
MODES = ("forward", "backward", "training")
DTYPES = ("float32", "bfloat16", "float16")
OPS = (
    "pooling_attention",
    "qkv_pool3d_norm",
    "decomposed_rel_pos",
    "layer_norm",
    "qkv",
    "out",
    "fc1",
    "fc2",
    "norm_mlp",
)
"""The ops of a block; qkv to fc2 are `ops.linear` with the shapes of those projections, fc1 with GELU."""

SWEPT = "mvit_v2_s_16x4"
SWEEPS: dict[str, tuple[int, ...]] = {
    "frames": (8, 16, 32, 64),
    "crop": (112, 160, 224, 320, 448),
    "batch": (1, 2, 4, 8),
    "threads": (1, 2, 4, 8, 16, 32),
    "keys": (98, 196, 392, 784, 1568, 3136, 6272),
}
"""frames, crop, batch and threads: all attention layers of MViTv2-S; keys: one head's attention of 6272 queries."""

ALL_LAYERS = "layers"
DEFAULT_MODELS = ("mvit_v1_b_16x4", "mvit_v2_s_16x4")


@dataclass(frozen=True)
class Case:
    """One computation in one mode and dtype.

    Attributes:
        part: "block3", "block3.fc1", "layers" for all attention layers in turn, "" for a whole model and a sweep.
        block: number of the block, or -1.
        axis, value: of a sweep.
    """

    level: str
    model: str
    part: str = ""
    block: int = -1
    mode: str = "forward"
    dtype: str = "float32"
    axis: str = ""
    value: int = 0

    @property
    def op(self) -> str:
        return self.part.partition(".")[2]

    @property
    def subject(self) -> Case:
        """What cases share that differ in mode alone."""
        return replace(self, mode="")

    @property
    def sizes(self) -> dict[str, int]:
        """What a sweep replaces in the configuration."""
        option = {"frames": "num_frames", "crop": "crop_size"}.get(self.axis)
        return {option: self.value} if option else {}

    @property
    def name(self) -> str:
        where = f"{self.axis}{self.value}" if self.axis else self.part
        return "-".join(filter(None, (self.level, self.model, where, self.mode, self.dtype)))

    @property
    def shape(self) -> LayerShape:
        return models.layer_shapes(self.model)[self.block]

    @property
    def peers(self) -> tuple[str, ...]:
        """Every implementation that is compared, the baseline first."""
        if self.level == "op":
            attends = ("sdpa", "flex") if self.op == "pooling_attention" else ()
            return ("eager", *attends, "reference", *KERNELS)
        if self.part == ALL_LAYERS:
            return ("eager", "sdpa", *KERNELS)
        if self.level in ("layer", "block"):
            return ("eager", "sdpa", "flex", "compile", "reference", *KERNELS)
        if self.level == "sweep":
            return ("eager", "sdpa", *KERNELS)
        whole = tuple(f"{backend}-{scope}" for backend in KERNELS for scope in ("attention", "block"))
        return ("eager", "compile", "openvino", "onnxruntime", *whole)


def all_cases() -> Iterator[Case]:
    """Every case there is, in the order in which they are run."""
    for level in LEVELS:
        if level == "sweep":
            yield from _sweeps()
            continue
        for model in models.list_models():
            for part, block in _parts(level, model):
                for dtype in DTYPES:
                    for mode in MODES[:1] if part.endswith(".norm_mlp") else MODES:  # for inference
                        yield Case(level, model, part, block, mode, dtype)


def _sweeps() -> Iterator[Case]:
    for axis, values in SWEEPS.items():
        for value in values:
            for mode in ("forward", "training"):
                yield Case("sweep", SWEPT, mode=mode, axis=axis, value=value)


@cache
def _parts(level: str, model: str) -> list[tuple[str, int]]:
    if level == "model":
        return [("", -1)]
    blocks = distinct_blocks(model, whole=level != "layer")
    if level in ("layer", "block"):
        each = [(f"block{block}", block) for block in blocks]
        return each if level == "block" else [*each, (ALL_LAYERS, -1)]
    shapes = models.layer_shapes(model)
    return [
        (f"block{block}.{op}", block)
        for block in blocks
        for op in OPS
        if (op != "decomposed_rel_pos" or any(shapes[block].table_rows))
        and (op != "qkv_pool3d_norm" or shapes[block].pool_q or shapes[block].pool_kv)
    ]


@cache
def distinct_blocks(model: str, whole: bool) -> list[int]:
    """Numbers of the blocks of a model; of those alike in all shapes, `whole` or of their attention, the first."""
    seen: dict[tuple[Any, ...], int] = {}
    for s in models.layer_shapes(model):
        out = s.dim_out if whole else 0
        key = (s.dim, s.att_dim, out, s.heads, s.grid, s.pool_q, s.pool_kv, s.residual, s.table_rows)
        seen.setdefault(key, s.block)
    return list(seen.values())


MIDDLE = 4
"""The block whose shapes ten of the sixteen blocks of MViT-B and MViTv2-S have."""


HEADLINES = {("forward", "float32"), ("training", "float32"), ("forward", "bfloat16")}


def in_default(case: Case, peer: str) -> bool:
    """Of the run without options: under ten minutes on two cores."""
    plain = case.mode == "forward" and case.dtype == "float32"
    if peer == "reference" or (case.level != "sweep" and case.model not in DEFAULT_MODELS):
        return False
    if case.level == "op":
        heavy = case.block == 0 and case.op in ("pooling_attention", "qkv_pool3d_norm")
        return plain and peer != "flex" and case.model == SWEPT and (heavy or case.block == MIDDLE)
    if case.level == "layer":
        if peer in ("flex", "compile"):  # half a minute of compilation for each
            return plain and case.model == SWEPT and case.block == MIDDLE
        if peer == "sdpa" and (case.mode != "forward" or case.part == ALL_LAYERS):
            return False
        return (case.mode, case.dtype) in HEADLINES
    if case.level == "block":
        return plain and case.block in (0, MIDDLE) and peer not in ("sdpa", "flex", "compile")
    if case.level == "sweep":
        few = {"frames": (8, 16, 32), "crop": (112, 160, 224), "keys": (392, 1568, 6272)}
        return plain and case.value in few.get(case.axis, ()) and peer != "sdpa"
    return plain and peer != "compile"


def in_quick(case: Case, peer: str) -> bool:
    """Of `--quick`: about a minute."""
    if (
        case.model != SWEPT
        or peer in ("reference", "flex", "compile", "openvino", "onnxruntime")
        or case.dtype == "float16"
    ):
        return False
    if case.level == "op":
        return case.part == f"block{MIDDLE}.pooling_attention" and case.mode == "forward" and case.dtype == "float32"
    if case.level == "layer":
        return case.block in (MIDDLE, 14) and case.mode != "backward"
    if case.level == "sweep":
        return case.axis == "frames" and case.value in (8, 16) and case.mode == "forward" and peer != "sdpa"
    return case.mode == "forward" and case.dtype == "float32" and case.block in (MIDDLE, -1)
