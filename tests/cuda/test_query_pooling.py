"""q pooled inside attention, from the op to a whole layer: on a GPU where there is one, else in the emulation."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mvit_kernels
from mvit_kernels import backends, mhpa, ops, reference
from mvit_kernels.backends import cuda
from mvit_kernels.description import HostPool, Windows
from mvit_kernels.models import LayerShape
from mvit_kernels.modules import MultiHeadPoolingAttention
from mvit_kernels.problem import Grid
from mvit_kernels.query_pooling import ENVIRONMENT_VARIABLE, use_query_pooling
from tests.cuda.conftest import DEVICE
from tests.cuda.emulated import Aligned
from tests.cuda.kernel_cases import HALF
from tests.cuda.layers import LAYERS
from tests.cuda.test_pooled_query_attention import CASES, Case
from tests.numerics import Guarded, assert_within_rule
from tests.ops.pool_cases import K3, PoolCase, pool

pytestmark = [pytest.mark.usefixtures("cuda_backend", "poisoned_memory")]

OP_CASES = [CASES[i] for i in (0, 2, 4, 5, 6, 9, 11)] if DEVICE == "cpu" else CASES
"""The emulation has tests of the kernel alone for all of them."""


def arguments(case: Case, make: Guarded, dtype: torch.dtype) -> dict[str, Any]:
    """Of the public op, the grids and options included."""
    pooling, cls = case.pooling, int(case.pooling.has_cls)
    grid_q, keys = pooling.pool.out_grid(pooling.thw), torch.Size(case.grid_k).numel() + cls
    tokens = {name: make(pooling.batch, pooling.heads, keys, pooling.head_dim, dtype=dtype) for name in "kv"}
    table_dtype = torch.float32 if case.tables_in_float32 else dtype
    tables = {
        f"table_{axis}": make(num_q, num_k, pooling.head_dim, dtype=table_dtype)
        for axis, num_q, num_k in zip("thw", grid_q, case.grid_k, strict=True)
        if axis in case.axes
    }
    given = {name: value for name, value in pooling.inputs(make, dtype).items() if value is not None}
    options = {"thw": pooling.thw, "pool": pooling.pool, "scale": case.scale, "residual": case.residual}
    return {**given, **tokens, **tables, **options, **pooling.options, "grid_k": case.grid_k}


def in_double(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in given.items()}


def spelled_out(given: dict[str, Any]) -> Tensor:
    """By the three ops of the reference."""
    norm = {name: given.get(name) for name in ("weight", "norm_weight", "norm_bias", "norm_eps")}
    common = {"has_cls": given["has_cls"]}
    q = reference.pool3d_norm(given["x"], given["thw"], given["pool"], **norm, **common)
    tables = {name: given[name].to(q.dtype) for name in ("table_t", "table_h", "table_w") if name in given}
    rows = None
    if tables:
        grid_q = given["pool"].out_grid(given["thw"])
        rows = reference.decomposed_rel_pos(q, grid_q, given["grid_k"], **tables, **common)
    options = {name: given[name] for name in ("k", "v", "grid_k", "scale", "residual")}
    return reference.pooling_attention(q, rel_pos=rows, **options, **common)[0]


@pytest.mark.parametrize("layout", [Aligned, Guarded])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_op_matches_float64_whatever_the_alignment(case: Case, dtype: torch.dtype, layout: type[Guarded]) -> None:
    memory = layout(device=DEVICE)
    given = arguments(case, memory, dtype)
    out = ops.pooled_query_attention(**given)
    memory.assert_untouched()
    assert_within_rule(out, spelled_out(given), spelled_out(in_double(given)))


SMALL = Case(PoolCase((2, 4, 5), pool("conv", K3, (1, 2, 2)), head_dim=16), (1, 2, 3))


def test_reference_of_the_op_is_the_three_ops() -> None:
    for case in (SMALL, dataclasses.replace(SMALL, axes="")):
        given = in_double(arguments(case, Guarded(), torch.float32))
        assert torch.equal(reference.pooled_query_attention(**given), spelled_out(given))


def test_op_keeps_the_contract_of_torch_library(cuda_backend) -> None:
    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=torch.float16)

    op = cuda_backend.ops.pooled_query_attention.default
    x, k = tensor(2, 2, 11, 16), tensor(2, 2, 7, 16)
    geometry = (True, "conv", (1, 3, 3), (1, 1, 1), (0, 1, 1))
    norm = (tensor(16, 1, 1, 3, 3), tensor(16), None, 1e-6)
    tables = (None, tensor(2, 2, 16), tensor(5, 3, 16))
    torch.library.opcheck(op, (x, (1, 2, 5), k, k, *geometry, *norm, *tables, (1, 2, 3), 0.25, "no_cls"))
    bare = (None, None, None, None)
    torch.library.opcheck(op, (x, (1, 2, 5), k, k, True, "max", *geometry[2:], *bare, *bare[:3], (0, 0, 0), 1.0, "all"))


def test_op_has_no_gradient_and_says_what_has(cuda_backend) -> None:
    given = arguments(SMALL, Guarded(device=DEVICE), torch.float16)
    given["k"].requires_grad_()
    with pytest.raises(mvit_kernels.UnsupportedError, match="q pooled inside attention with gradient: inference alone"):
        ops.pooled_query_attention(**given)
    problem_free = {**given, "k": given["k"].detach()}
    with torch.no_grad():
        assert torch.equal(ops.pooled_query_attention(**given), ops.pooled_query_attention(**problem_free))


BAD = [
    ({"x": torch.zeros(2, 2, 41)}, ValueError, "x has shape (2, 2, 41), (B, H, N, D) is right"),
    ({"thw": (2, 4, 6)}, ValueError, "thw (2, 4, 6) has 48 tokens (+1 cls), but x has 41 tokens in dim 2"),
    ({"k": torch.zeros(1, 2, 7, 16)}, TypeError, "k has dtype torch.float32, torch.float16 like x is right"),
    ({"v": torch.zeros(1, 2, 6, 16).half()}, ValueError, "v has shape (1, 2, 6, 16), (1, 2, 7, 16) is right"),
    ({"grid_k": None}, ValueError, "grid_k is None, the key grid (Kt, Kh, Kw) is right with a table"),
    ({"grid_k": (1, 2, 2)}, ValueError, "grid_k (1, 2, 2) has 4 tokens (+1 cls), but k has 7 tokens in dim 2"),
    ({"table_h": torch.zeros(2, 3, 16)}, ValueError, "table_h has shape (2, 3, 16), (2, 2, 16) is right"),
    ({"residual": "some"}, ValueError, "residual is 'some', one of none, all, no_cls is right"),
    ({"scale": float("nan")}, ValueError, "scale is nan, a finite number is right"),
    ({"norm_eps": None}, ValueError, "norm_eps is None but a norm weight or bias was given"),
]


@pytest.mark.parametrize(("changed", "error", "text"), BAD)
def test_bad_input_is_named(changed: dict[str, Any], error: type[Exception], text: str) -> None:
    given = {**arguments(SMALL, Guarded(), torch.float16), **changed}
    with pytest.raises(error) as caught:
        ops.pooled_query_attention(**given)
    assert str(caught.value).startswith("pooled_query_attention: ") and text in str(caught.value)


REFUSED = [
    ({"kernel": (1, 1, 145), "padding": (0, 0, 72), "weight": (16, 1, 1, 1, 145)}, "no kernel for a window this large"),
    ({"x": torch.zeros(1, 2, 41, 16), "k": torch.zeros(1, 2, 7, 16)}, "no kernel for this dtype"),
    ({"x": torch.zeros(1, 2, 41, 136).half(), "k": torch.zeros(1, 2, 7, 136).half()}, "no kernel for this head dim"),
    ({"table_w": torch.zeros(5, 60, 16), "k": torch.zeros(1, 2, 61, 16).half(), "grid_k": (1, 1, 60)}, "entries"),
    ({"table_w": torch.zeros(5, 6, 16).double(), "grid_k": (1, 1, 6)}, "table_w has dtype float64"),
]


@pytest.mark.parametrize(("changed", "text"), REFUSED)
def test_what_there_is_no_kernel_for_reaches_none(changed: dict[str, Any], text: str, cuda_backend) -> None:
    base = {"x": torch.randn(1, 2, 41, 16).half(), "thw": (2, 4, 5), "k": torch.randn(1, 2, 7, 16).half()}
    base |= {"kernel": (1, 1, 1), "stride": (1, 1, 1), "padding": (0, 0, 0), "weight": (16, 1, 1, 1, 1)}
    base |= {"table_w": None, "grid_k": (1, 2, 3)}
    given = {**base, **changed}
    x, k = given["x"].to(DEVICE), given["k"].to(DEVICE)
    weight = torch.zeros(x.shape[3], *given["weight"][1:], device=DEVICE)
    table = None if given["table_w"] is None else given["table_w"].to(DEVICE)
    geometry = (True, "conv", given["kernel"], given["stride"], given["padding"])
    with pytest.raises(RuntimeError, match=f"pooled_query_attention: .*{text}"):
        cuda_backend.ops.pooled_query_attention(
            *(x, given["thw"], k, k, *geometry, weight, None, None, None, None, None, table, given["grid_k"], 1.0),
            "none",
        )


# ---- Whole layers ----


def layer_like(shape: LayerShape, grid: Grid, dim: int = 32) -> MultiHeadPoolingAttention:
    """The attention of a published block, two heads of its head dim, on another grid."""
    assert shape.pool_q is not None and shape.pool_kv is not None
    torch.manual_seed(0)
    layer = MultiHeadPoolingAttention(
        *(dim, 2 * shape.head_dim, grid),
        num_heads=2,
        has_cls_embed=shape.has_cls,
        mode=shape.pool_q.mode,
        kernel_q=shape.pool_q.kernel,
        stride_q=shape.pool_q.stride,
        kernel_kv=shape.pool_kv.kernel,
        stride_kv=shape.pool_kv.stride,
        rel_pos_spatial=shape.table_rows[1] > 0,
        rel_pos_temporal=shape.table_rows[0] > 0,
        residual_pooling=shape.residual != "none",
        residual=shape.residual if shape.residual != "none" else "no_cls",
        qkv_bias=True,
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn(parameter.shape))
    return layer.eval().requires_grad_(False)


def published() -> dict[str, LayerShape]:
    """One layer of each kind in the published models: geometry, rel-pos, cls, residual."""
    found = {}
    for _, shape in LAYERS:
        if shape.pool_q is None or shape.pool_kv is None:
            continue
        rel_pos = "".join(axis for axis, rows in zip("thw", shape.table_rows, strict=True) if rows)
        pooling = f"q {shape.pool_q} kv {shape.pool_kv}".replace(" ", "_")
        kind = f"{pooling}-D{shape.head_dim}-{rel_pos}-{shape.residual}-{'cls' if shape.has_cls else 'nocls'}"
        found.setdefault(kind, shape)
    return found


PUBLISHED = published()


def grid_for(shape: LayerShape) -> Grid:
    return min(shape.grid[0], 2), 9, 10


def tokens_of(shape: LayerShape, grid: Grid, dtype: torch.dtype, dim: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, int(shape.has_cls) + torch.Size(grid).numel(), dim, generator=generator).to(DEVICE, dtype)


def attended_by(call: Callable[[], Any]) -> list[str]:
    """The ops of attention and its pooling that ran, and what was remarked."""
    with backends.record() as log:
        call()
    names = [decision.problem.op for decision in log if decision.problem.op != "linear"]
    return [*names, *(remark.text for remark in log.remarks)]


V2 = PUBLISHED[next(kind for kind in PUBLISHED if "-thw-" in kind)]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_layers_are_as_exact_as_with_q_pooled_apart(kind: str, dtype: torch.dtype) -> None:
    shape = PUBLISHED[kind]
    grid = grid_for(shape)
    layer, x = layer_like(shape, grid).to(DEVICE, dtype), tokens_of(shape, grid, dtype)
    with torch.no_grad():
        with use_query_pooling("fused"), backends.record() as log:
            fused, fused_grid = layer(x, grid)
        with use_query_pooling("separate"):
            separate, separate_grid = layer(x, grid)
        with backends.use_backend("eager"):
            eager, _ = layer(x, grid)
            oracle, _ = layer.double()(x.double(), grid)
    assert [d.problem.op for d in log if d.problem.op != "linear"] == ["qkv_pool3d_norm", "pooled_query_attention"]
    assert fused_grid == separate_grid
    assert_within_rule(separate, eager, oracle)
    assert_within_rule(fused, eager, oracle)
    assert_within_rule(fused, separate, oracle)


def test_separate_and_training_run_the_ops_one_after_the_other() -> None:
    grid = grid_for(V2)
    layer, x = layer_like(V2, grid).to(DEVICE, torch.float16), tokens_of(V2, grid, torch.float16)
    apart = ["qkv_pool3d_norm", "decomposed_rel_pos", "pooling_attention"]
    with use_query_pooling("separate"):
        assert attended_by(lambda: layer(x, grid)) == apart
    with use_query_pooling("fused"):
        assert attended_by(lambda: layer(x, grid)) == ["qkv_pool3d_norm", "pooled_query_attention"]
        why = "q is pooled before attention, not in it: q pooled inside attention with gradient: inference alone"
        assert attended_by(lambda: layer(x.requires_grad_(), grid)) == [*apart, why]
        layer.rel_pos_h.requires_grad_()
        assert attended_by(lambda: layer(x.detach(), grid)) == [*apart, why]
        with torch.no_grad():
            assert attended_by(lambda: layer(x, grid)) == ["qkv_pool3d_norm", "pooled_query_attention"]


def test_float32_and_autocast_go_by_the_dtype_that_q_has() -> None:
    grid = grid_for(V2)
    layer, x = layer_like(V2, grid).to(DEVICE), tokens_of(V2, grid, torch.float32)
    with use_query_pooling("fused"), torch.no_grad():
        assert "float32: bfloat16 or float16" in attended_by(lambda: layer(x, grid))[-1]
        with torch.autocast(DEVICE, torch.bfloat16):
            assert attended_by(lambda: layer(x, grid)) == ["qkv_pool3d_norm", "pooled_query_attention"]


def test_automatic_choice_follows_the_model_and_explain_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = layer_like(V2, grid_for(V2)).to(DEVICE, torch.float16)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, grid_for(V2))[0]

    model, x = Model(), tokens_of(V2, grid_for(V2), torch.float16)
    monkeypatch.setattr(cuda, "multiprocessors", lambda: 108)
    text = str(mvit_kernels.explain_model(model, x))
    assert "attn\n  q is pooled before attention, not in it: fewer than two blocks of queries for each of 108" in text
    assert "pooled_query_attention" not in text
    monkeypatch.setattr(cuda, "multiprocessors", lambda: 2)
    text = str(mvit_kernels.explain_model(model, x))
    assert "q pooled inside attention: 0.2 MB less through memory (model)" in text
    assert "pooled before" not in text


def test_layers_that_do_not_pool_q_right_before_attention_are_left_as_they_are() -> None:
    grid = grid_for(V2)
    layer = layer_like(V2, grid).to(DEVICE, torch.float16)
    x = tokens_of(V2, grid, torch.float16)[:, 1:]
    described = dataclasses.replace(layer.describe(), has_cls=False)

    def host(tokens: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        return tokens, thw

    others = {
        "q not pooled": dataclasses.replace(described, pool_q=None),
        "host pooling": dataclasses.replace(described, pool_v=None, pool_k=HostPool(host)),
        "windows": dataclasses.replace(described, windows=Windows((9, 10), (2, 2)), rel_pos=None),
    }
    with use_query_pooling("fused"), torch.no_grad():
        for name, other in others.items():
            thw = (1, 9, 20) if name == "windows" else grid
            assert "pooled_query_attention" not in attended_by(lambda o=other, g=thw: mhpa.forward(o, x, g)), name


def test_a_compiled_layer_has_no_graph_break_and_holds_the_fused_op() -> None:
    grid = grid_for(V2)
    layer, x = layer_like(V2, grid).to(DEVICE, torch.float16), tokens_of(V2, grid, torch.float16)
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph.code)
        return graph

    with torch.no_grad(), use_query_pooling("fused"):
        expected, _ = layer(x, grid)
        compiled = torch.compile(lambda x: layer(x, grid)[0], backend=count, fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
    assert len(graphs) == 1 and "pooled_query_attention" in graphs[0]


def test_a_dynamic_batch_compiles_once_on_each_side_of_the_models_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "multiprocessors", lambda: 30)  # two blocks each, of which a sample has 4
    grid = grid_for(V2)
    layer = layer_like(V2, grid).to(DEVICE, torch.float16)
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append("pooled_query_attention" in graph.code)
        return graph

    with torch.no_grad():
        compiled = torch.compile(lambda x: layer(x, grid)[0], backend=count, fullgraph=True, dynamic=True)
        for batch in (11, 13, 17, 19):  # unlike every other size, or it would share their symbol
            x = tokens_of(V2, grid, torch.float16).expand(batch, -1, -1).contiguous()
            torch.testing.assert_close(compiled(x), layer(x, grid)[0])
    assert graphs == [False, True]


def test_an_unknown_way_is_named_with_the_known_ones() -> None:
    words = "query pooling 'inside' is not known: one of auto, fused, separate"
    with pytest.raises(ValueError, match=words), use_query_pooling("inside"):
        pass
    script = (
        "import torch; from mvit_kernels.modules import MultiHeadPoolingAttention\n"
        "layer = MultiHeadPoolingAttention(8, 8, (1, 2, 2), kernel_q=(1, 3, 3), stride_q=(1, 1, 1))\n"
        "layer(torch.zeros(1, 5, 8), (1, 2, 2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PATH": "", ENVIRONMENT_VARIABLE: "inside"}, capture_output=True, text=True
    )
    assert done.returncode and words in done.stderr


def test_asking_for_a_kernel_that_no_backend_has_is_remarked() -> None:
    grid = grid_for(V2)
    layer, x = layer_like(V2, grid), tokens_of(V2, grid, torch.float32).cpu()
    with backends.use_backend("eager"):
        with use_query_pooling("fused"):
            assert attended_by(lambda: layer(x, grid))[-1].endswith("not in it: no kernel for it on eager")
        assert attended_by(lambda: layer(x, grid)) == ["qkv_pool3d_norm", "decomposed_rel_pos", "pooling_attention"]
