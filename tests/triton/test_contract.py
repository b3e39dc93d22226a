"""What callers rely on around the kernels: the op contract, torch.compile, the choice of the backend, its reasons."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mvit_kernels import backends, explain, ops, use_backend
from mvit_kernels.backends import triton as triton_backend
from mvit_kernels.backends.triton import TritonBackend
from mvit_kernels.problem import AttentionProblem, Pool
from tests.triton.conftest import DEVICE

GRID = (1, 2, 3)
PROBLEM = AttentionProblem("cuda", torch.float16, 1, 2, 96, 5, 5, False, False, "none", False)


def layer(x: torch.Tensor, weight: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    pool = Pool("conv", (1, 1, 1), (1, 1, 1), (0, 0, 0))
    q = ops.pool3d_norm(x, GRID, pool, has_cls=True, weight=weight, norm_eps=1e-6)
    rows = ops.decomposed_rel_pos(q, GRID, GRID, has_cls=True, table_w=table)
    return ops.pooling_attention(q, q, q, rel_pos=rows, grid_k=GRID, has_cls=True, residual="no_cls")


def inputs(batch: int) -> tuple[torch.Tensor, ...]:
    shapes = ((batch, 2, 7, 16), (16, 1, 1, 1, 1), (3, 3, 16))
    return tuple(torch.randn(*shape, device=DEVICE).requires_grad_() for shape in shapes)


def test_a_compiled_graph_has_no_break_and_serves_every_batch() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]):
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, backend=count, fullgraph=True, dynamic=True)
    for batch in (5, 6, 9):  # unlike every other size, or it would share their symbol
        arguments = inputs(batch)
        torch.testing.assert_close(compiled(*arguments), layer(*arguments))
    assert len(graphs) == 1
    assert "mvit_kernels_triton.pooling_attention" in graphs[0].code


def test_a_compiled_backward_gives_the_gradients_of_the_plain_one() -> None:
    arguments = inputs(2)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    plain = torch.autograd.grad(layer(*arguments).square().sum(), arguments)
    for a, b in zip(torch.autograd.grad(compiled(*arguments).square().sum(), arguments), plain, strict=True):
        torch.testing.assert_close(a, b)


def test_ops_keep_the_contract_of_torch_library() -> None:
    q = torch.randn(1, 2, 5, 16, device=DEVICE, requires_grad=True)
    rows = torch.randn(1, 2, 5, 5, device=DEVICE, requires_grad=True)
    attention = torch.ops.mvit_kernels_triton.pooling_attention.default
    torch.library.opcheck(attention, (q, q, q, rows, (1, 2, 2), 0.25, True, "all"))
    table = torch.randn(2, 2, 16, device=DEVICE, requires_grad=True)
    rel_pos = torch.ops.mvit_kernels_triton.decomposed_rel_pos.default
    torch.library.opcheck(rel_pos, (q, (1, 2, 2), (1, 2, 2), True, None, table, table))
    weight, norm = (torch.randn(*s, device=DEVICE, requires_grad=True) for s in ((16, 1, 1, 2, 2), (16,)))
    pool = torch.ops.mvit_kernels_triton.pool3d_norm.default
    torch.library.opcheck(pool, (q, (1, 2, 2), True, "conv", (1, 2, 2), (1, 1, 1), (0, 0, 0), weight, norm, norm, 1e-6))


def test_it_is_chosen_before_the_cpu_kernels_and_after_cuda() -> None:
    names = [name for name in backends.backend_names() if name != "cuda"]
    assert names == ["triton", "cpu", "eager"]


@pytest.mark.skipif(DEVICE == "cuda", reason="this machine has a GPU")
def test_without_a_gpu_cpu_tensors_do_not_go_to_the_interpreter_by_themselves() -> None:
    code = (
        "import torch; from mvit_kernels import ops, backends; x = torch.zeros(1, 1, 4, 8)\n"
        "with backends.record() as log: ops.pooling_attention(x, x, x)\n"
        "assert log[0].backend != 'triton', log"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("capability", "reason"),
    [((7, 5), "this GPU is sm_75: sm_80 or newer"), ((8, 0), None), ((12, 0), None)],
)
def test_an_old_gpu_is_a_reason(capability, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    token = triton_backend._interpreting.set(False)
    try:
        assert TritonBackend().unavailable() == reason
    finally:
        triton_backend._interpreting.reset(token)


def test_no_triton_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "_HAS_TRITON", False)
    assert "triton is not installed" in explain(PROBLEM)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """A GPU that is not there; nothing is launched on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    token = triton_backend._interpreting.set(False)
    triton_backend._cannot_compile.cache_clear()
    yield
    triton_backend._interpreting.reset(token)
    triton_backend._cannot_compile.cache_clear()


def no_module(name: str):
    raise ImportError("libtriton.so: undefined symbol\nmore")


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (("version", lambda name: "3.1.0"), "triton 3.1.0 is too old: 3.6 or newer"),
        (("import_module", no_module), "triton can't be imported: ImportError: libtriton.so: undefined symbol"),
        (("shutil.which", lambda program: None), "triton finds no C compiler: install gcc or clang, or set CC"),
    ],
    ids=["version", "import", "compiler"],
)
def test_a_triton_that_cannot_compile_here_is_a_reason(fake, reason: str, gpu, monkeypatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(f"mvit_kernels.backends.triton.{fake[0]}", fake[1])
    assert TritonBackend().unavailable() == reason
    assert "triton" not in backends.available()
    assert reason in explain(PROBLEM)
    assert backends.reasons_not_supported(PROBLEM, "triton") == [reason]
    with backends.use_backend("triton"), pytest.raises(backends.UnsupportedError, match="triton"):
        backends.select(PROBLEM)


def test_a_c_compiler_that_is_not_there_is_a_reason(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "CC is 'no-such-compiler', which is not a program" in str(TritonBackend().unavailable())
    triton_backend._cannot_compile.cache_clear()
    monkeypatch.setenv("CC", sys.executable)
    assert TritonBackend().unavailable() is None


@pytest.mark.parametrize(
    ("target", "fake", "reason"),
    [
        ("mvit_kernels.backends.triton.shutil.which", lambda program: None, "triton finds no C compiler"),
        ("torch.cuda.get_device_capability", lambda device=None: (7, 5), "this GPU is sm_75: sm_80 or newer"),
        ("mvit_kernels.backends.triton._HAS_TRITON", False, "triton is not installed"),
    ],
    ids=["compiler", "old GPU", "no triton"],
)
def test_the_next_backend_is_chosen_where_triton_cannot_run(target: str, fake, reason: str, gpu, monkeypatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(backends.registry, "_FROM_ENVIRONMENT", None)
    token = backends.registry._chosen.set(None)
    try:
        monkeypatch.setattr("mvit_kernels.backends.triton.shutil.which", lambda program: "/usr/bin/" + program)
        names = [name for name in backends.backend_names() if name != "cuda"]
        assert "triton: chosen" in explain(PROBLEM) or backends.select(PROBLEM).name == "cuda"
        triton_backend._cannot_compile.cache_clear()
        monkeypatch.setattr(target, fake)
        assert reason in explain(PROBLEM)
        assert backends.select(PROBLEM).name in ("cuda", *names[names.index("triton") + 1 :])
    finally:
        backends.registry._chosen.reset(token)


def test_float64_and_a_wide_head_are_reasons() -> None:
    reasons = backends.reasons_not_supported(
        AttentionProblem(DEVICE, torch.float64, 1, 2, 192, 5, 5, False, False, "none", False), "triton"
    )
    assert reasons == ["dtype torch.float64: float32, bfloat16 or float16", "head dim 192: at most 128"]
    with use_backend("triton"), pytest.raises(backends.UnsupportedError, match="float64"):
        x = torch.zeros(1, 1, 2, 16, dtype=torch.float64, device=DEVICE)
        ops.pooling_attention(x, x, x)
