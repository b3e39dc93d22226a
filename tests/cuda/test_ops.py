"""The public ops on the CUDA backend, bindings included: on a GPU where there is one, else in the emulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mvit_kernels import _library, backends, ops, reference
from mvit_kernels.backends import cuda
from mvit_kernels.backends.cuda import CudaBackend
from mvit_kernels.modules import MultiHeadPoolingAttention
from mvit_kernels.problem import Grid
from tests.cuda.conftest import DEVICE
from tests.cuda.emulated import Aligned
from tests.cuda.kernel_cases import DTYPES, ODD_POOLING
from tests.numerics import Guarded, assert_gradients_within_rule, assert_within_rule
from tests.ops import attention_cases
from tests.ops.attention_cases import AttentionCase
from tests.ops.pool_cases import K3, S1, PoolCase, pool

ATTENTION = [
    AttentionCase((2, 5, 7), (2, 3, 4)),
    AttentionCase((1, 3, 5), (1, 13, 11), head_dim=80, residual="all"),
    AttentionCase((1, 4, 4), (1, 3, 3), head_dim=72, heads=3, batch=2, has_cls=False, rel_pos=False),
    AttentionCase((1, 1, 1), (1, 1, 1), head_dim=8, heads=1),
    AttentionCase((2, 3, 3), (2, 3, 3), batch=0),
]
POOLING = [
    PoolCase((2, 5, 7), pool("conv", K3, (1, 2, 2))),
    PoolCase((2, 7, 7), pool("conv", K3, S1), heads=3, head_dim=24, per_channel=True),
    PoolCase((2, 5, 7), pool("avg", K3, (1, 2, 2)), norm=False),
    PoolCase((1, 6, 6), pool("max", (1, 3, 3), (1, 2, 2)), heads=1, head_dim=192, norm=False),
    PoolCase((2, 5, 5), pool("conv", K3, S1), batch=0),
]
REL_POS: list[tuple[Grid, Grid, int]] = [((2, 5, 7), (2, 3, 4), 96), ((1, 1, 1), (1, 1, 1), 8)]
if DEVICE == "cuda":  # the emulation has tests of the kernels alone, for these
    ATTENTION += [case for case in attention_cases.ODD_CASES if case.head_dim % 8 == 0]
    POOLING += ODD_POOLING
    REL_POS += [((3, 4, 4), (1, 7, 7), 72), ((1, 7, 3), (4, 2, 14), 128), ((8, 14, 14), (8, 7, 7), 96)]

pytestmark = [pytest.mark.usefixtures("cuda_backend", "poisoned_memory")]

Call = Callable[..., Any]
Case = tuple[Call, list[Tensor]]


def pooling(case: PoolCase, dtype: torch.dtype, make: Guarded) -> Case:
    inputs = {name: value for name, value in case.inputs(make, dtype).items() if value is not None}

    def run(which: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip([*inputs][1:], parameters, strict=True))
        return which.pool3d_norm(x, case.thw, case.pool, **named, **case.options)

    return run, [*inputs.values()]


def attention(case: AttentionCase, dtype: torch.dtype, make: Guarded) -> Case:
    inputs = {name: value for name, value in case.inputs(make, dtype).items() if value is not None}

    def run(which: Any, *tensors: Tensor) -> Tensor:
        out = which.pooling_attention(**dict(zip(inputs, tensors, strict=True)), **case.options)
        return out if isinstance(out, Tensor) else out[0]

    return run, [*inputs.values()]


def rel_pos(case: tuple[Grid, Grid, int], dtype: torch.dtype, make: Guarded) -> Case:
    grid_q, grid_k, dim = case
    q = make(2, 3, 1 + grid_q[0] * grid_q[1] * grid_q[2], dim, dtype=dtype)
    tables = [make(nq, nk, dim, dtype=dtype) for nq, nk in zip(grid_q, grid_k, strict=True)]

    def run(which: Any, q: Tensor, t: Tensor, h: Tensor, w: Tensor) -> Tensor:
        return which.decomposed_rel_pos(q, grid_q, grid_k, has_cls=True, table_t=t, table_h=h, table_w=w)

    return run, [q, *tables]


CASES = [
    *(pytest.param(pooling, case, dtype, id=f"{case}-{dtype}") for case in POOLING for dtype in DTYPES),
    *(pytest.param(attention, case, dtype, id=f"{case}-{dtype}") for case in ATTENTION for dtype in DTYPES),
    *(pytest.param(rel_pos, case, dtype, id=f"rel_pos-{case}-{dtype}") for case in REL_POS for dtype in DTYPES),
]


def doubled(tensors: list[Tensor]) -> list[Tensor]:
    return [t.double() for t in tensors]


@pytest.mark.parametrize("layout", [Aligned, Guarded])
@pytest.mark.parametrize(("make", "case", "dtype"), CASES)
def test_op_matches_float64_whatever_the_alignment(make, case, dtype, layout: type[Guarded]) -> None:
    memory = layout(device=DEVICE)
    run, inputs = make(case, dtype, memory)
    out = run(ops, *inputs)
    memory.assert_untouched()
    oracle = run(reference, *doubled(inputs))
    assert_within_rule(out, run(reference, *inputs), oracle, dtype=dtype)


@pytest.mark.parametrize("layout", [Aligned, Guarded])
@pytest.mark.parametrize(("make", "case", "dtype"), CASES)
def test_gradients_match_float64_whatever_the_alignment(make, case, dtype, layout: type[Guarded]) -> None:
    memory = layout(device=DEVICE)
    run, inputs = make(case, dtype, memory)
    like = run(reference, *inputs)
    grad = layout(1, DEVICE)(*like.shape, dtype=like.dtype)

    def gradients(which: Any, tensors: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        return torch.autograd.grad(run(which, *leaves), leaves, grad)

    kernel, eager = gradients(ops, inputs, grad), gradients(reference, inputs, grad)
    memory.assert_untouched()
    oracle = gradients(reference, doubled(inputs), grad.double())
    for k, e, o in zip(kernel, eager, oracle, strict=True):
        assert_within_rule(k, e, o, "gradient", dtype)


LAYER = {"kernel_q": (3, 3, 3), "stride_q": (1, 2, 2), "kernel_kv": (3, 3, 3), "stride_kv": (1, 4, 4), "qkv_bias": True}
LAYERS = {
    "MViT v1": {**LAYER, "stride_q": (1, 1, 1), "stride_kv": (1, 8, 8)},
    "MViT v2": {**LAYER, "rel_pos_spatial": True, "rel_pos_temporal": True, "residual_pooling": True},
    "max pooling": {**LAYER, "mode": "max", "residual_pooling": True, "residual": "all"},
}


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_whole_layer_matches_float64(name: str, dtype: torch.dtype, train: bool) -> None:
    check_layer(name, dtype, train)


@pytest.mark.parametrize("seed", range(1, 9))
def test_gradients_of_a_layer_without_norms_match_float64_in_float32(seed: int) -> None:
    """Its scores are large, and a softmax makes of an error of a large score one of the probability."""
    check_layer("max pooling", torch.float32, train=True, seed=seed)


def check_layer(name: str, dtype: torch.dtype, train: bool, seed: int = 0) -> None:
    thw, generator = (2, 8, 8), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layer = MultiHeadPoolingAttention(32, 96, thw, num_heads=2, has_cls_embed=True, **LAYERS[name])
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn(parameter.shape, generator=generator))
    layer = layer.to(DEVICE, dtype).requires_grad_(train)
    x = torch.randn(2, 1 + 2 * 8 * 8, 32, generator=generator).to(DEVICE, dtype).requires_grad_(train)

    def results(backend: str, layer: MultiHeadPoolingAttention, x: Tensor) -> list[Tensor]:
        with backends.use_backend(backend), backends.record() as log:
            out, _ = layer(x, thw)
        assert {decision.backend for decision in log} == {backend}
        return [out, *(torch.autograd.grad(out.square().sum(), [x, *layer.parameters()]) if train else ())]

    kernel, eager = results("cuda", layer, x), results("eager", layer, x)
    oracle = results("eager", layer.double(), x.detach().double().requires_grad_(train))
    assert_within_rule(kernel[0], eager[0], oracle[0], dtype=dtype)
    gradients = list(zip(kernel[1:], eager[1:], oracle[1:], strict=True))
    scale = max((float(o.abs().max()) for _, _, o in gradients), default=0.0)
    # A softmax does not see what is added to every key: the gradient of the keys' norm bias is zero, and has no scale.
    zero = [float(o.abs().max()) < 1e-12 * scale for _, _, o in gradients]
    for (k, e, _), is_zero in zip(gradients, zero, strict=True):
        assert not is_zero or k.abs().max() <= 3 * e.abs().max() + torch.finfo(dtype).eps * scale
    assert_gradients_within_rule(g for g, is_zero in zip(gradients, zero, strict=True) if not is_zero)
    assert sum(zero) == (train and "mode" not in LAYERS[name])


def op(backend: CudaBackend, name: str) -> Any:
    return getattr(backend.ops, name).default


def test_ops_keep_the_contract_of_torch_library(cuda_backend: CudaBackend) -> None:
    def tensor(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=dtype, requires_grad=True)

    q, rows = tensor(1, 2, 5, 16), tensor(1, 2, 5, 5, dtype=torch.float32)
    for tf32 in (False, True):
        arguments = (q, q, q, rows, (1, 2, 2), 0.25, True, "all", tf32)
        torch.library.opcheck(op(cuda_backend, "pooling_attention"), arguments)
    q, table = (tensor(*shape) for shape in ((1, 2, 5, 16), (2, 2, 16)))
    arguments = (q, (1, 2, 2), (1, 2, 2), True, None, table, table)
    torch.library.opcheck(op(cuda_backend, "decomposed_rel_pos"), arguments)
    x, weight, norm = (tensor(*shape) for shape in ((1, 2, 5, 16), (16, 1, 1, 2, 2), (16,)))
    arguments = (x, (1, 2, 2), True, "conv", (1, 2, 2), (1, 1, 1), (0, 0, 0), weight, norm, norm, 1e-6)
    torch.library.opcheck(op(cuda_backend, "pool3d_norm"), arguments)


def test_a_compiled_layer_has_no_graph_break() -> None:
    def layer(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
        geometry = pool("conv", (1, 1, 1), (1, 1, 1))
        q = ops.pool3d_norm(x, (1, 2, 3), geometry, has_cls=True, weight=weight, norm_eps=1e-6)
        rows = ops.decomposed_rel_pos(q, (1, 2, 3), (1, 2, 3), has_cls=True, table_w=table)
        return ops.pooling_attention(q, q, q, rel_pos=rows, grid_k=(1, 2, 3), has_cls=True)

    shapes = ((2, 2, 7, 16), (16, 1, 1, 1, 1), (3, 3, 16))
    inputs = [torch.randn(*shape, device=DEVICE, dtype=torch.float16) for shape in shapes]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), layer(*inputs))


def test_the_choice_is_traced_with_all_it_asks_of_a_gpu(cuda_backend: CudaBackend, monkeypatch) -> None:
    monkeypatch.setattr(_library, "cuda_load_error", lambda: None)
    monkeypatch.setattr(_library, "cuda_architectures", lambda: ("80", "90a", "90+PTX"))
    monkeypatch.setattr(cuda, "device_capability", lambda: (9, 0))
    monkeypatch.setattr(type(cuda_backend), "unavailable", CudaBackend.unavailable)

    def attend(x: Tensor) -> Tensor:
        return ops.pooling_attention(x, x, x)

    x = torch.randn(1, 1, 4, 16, device=DEVICE, dtype=torch.float16)
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), attend(x))


def called_directly(backend: CudaBackend, name: str, **changed: Any) -> Any:
    """An op below the checks of the public function."""
    x = torch.randn(1, 2, 5, 16, device=DEVICE, dtype=torch.float16)
    grids = {"grid_q": (1, 2, 2), "grid_k": (1, 2, 2), "has_cls": True}
    table, weight = torch.randn(2, 2, 16, device=DEVICE), torch.randn(16, 1, 1, 2, 2, device=DEVICE)
    attention = {"q": x, "k": x, "v": x, "rel_pos": None, "grid_k": (1, 2, 2), "scale": 1.0, "has_cls": True}
    geometry = {"thw": (1, 2, 2), "has_cls": True, "mode": "conv", "kernel": (1, 2, 2), "stride": (1, 1, 1)}
    norm = {"weight": weight, "norm_weight": None, "norm_bias": None, "norm_eps": 1e-6}
    arguments = {
        "pooling_attention": {**attention, "residual": "none"},
        "decomposed_rel_pos": {"q": x, **grids, "table_t": None, "table_h": table, "table_w": table},
        "pool3d_norm": {"x": x, **geometry, "padding": (0, 0, 0), **norm},
    }[name]
    return op(backend, name)(**{**arguments, **changed})


ROWS = torch.zeros(1, 2, 5, 202)
WIDE = torch.zeros(1, 2, 5, 136, dtype=torch.float16)
ERRORS = [
    (
        "pooling_attention",
        {n: torch.zeros(1, 2, 5, 12).half() for n in "qkv"},
        "q .* head dim 12, .* multiple of 8",
    ),
    ("pooling_attention", {n: WIDE for n in "qkv"}, "q has head dim 136, it must be at most 128"),
    ("pooling_attention", {n: torch.zeros(1, 2, 5, 16).double() for n in "qkv"}, "no kernel for this dtype"),
    (
        "pooling_attention",
        {
            **{n: torch.zeros(1, 2, 201, 16).half() for n in "kv"},
            "rel_pos": ROWS,
            "grid_k": (1, 1, 200),
        },
        "rel_pos has 202 entries a row, there must be at most 190",
    ),
    ("pool3d_norm", {"x": WIDE, "weight": torch.zeros(136, 1, 1, 2, 2)}, "x has head dim 136, with a norm"),
    ("pool3d_norm", {"norm_weight": torch.zeros(16).double()}, "norm_weight has dtype float64, it must be float32"),
    (
        "pool3d_norm",
        {"kernel": (1, 1, 191), "padding": (0, 1, 100), "weight": torch.zeros(16, 1, 1, 1, 191)},
        "kernel has 191 taps, it must have at most 176",
    ),
    ("decomposed_rel_pos", {"table_h": torch.zeros(2, 2, 16).double()}, "table_h has dtype float64, it must be"),
    ("decomposed_rel_pos", {"q": torch.zeros(1, 2, 5, 16).double()}, "no kernel for this dtype"),
]


@pytest.mark.parametrize(("name", "changed", "message"), ERRORS)
def test_bad_input_reaches_no_kernel(name: str, changed: dict[str, Any], message: str, cuda_backend) -> None:
    changed = {key: value.to(DEVICE) if isinstance(value, Tensor) else value for key, value in changed.items()}
    called_directly(cuda_backend, name)
    with pytest.raises(RuntimeError, match=f"{name}: .*{message}"):
        called_directly(cuda_backend, name, **changed)


@pytest.mark.parametrize(("setting", "expected"), [("highest", False), ("high", True), ("medium", True)])
def test_tf32_is_pytorchs_own_setting(setting: str, expected: bool, cuda_backend: CudaBackend) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert cuda_backend.tf32(torch.float32) is expected
        assert not cuda_backend.tf32(torch.float16)
    finally:
        torch.set_float32_matmul_precision(before)


def test_tf32_follows_pytorchs_new_setting_too(cuda_backend: CudaBackend) -> None:
    try:
        for name, expected in (("tf32", True), ("ieee", False)):
            torch.backends.cuda.matmul.fp32_precision = name
            assert cuda_backend.tf32(torch.float32) is expected
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


def test_a_compiled_graph_follows_a_change_of_the_tf32_setting(cuda_backend: CudaBackend) -> None:
    seen = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Call:
        seen.append([node.args[-1] for node in graph.graph.nodes if "pooling_attention" in str(node.target)])
        return graph

    def scores(x: Tensor) -> Tensor:
        return cuda_backend.ops.pooling_attention(
            x, x, x, None, (0, 0, 0), 1.0, False, "none", cuda_backend.tf32(torch.float32)
        )[0]

    x = torch.randn(1, 1, 4, 16, device=DEVICE, dtype=torch.float16)
    before = torch.get_float32_matmul_precision()
    compiled = torch.compile(scores, backend=record, fullgraph=True)
    try:
        for setting in ("highest", "high", "highest"):
            torch.set_float32_matmul_precision(setting)
            compiled(x)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [[False], [True]]
