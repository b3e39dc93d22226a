"""The backward of the CUDA pooling_attention, run by the emulation, against autograd of the float64 reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mvit_kernels import reference
from tests.cuda.emulated import Aligned, pooling_attention_backward
from tests.cuda.kernel_cases import ATTENTION, ATTENTION_OF_PUBLISHED_LAYERS, HALF
from tests.numerics import assert_within_rule
from tests.ops.attention_cases import AttentionCase

NAMES = ("q", "k", "v", "rel_pos")


def gradients(inputs: dict[str, Tensor | None], grad_out: Tensor, grad_lse: Tensor | None, **options: object):
    """Autograd of the reference: the gradients of q, k, v and rel_pos, and the log-sum-exp."""
    leaves = {name: None if x is None else x.detach().clone().requires_grad_() for name, x in inputs.items()}
    out, lse = reference.pooling_attention(**leaves, **options)
    outs, grads = [out], [grad_out.to(out.dtype)]
    if grad_lse is not None:
        outs.append(lse)
        grads.append(grad_lse.to(lse.dtype))
    asked = [x for x in leaves.values() if x is not None]
    found = iter(torch.autograd.grad(outs, asked, grads))
    return [None if x is None else next(found) for x in leaves.values()], lse.detach()


class Problem:
    """Inputs and incoming gradients of a case, with what the reference makes of them."""

    def __init__(self, case: AttentionCase, dtype: torch.dtype, seed: int = 0, lse_gradient: bool = True, **options):
        self.make = Aligned(seed)
        self.dtype = dtype
        self.options = {**case.options, **options}
        self.inputs = case.inputs(self.make, dtype)
        shape = (case.batch, case.heads, case.num_q)
        self.grad_out = self.make(*shape, case.head_dim, dtype=dtype).transpose(1, 2)
        self.grad_lse = self.make(*shape) if lse_gradient else None
        self.reference()

    def reference(self) -> None:
        exact = {name: None if x is None else x.double() for name, x in self.inputs.items()}
        grad_lse = None if self.grad_lse is None else self.grad_lse.double()
        self.eager, _ = gradients(self.inputs, self.grad_out, self.grad_lse, **self.options)
        self.oracle, lse = gradients(exact, self.grad_out.double(), grad_lse, **self.options)
        self.lse = lse.float()

    def run(self, emulation, seed: int = 0, **options) -> list[Tensor | None]:
        return pooling_attention_backward(
            emulation,
            **self.inputs,
            **{**self.options, **options},
            lse=self.lse,
            grad_out=self.grad_out,
            grad_lse=self.grad_lse,
            seed=seed,
        )

    def check(self, found: list[Tensor | None]) -> None:
        for name, kernel, eager, oracle in zip(NAMES, found, self.eager, self.oracle, strict=True):
            if kernel is not None:
                try:
                    assert_within_rule(kernel, eager, oracle, "gradient", dtype=self.dtype)
                except AssertionError as error:
                    raise AssertionError(f"gradient of {name}: {error}") from None


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_gradients_match_float64(emulation, case, dtype) -> None:
    problem = Problem(case, dtype)
    problem.check(problem.run(emulation))
    problem.make.assert_untouched()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", ATTENTION_OF_PUBLISHED_LAYERS, ids=str)
def test_gradients_match_float64_on_published_layers(emulation, case, dtype) -> None:
    problem = Problem(case, dtype, seed=1, lse_gradient=False)
    problem.check(problem.run(emulation))


@pytest.mark.parametrize("seed", range(1, 7))
def test_gradients_are_the_same_bits_in_every_order_of_threads(emulation, seed) -> None:
    problem = Problem(AttentionCase((1, 8, 9), (2, 7, 5), heads=1), torch.bfloat16)
    first, second = problem.run(emulation), problem.run(emulation, seed)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    problem.check(second)


@pytest.mark.parametrize("num_k", [1, 8, 15, 16, 17, 63, 64, 65, 80, 127, 128, 129])
def test_gradients_match_float64_at_every_tail_of_a_key_tile(emulation, num_k) -> None:
    case = AttentionCase((1, 3, 5), (1, 1, num_k), heads=1, head_dim=48, has_cls=False, rel_pos=num_k % 2 == 0)
    problem = Problem(case, torch.float16)
    problem.check(problem.run(emulation))


@pytest.mark.parametrize("num_q", [2, 16, 17, 63, 64, 65, 129])
def test_gradients_match_float64_at_every_tail_of_a_query_tile(emulation, num_q) -> None:
    case = AttentionCase((1, 1, num_q), (1, 3, 5), heads=1, head_dim=16, has_cls=False, rel_pos=num_q % 2 == 0)
    problem = Problem(case, torch.float16)
    problem.check(problem.run(emulation))


@pytest.mark.parametrize("rel_pos", [False, True])
def test_gradients_of_many_queries_are_summed_in_parts(emulation, rel_pos) -> None:
    case = AttentionCase((1, 1, 1087), (1, 3, 6), batch=1, heads=2, head_dim=16, rel_pos=rel_pos)
    sizes = (1, 2, case.num_q, case.num_k, 16)
    assert emulation.plan_of_attention_backward("bfloat16", False, sizes, case.grid_k, 1)["parts"] == 2
    problem = Problem(case, torch.bfloat16)
    problem.check(problem.run(emulation))


@pytest.mark.parametrize(
    "needs",
    [
        (True, False, False, False),
        (False, True, False, True),
        (False, False, True, False),
        (False, False, False, True),
        (False, True, False, False),
        (True, False, True, True),
    ],
)
@pytest.mark.parametrize("rel_pos", [False, True])
def test_only_the_gradients_that_are_asked_for_are_made(emulation, needs, rel_pos) -> None:
    problem = Problem(AttentionCase((1, 5, 5), (1, 9, 9), heads=1, head_dim=48, rel_pos=rel_pos), torch.float16)
    everything, some = problem.run(emulation), problem.run(emulation, needs=needs)
    for one, all_of_it, need in zip(some, everything, needs, strict=True):
        assert one is None if not need or all_of_it is None else torch.equal(one, all_of_it)


def test_no_query_gives_zeros_for_keys_and_values(emulation) -> None:
    q, k, lse = (torch.zeros(1, 2, n, 48, dtype=torch.float16) for n in (0, 70, 0))
    options = {"rel_pos": None, "grid_k": (1, 1, 70), "scale": 1.0, "has_cls": False, "residual": "all"}
    _, dk, dv, _ = pooling_attention_backward(
        emulation, q, k, k, **options, lse=lse[..., 0].float(), grad_out=q.transpose(1, 2)
    )
    assert torch.equal(dk, k) and torch.equal(dv, k)


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("scale", [-0.3, 0.0, 3.0])
def test_any_scale_is_right(emulation, scale, rel_pos) -> None:
    case = AttentionCase((1, 3, 5), (1, 9, 9), heads=1, head_dim=48, rel_pos=rel_pos)
    problem = Problem(case, torch.float16, scale=scale)
    problem.check(problem.run(emulation))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_keys_excluded_by_a_rel_pos_of_minus_infinity_have_no_gradient(emulation, dtype) -> None:
    problem = Problem(AttentionCase((1, 3, 5), (3, 4, 6), heads=1, head_dim=48), dtype)
    problem.inputs["rel_pos"][..., 1] = -torch.inf  # all keys of t = 1
    problem.inputs["rel_pos"][:, :, 5, 5] = -torch.inf
    problem.reference()
    problem.check(problem.run(emulation))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "rel_pos", "grad_out"])
def test_nan_and_infinity_propagate_as_in_eager(emulation, where, bad) -> None:
    case = AttentionCase((1, 3, 5), (1, 1, 150), heads=1, head_dim=16, has_cls=False)
    problem = Problem(case, torch.bfloat16)
    tensor = problem.grad_out.transpose(1, 2) if where == "grad_out" else problem.inputs[where]
    tensor[0, 0, min(7, tensor.shape[2] - 1), 3] = bad
    problem.reference()
    for name, kernel, eager in zip(NAMES, problem.run(emulation), problem.eager, strict=True):
        assert torch.equal(kernel.isfinite(), eager.isfinite()), name


def test_a_query_without_any_key_has_nan_as_in_eager(emulation) -> None:
    problem = Problem(AttentionCase((1, 3, 5), (1, 3, 3), heads=1, head_dim=16, has_cls=False), torch.float16)
    problem.inputs["rel_pos"][:, :, 4] = -torch.inf
    problem.reference()
    for name, kernel, eager in zip(NAMES, problem.run(emulation), problem.eager, strict=True):
        assert torch.equal(kernel.isnan(), eager.isnan()), name


def test_room_past_the_last_key_counts_for_nothing_where_all_scores_are_low(emulation) -> None:
    """A score of 0 there, beside a log-sum-exp of -300, would be a probability of infinity."""
    problem = Problem(AttentionCase((1, 3, 3), (1, 5, 5), heads=1, head_dim=48, has_cls=False), torch.bfloat16)
    problem.inputs["rel_pos"] -= 100
    problem.reference()
    problem.check(problem.run(emulation))


def test_rel_pos_beyond_the_range_of_float16_has_gradients(emulation) -> None:
    """Rows are float32, and the forward takes them. Eager in float16 has NaN here."""
    problem = Problem(AttentionCase((1, 3, 5), (3, 4, 6), heads=1, head_dim=48), torch.float16, lse_gradient=False)
    problem.inputs["rel_pos"][..., 3:7] += 2.0**17  # of every key but cls
    problem.reference()
    for name, kernel, oracle in zip(NAMES, problem.run(emulation), problem.oracle, strict=True):
        # A float32 log-sum-exp of 2^17 is right to 0.004, an entry there to 0.008.
        assert (kernel - oracle).abs().max() <= 0.03 * oracle.abs().max(), name
