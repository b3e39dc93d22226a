"""The backward of the CUDA pooling_attention for float32, IEEE and TF32, run by the emulation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mvit_kernels.reference.pooling_attention import expand_rel_pos
from tests.cuda.emulated import pooling_attention
from tests.cuda.kernel_cases import attention_of_more_than_a_few_numbers
from tests.cuda.test_pooling_attention_backward import NAMES, Problem
from tests.cuda.test_pooling_attention_float32 import tf32
from tests.ops.attention_cases import AttentionCase

BOTH = pytest.mark.parametrize("rounded", [False, True], ids=["ieee", "tf32"])


def tf32_gradients(
    q: Tensor, k: Tensor, v: Tensor, rel_pos: Tensor | None, grad_out: Tensor, grad_lse: Tensor | None, **options
) -> list[Tensor | None]:
    """The gradients with all five products as TF32 tensor cores make them."""
    cls, grid, scale, grad = int(options["has_cls"]), options["grid_k"], options["scale"], grad_out.transpose(1, 2)
    scores = scale * (tf32(q) @ tf32(k).transpose(-1, -2))
    if rel_pos is not None:
        scores = scores + torch.nn.functional.pad(expand_rel_pos(rel_pos[:, :, cls:], grid), (cls, 0, cls, 0))
    p = scores.softmax(-1)
    dp = tf32(grad) @ tf32(v).transpose(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True) + (0 if grad_lse is None else grad_lse[..., None]))
    first = {"none": q.shape[2], "all": 0, "no_cls": cls}[options["residual"]]
    residual = torch.cat((torch.zeros_like(grad[:, :, :first]), grad[:, :, first:]), dim=2)
    rows = None
    if rel_pos is not None:
        on_grid = ds[:, :, cls:, cls:].unflatten(-1, grid)
        rows = torch.cat((on_grid.sum((-2, -1)), on_grid.sum((-3, -1)), on_grid.sum((-3, -2))), dim=-1)
        rows = torch.nn.functional.pad(rows, (0, 0, cls, 0))
    dq, dk = scale * (tf32(ds) @ tf32(k)) + residual, scale * (tf32(ds).transpose(-1, -2) @ tf32(q))
    return [dq, dk, tf32(p).transpose(-1, -2) @ tf32(grad), rows]


class Float32Problem(Problem):
    """Judged by TF32's own rounding where it is rounded; TF32 has the mantissa of float16."""

    def __init__(self, case: AttentionCase, rounded: bool, seed: int = 0, **options) -> None:
        self.rounded = rounded
        super().__init__(case, torch.float32, seed, **options)
        self.dtype = torch.float16 if rounded else torch.float32

    def reference(self) -> None:
        super().reference()
        if self.rounded:
            self.eager = tf32_gradients(**self.inputs, grad_out=self.grad_out, grad_lse=self.grad_lse, **self.options)

    def run(self, emulation, seed: int = 0, **options) -> list[Tensor | None]:
        """With the log-sum-exp of the forward kernel, which rounds scores alike."""
        _, self.lse = pooling_attention(emulation, **self.inputs, **self.options, tf32=self.rounded)
        return super().run(emulation, seed, tf32=self.rounded, **options)


@BOTH
@pytest.mark.parametrize("case", attention_of_more_than_a_few_numbers(8), ids=str)
def test_gradients_match_float64(emulation, case, rounded) -> None:
    problem = Float32Problem(case, rounded)
    problem.check(problem.run(emulation))
    problem.make.assert_untouched()


@BOTH
@pytest.mark.parametrize("seed", range(1, 4))
def test_gradients_are_the_same_bits_in_every_order_of_threads(emulation, seed, rounded) -> None:
    problem = Float32Problem(AttentionCase((1, 6, 11), (2, 3, 5), heads=1, head_dim=64), rounded)
    first, second = problem.run(emulation), problem.run(emulation, seed)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    problem.check(second)


@BOTH
@pytest.mark.parametrize("num_k", [7, 8, 9, 15, 16, 17, 33, 64, 65])
def test_gradients_match_float64_at_every_tail_of_a_tile(emulation, num_k, rounded) -> None:
    dim = (48, 64, 80, 128)[num_k % 4]
    case = AttentionCase((1, 1, num_k + 2), (1, 1, num_k), heads=1, head_dim=dim, has_cls=False, rel_pos=num_k % 2 == 0)
    problem = Float32Problem(case, rounded)
    problem.check(problem.run(emulation))


@BOTH
@pytest.mark.parametrize("rel_pos", [False, True])
def test_gradients_of_many_queries_are_summed_in_parts(emulation, rel_pos, rounded) -> None:
    problem = Float32Problem(AttentionCase((1, 1, 1087), (1, 3, 6), heads=1, head_dim=16, rel_pos=rel_pos), rounded)
    problem.check(problem.run(emulation))


@BOTH
@pytest.mark.parametrize(
    "needs", [(True, False, False, False), (False, True, True, False), (False, False, False, True)]
)
def test_only_the_gradients_that_are_asked_for_are_made(emulation, needs, rounded) -> None:
    problem = Float32Problem(AttentionCase((1, 5, 5), (1, 3, 9), heads=1, head_dim=48), rounded)
    everything, some = problem.run(emulation), problem.run(emulation, needs=needs)
    for one, all_of_it, need in zip(some, everything, needs, strict=True):
        assert one is None if not need else torch.equal(one, all_of_it)


@BOTH
@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("scale", [-0.3, 0.0, 3.0])
def test_any_scale_is_right(emulation, scale, rel_pos, rounded) -> None:
    case = AttentionCase((1, 3, 5), (1, 5, 9), heads=1, head_dim=48, rel_pos=rel_pos)
    problem = Float32Problem(case, rounded, scale=scale)
    problem.check(problem.run(emulation))


def test_without_tf32_no_operand_is_rounded(emulation) -> None:
    problem = Float32Problem(AttentionCase((1, 3, 3), (1, 4, 4), heads=1), False)
    exact, rounded = problem.run(emulation), super(Float32Problem, problem).run(emulation, tf32=True)
    for a, b, oracle in zip(exact, rounded, problem.oracle, strict=True):
        assert (a - oracle).abs().max() < 1e-5 * oracle.abs().max() < (b - oracle).abs().max()


@BOTH
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "rel_pos", "grad_out"])
def test_nan_and_infinity_propagate_as_in_eager(emulation, where, bad, rounded) -> None:
    problem = Float32Problem(AttentionCase((1, 3, 5), (1, 1, 40), heads=1, head_dim=16, has_cls=False), rounded)
    tensor = problem.grad_out.transpose(1, 2) if where == "grad_out" else problem.inputs[where]
    tensor[0, 0, min(7, tensor.shape[2] - 1), 3] = bad
    problem.reference()
    for name, kernel, oracle in zip(NAMES, problem.run(emulation), problem.oracle, strict=True):
        assert torch.equal(kernel.isfinite(), oracle.isfinite()), name


@BOTH
def test_excluded_keys_and_queries_without_any_key(emulation, rounded) -> None:
    problem = Float32Problem(AttentionCase((1, 3, 5), (3, 2, 3), heads=1, head_dim=16, has_cls=False), rounded)
    problem.inputs["rel_pos"][..., 1] = -torch.inf  # all keys of t = 1
    problem.reference()
    problem.check(problem.run(emulation))
    problem.inputs["rel_pos"][:, :, 4] = -torch.inf
    problem.reference()
    for name, kernel, oracle in zip(NAMES, problem.run(emulation), problem.oracle, strict=True):
        assert torch.equal(kernel.isnan(), oracle.isnan()), name
