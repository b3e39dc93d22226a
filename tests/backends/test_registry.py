"""Choosing a backend, and saying why."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from mvit_kernels import UnsupportedError, backends, explain, ops, use_backend
from mvit_kernels.backends import registry
from mvit_kernels.backends.eager import EagerBackend
from mvit_kernels.problem import AttentionProblem

PROBLEM = AttentionProblem("cpu", torch.float32, 1, 2, 8, 5, 5, False, False, "none", False)


class Picky(EagerBackend):
    """A backend with something against everything but one head."""

    name = "picky"

    def reasons_not_supported(self, problem) -> Iterator[str]:
        if problem.heads != 1:
            yield f"heads {problem.heads}: 1"


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BACKENDS", {"picky": Picky(), "eager": EagerBackend()})


def q(heads: int) -> torch.Tensor:
    return torch.zeros(1, heads, 4, 8)


def test_the_first_backend_without_a_reason_is_chosen(picky) -> None:
    with backends.record() as log:
        ops.pooling_attention(q(1), q(1), q(1))
        ops.pooling_attention(q(2), q(2), q(2))
    assert [decision.backend for decision in log] == ["picky", "eager"]


def test_recorded_decisions_say_why_no_backend_before_was_chosen(picky) -> None:
    with backends.record() as log:
        ops.pooling_attention(q(1), q(1), q(1))
        ops.pooling_attention(q(2), q(2), q(2))
        with use_backend("eager"):
            ops.pooling_attention(q(2), q(2), q(2))
    assert [decision.notes for decision in log] == [(), ("not picky: heads 2: 1",), ()]


def test_a_backend_asked_for_runs_or_raises_with_its_reasons(picky) -> None:
    with use_backend("picky"):
        ops.pooling_attention(q(1), q(1), q(1))
        with pytest.raises(UnsupportedError, match=r"pooling_attention: backend 'picky' can't run .*: heads 2: 1"):
            ops.pooling_attention(q(2), q(2), q(2))
    ops.pooling_attention(q(2), q(2), q(2))


def test_the_inner_choice_wins_and_the_outer_comes_back(picky) -> None:
    with backends.record() as log, use_backend("eager"):
        with use_backend("picky"):
            ops.pooling_attention(q(1), q(1), q(1))
        ops.pooling_attention(q(1), q(1), q(1))
    assert [decision.backend for decision in log] == ["picky", "eager"]


def test_explain_names_every_backend_with_its_reasons(picky) -> None:
    text = explain(PROBLEM)
    assert "picky: no, heads 2: 1" in text and "eager: chosen" in text
    with use_backend("eager"):
        assert "eager: chosen (asked for)" in explain(PROBLEM)


def test_an_unknown_backend_is_named_with_the_known_ones() -> None:
    with (
        pytest.raises(ValueError, match="backend 'cudnn' is not known: one of cuda, triton, cpu, eager"),
        use_backend("cudnn"),
    ):
        pass


def test_cpu_says_what_it_can_not_do() -> None:
    problem = AttentionProblem("cuda", torch.float8_e4m3fn, 1, 2, 8, 5, 5, False, False, "none", False)
    reasons = backends.reasons_not_supported(problem, "cpu")
    assert "device cuda: cpu" in reasons
    assert any(reason.startswith("dtype torch.float8_e4m3fn") for reason in reasons)


class Talkative(EagerBackend):
    """A backend with something to say where a gradient is needed."""

    name = "talkative"

    def notes(self, problem) -> Iterator[str]:
        if problem.needs_grad:
            yield "slow in the backward"


def test_explain_and_record_show_the_notes_of_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BACKENDS", {"talkative": Talkative()})
    assert "slow in the backward" not in explain(PROBLEM)
    assert "talkative: chosen; slow in the backward" in explain(dataclasses.replace(PROBLEM, needs_grad=True))
    with backends.record() as log:
        ops.pooling_attention(q(1).requires_grad_(), q(1), q(1))
    assert log[0].notes == ("slow in the backward",)


@pytest.mark.parametrize(("value", "expected"), [("eager", "['eager']"), ("cudnn", "backend 'cudnn' is not known")])
def test_the_environment_variable_chooses_for_a_process(value: str, expected: str) -> None:
    script = (
        "import torch; from mvit_kernels import ops, backends; x = torch.zeros(1, 1, 4, 8)\n"
        "with backends.record() as log: ops.pooling_attention(x, x, x)\n"
        "print([d.backend for d in log])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, registry.ENVIRONMENT_VARIABLE: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in result.stdout + result.stderr


def test_another_thread_does_not_see_the_choice(picky) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with use_backend("picky"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: registry.select(PROBLEM).name).result() == "eager"


def test_a_choice_says_why_not_another_backend_for_this_device(picky) -> None:
    assert backends.describe_choice(PROBLEM) == "eager [not picky: heads 2: 1]"
    with use_backend("picky"):
        assert backends.describe_choice(PROBLEM) == "no backend [not picky: heads 2: 1]"


def test_a_choice_on_the_cpu_says_nothing_of_backends_for_other_devices() -> None:
    assert {"cuda", "triton"} <= set(backends.backend_names())
    choice = backends.describe_choice(PROBLEM)
    assert "cuda" not in choice and "triton" not in choice
