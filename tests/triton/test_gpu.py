"""What only a GPU can show: autocast, CUDA graphs, torch.compile, offsets beyond 2^31, large published layers."""

from __future__ import annotations

import pytest
import torch

from mvit_kernels import ops, reference
from mvit_kernels.problem import Pool
from tests.numerics import assert_within_rule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none on this machine"),
]

POOL = Pool("conv", (3, 3, 3), (1, 2, 2), (1, 1, 1))


def layer(q: torch.Tensor, weight: torch.Tensor, norm: torch.Tensor, tables: list[torch.Tensor]) -> torch.Tensor:
    """Pooling, relative position and attention of one head group on a grid of 2 x 8 x 8."""
    grid = (2, 4, 4)
    pooled = ops.pool3d_norm(
        q, (2, 8, 8), POOL, has_cls=True, weight=weight, norm_weight=norm, norm_bias=norm, norm_eps=1e-6
    )
    t, h, w = tables
    rows = ops.decomposed_rel_pos(pooled, grid, grid, has_cls=True, table_t=t, table_h=h, table_w=w)
    return ops.pooling_attention(pooled, pooled, pooled, rel_pos=rows, grid_k=grid, has_cls=True, residual="no_cls")


def inputs(batch: int = 2, dtype: torch.dtype = torch.float16) -> tuple:
    torch.manual_seed(0)
    make = {"device": "cuda", "dtype": dtype}
    tables = [torch.randn(n, n, 96, **make) for n in (2, 4, 4)]
    return torch.randn(batch, 2, 129, 96, **make), torch.randn(96, 1, 3, 3, 3, **make), torch.randn(96, **make), tables


def test_torch_compile_takes_the_whole_graph_and_a_new_batch_needs_no_new_one() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    for batch in (5, 6, 9):  # unlike every other size, or it would share their symbol
        arguments = inputs(batch)
        torch.testing.assert_close(compiled(*arguments), layer(*arguments))
    assert counter.frame_count == 1


def test_a_cuda_graph_captures_forward_and_backward() -> None:
    q, weight, norm, tables = inputs()
    leaves = [t.requires_grad_() for t in (q, weight, norm, *tables)]

    def step() -> tuple[torch.Tensor, ...]:
        out = layer(q, weight, norm, tables)
        return out, *torch.autograd.grad(out.float().square().sum(), leaves)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_runs_with_float32_parameters(dtype: torch.dtype) -> None:
    q, weight, norm, tables = inputs(dtype=torch.float32)
    with torch.autocast("cuda", dtype):
        out = layer(q.to(dtype), weight, norm, tables)
    assert out.dtype == dtype and out.isfinite().all()


def test_offsets_beyond_two_to_the_31() -> None:
    # The last head's tokens begin more than 2^31 elements into the fused buffer.
    tokens, heads, dim = 60_000, 128, 96
    fused = torch.empty(3, tokens, heads, dim, device="cuda", dtype=torch.float16)
    q = fused[:, :, -2:].transpose(1, 2)
    assert q.storage_offset() + (q.shape[2] - 1) * q.stride(2) + 2 * q.stride(0) > 2**31 - 1
    q.copy_(torch.randn(q.shape, device="cuda", dtype=torch.float32))
    k = q[:, :, :64]
    last = q[:, :, -33:]
    out = ops.pooling_attention(q, k, k)[:, -33:]
    eager, _ = reference.pooling_attention(last, k, k, scale=dim**-0.5, has_cls=False)
    oracle, _ = reference.pooling_attention(last.double(), k.double(), k.double(), scale=dim**-0.5, has_cls=False)
    assert_within_rule(out, eager, oracle)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_layer_of_full_size_matches_float64(dtype: torch.dtype) -> None:
    q, k = (torch.randn(1, 1, n, 96, device="cuda").to(dtype) for n in (25089, 393))
    rows = torch.randn(1, 1, 25089, 22, device="cuda")
    options = {"grid_k": (8, 7, 7), "scale": 96**-0.5, "has_cls": True, "residual": "no_cls"}
    out = ops.pooling_attention(q, k, k, rel_pos=rows, **options)
    eager, _ = reference.pooling_attention(q, k, k, rel_pos=rows, **options)
    oracle, _ = reference.pooling_attention(q.double(), k.double(), k.double(), rel_pos=rows.double(), **options)
    assert_within_rule(out, eager, oracle)
