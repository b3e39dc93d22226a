"""The numerics rule judges as it says."""

from __future__ import annotations

import pytest
import torch

from mvit_kernels.accuracy import difference, judge


def values(dtype=torch.float64):
    return torch.linspace(-2, 2, 1001, dtype=torch.float64).to(dtype)


def test_difference_is_computed_in_float64():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([-4.0, 1.0])
    d = difference(a, b)
    assert (d.max, d.rms, d.scale) == (7.0, 5.0, 4.0)
    assert (d.relative_max, d.relative_rms) == (1.75, 1.25)


def test_difference_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"^difference: a has shape \(2,\), \(1,\) like b is right"):
        difference(torch.zeros(2), torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_eager_itself_passes(dtype):
    eager = values(dtype)
    assert judge(eager, eager, values()).passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_wrong_element_fails(dtype):
    wrong = values(dtype)
    wrong[500] += 8 * torch.finfo(dtype).eps * 2 if dtype != torch.float64 else 1e-11
    assert not judge(wrong, values(dtype), values()).max_passed


def test_small_errors_everywhere_fail_the_rms_rule_alone():
    eager, wrong = values(torch.float32), values(torch.float32)
    eager[::100] += 1e-5
    wrong += 1e-5
    verdict = judge(wrong, eager, values())
    assert verdict.max_passed
    assert not verdict.passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_fails(dtype):
    wrong = values(dtype)
    wrong[3] = torch.nan
    assert not judge(wrong, values(dtype), values()).max_passed


def test_empty_results_pass():
    assert judge(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.float64)).passed


def test_float32_results_of_a_bfloat16_computation_are_judged_by_bfloat16s_rounding():
    oracle = torch.linspace(-1, 1, 100, dtype=torch.float64)
    result = oracle.bfloat16().float()
    assert not judge(result, oracle.float(), oracle).passed
    assert judge(result, oracle.float(), oracle, dtype=torch.bfloat16).passed
