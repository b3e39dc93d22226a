"""Why the CUDA backend does not run a problem: every reason, by fakes of what this machine lacks."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from mvit_kernels import _library, backends, models
from mvit_kernels.backends import query_pooling_model
from mvit_kernels.backends.cuda import (
    MAX_QUERY_ROW,
    MAX_QUERY_TAPS,
    CudaBackend,
    max_row,
    max_taps,
    unsupported_architecture,
)
from mvit_kernels.problem import (
    AttentionProblem,
    LinearProblem,
    Pool,
    PooledQueryProblem,
    PoolProblem,
    Problem,
    QkvPoolProblem,
)

ATTENTION = AttentionProblem("cuda", torch.float16, 1, 2, 96, 5, 5, True, False, "none", False, rel_pos_entries=30)
POOL = PoolProblem("cuda", torch.float32, 1, 2, 96, (2, 4, 4), True, Pool("conv", *[(3, 3, 3)] * 3), True, False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that has loaded and an sm_90 GPU."""
    monkeypatch.setattr(_library, "cuda_load_error", lambda: None)
    monkeypatch.setattr(_library, "cuda_architectures", lambda: ("80", "90", "90+PTX"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


def test_cuda_is_not_started_for_a_problem_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object) -> None:
        raise AssertionError("a CPU tensor asks about the GPU")

    monkeypatch.setattr(_library, "cuda_load_error", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", started)
    monkeypatch.setattr(torch.cuda, "get_device_capability", started)
    assert reasons(dataclasses.replace(ATTENTION, device="cpu")) == ["device cpu: cuda"]


def reasons(problem: Problem) -> list[str]:
    return CudaBackend().reasons(problem)


@pytest.mark.parametrize("problem", [ATTENTION, POOL, QkvPoolProblem((POOL, POOL))], ids=lambda problem: problem.op)
def test_nothing_speaks_against_a_problem_it_has_kernels_for(gpu, problem: Problem) -> None:
    assert reasons(problem) == []
    assert backends.select(problem).name == "cuda"
    assert backends.label("cuda") == "cuda (sm_90)"


def test_a_library_that_does_not_load_is_a_reason_in_the_loaders_words(gpu, monkeypatch) -> None:
    words = "the CUDA library could not be loaded: libcudart.so.13: cannot open shared object file"
    monkeypatch.setattr(_library, "cuda_load_error", lambda: words)
    assert reasons(ATTENTION) == [words]
    assert words in backends.explain(ATTENTION)


def test_no_gpu_is_a_reason(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reasons(ATTENTION) == ["torch sees no CUDA GPU on this machine"]


@pytest.mark.parametrize(
    ("capability", "architectures", "reason"),
    [
        ((7, 5), ("80",), "this GPU is sm_75: sm_80 or newer"),
        ((8, 0), ("80", "90"), None),
        ((8, 9), ("80",), None),
        ((8, 0), ("86", "90"), "the CUDA library was built for sm_86, sm_90; this GPU is sm_80"),
        ((9, 0), ("80", "86"), "the CUDA library was built for sm_80, sm_86; this GPU is sm_90"),
        ((9, 0), ("80", "86+PTX"), None),
        ((8, 0), ("86+PTX",), "the CUDA library was built for sm_86+PTX; this GPU is sm_80"),
        ((9, 0), ("90a",), None),
        ((10, 0), ("90a", "90a+PTX"), "the CUDA library was built for sm_90a, sm_90a+PTX; this GPU is sm_100"),
        ((10, 3), ("100f",), None),
        ((12, 1), ("100", "120"), None),
        ((12, 0), (), "the CUDA library was built for no architecture; this GPU is sm_120"),
    ],
)
def test_an_architecture_without_code_is_a_reason(capability, architectures, reason: str | None) -> None:
    assert unsupported_architecture(capability, architectures) == reason


@pytest.mark.parametrize(
    ("problem", "changed", "reason"),
    [
        (ATTENTION, {"device": "cpu"}, "device cpu: cuda"),
        (ATTENTION, {"dtype": torch.float64}, "dtype torch.float64: float32, bfloat16 or float16"),
        (ATTENTION, {"head_dim": 20}, "head dim 20: a multiple of 8"),
        (ATTENTION, {"head_dim": 136}, "head dim 136: at most 128"),
        (ATTENTION, {"rel_pos_entries": 191}, "rel-pos rows of 191 entries: at most 190"),
        (ATTENTION, {"rel_pos_entries": 151, "dtype": torch.float32}, "rel-pos rows of 151 entries: at most 150"),
        (
            ATTENTION,
            {"rel_pos_entries": 65, "needs_grad": True},
            "rel-pos rows of 65 entries with gradient: at most 64",
        ),
        (
            ATTENTION,
            {"rel_pos_entries": 43, "dtype": torch.float32, "needs_grad": True},
            "rel-pos rows of 43 entries with gradient: at most 42",
        ),
        (POOL, {"head_dim": 136}, "head dim 136 with a norm: at most 128"),
        (POOL, {"pool": Pool("conv", (1, 1, 177), (1, 1, 1), (0, 0, 88))}, "conv kernel of 177 taps: at most 176"),
    ],
)
def test_what_there_is_no_kernel_for_is_a_reason(gpu, problem: Problem, changed: dict, reason: str) -> None:
    assert reasons(dataclasses.replace(problem, **changed)) == [reason]


def test_training_with_rows_too_long_goes_to_triton_and_says_why(gpu) -> None:
    problem = dataclasses.replace(ATTENTION, rel_pos_entries=65, needs_grad=True)
    with backends.record() as log:
        backends.select(problem)
    assert log[0].backend == "triton"
    assert log[0].notes == ("not cuda: rel-pos rows of 65 entries with gradient: at most 64",)
    assert "cuda: no, rel-pos rows of 65 entries with gradient: at most 64" in backends.explain(problem)


def test_a_branch_of_three_is_looked_at_too(gpu) -> None:
    wide = dataclasses.replace(POOL, pool=Pool("conv", (1, 1, 177), (1, 1, 1), (0, 0, 88)))
    assert reasons(QkvPoolProblem((POOL, wide))) == ["conv kernel of 177 taps: at most 176"]


def test_pooling_without_a_norm_takes_any_number_of_channels(gpu) -> None:
    assert reasons(dataclasses.replace(POOL, norm=False, head_dim=768)) == []


def test_projections_run_on_pytorchs_own_kernels_and_say_so(gpu) -> None:
    problem = LinearProblem("cuda", torch.float16, 8, 96, 288, True, False, "none", True)
    assert reasons(problem) == []
    assert "PyTorch's own kernel" in backends.explain(problem)


def test_limits_are_those_of_the_kernels() -> None:
    header = (Path(__file__).parents[2] / "csrc" / "common" / "limits.h").read_text()
    conv, rest = map(int, re.search(r"PoolMode::conv \? (\d+) : (\d+);", header).groups())
    assert (max_taps("conv"), max_taps("avg"), max_taps("max")) == (conv, rest, rest)
    found = re.search(r"f32 \? (\d+) : head_dim <= (\d+) \? (\d+) : (\d+);", header)
    half, dim, narrow, wide = map(int, found.groups())
    assert max_row(torch.float16, 128, False) == half
    assert (max_row(torch.float32, dim, False), max_row(torch.float32, dim + 1, False)) == (narrow, wide)
    assert number_in("pooled_query.h", "kMaxQueryTaps") == MAX_QUERY_TAPS
    assert number_in("attention_tiles.h", "kMaxProductEntries") == MAX_QUERY_ROW
    assert number_in("pool_tiles.h", "kPoolStrip") == query_pooling_model.STRIP


def number_in(header: str, name: str) -> int:
    text = (Path(__file__).parents[2] / "csrc" / "common" / header).read_text()
    return int(re.search(rf"constexpr int(?:64_t)? {name} = (\d+);", text)[1])


QUERIES = PooledQueryProblem(
    dataclasses.replace(POOL, dtype=torch.bfloat16, pool=Pool("conv", (3, 3, 3), (1, 1, 1), (1, 1, 1))),
    AttentionProblem("cuda", torch.bfloat16, 1, 2, 96, 33, 9, True, True, "no_cls", False, rel_pos_entries=6),
)


@pytest.mark.parametrize(
    ("of_pool", "of_attention", "reason"),
    [
        ({}, {}, None),
        ({}, {"needs_grad": True}, "q pooled inside attention with gradient: inference alone"),
        ({}, {"dtype": torch.float32}, "q pooled inside attention in float32: bfloat16 or float16"),
        ({}, {"rel_pos_entries": 49}, "rel-pos rows of 49 entries made inside attention: at most 48"),
        ({}, {"head_dim": 136}, "head dim 136: at most 128"),
        (
            {"pool": Pool("max", (1, 1, 145), (1, 1, 1), (0, 0, 72))},
            {},
            "a window of 145 taps inside attention: at most 144",
        ),
    ],
)
def test_why_q_is_not_pooled_inside_attention(gpu, of_pool: dict, of_attention: dict, reason: str | None) -> None:
    problem = PooledQueryProblem(
        dataclasses.replace(QUERIES.pool, **of_pool), dataclasses.replace(QUERIES.attention, **of_attention)
    )
    assert reasons(problem) == ([] if reason is None else [reason])
    assert all(backends.reasons_not_supported(problem, name) for name in ("cpu", "triton"))
    assert backends.reasons_not_supported(problem, "eager") == []


def test_model_of_query_pooling_wants_full_multiprocessors_and_fewer_bytes() -> None:
    def why(model: str, block: int, batch: int, multiprocessors: int = 132) -> str | None:
        layer = models.layer_shapes(model)[block]
        sizes = ("cuda", torch.bfloat16, batch, layer.heads, layer.head_dim)
        rel_pos = any(layer.table_rows)
        return query_pooling_model.reason_to_pool_before(
            PooledQueryProblem(
                PoolProblem(*sizes, layer.grid, layer.has_cls, layer.pool_q, True, False),
                AttentionProblem(
                    *(*sizes, layer.num_q, layer.num_kv, rel_pos, layer.has_cls, layer.residual, False),
                    rel_pos_entries=sum(layer.grid_kv) if rel_pos else 0,
                ),
            ),
            multiprocessors,
        )

    assert why("mvit_v2_s_16x4", 4, batch=8) is None
    few = "fewer than two blocks of queries for each of 132 multiprocessors (model)"
    assert why("mvit_v2_s_16x4", 4, batch=1) == few
    assert why("mvit_v2_s_16x4", 4, batch=1, multiprocessors=26) is None
    # A window of stride 2 is read again more; without relative position there is less to save.
    assert why("mvit_v2_s_16x4", 1, batch=8) is None
    assert why("mvit_v1_b_16x4", 1, batch=8) == (
        "it saves 384 bytes a query and reads 3120 again from a cache, 1 to 4 (model)"
    )
