"""Subjects that take no time, for the tests of what measures them; importable by a child process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import torch
from cases import Case
from subject import Computation, Forward, Subject, Unavailable, Work

CASE = Case("layer", "mvit_v2_s_16x4", "block15", 15)


def subject(**peers: Callable[[], Forward]) -> Subject:
    """y = 2 x by eager, and by whatever else is given."""
    x = torch.linspace(-1, 1, 64).requires_grad_()
    wide = x.detach().double().requires_grad_()
    makers = {"eager": lambda: lambda: [x * 2], **peers}
    exact = lambda: Computation(lambda: [wide * 2], [wide], [torch.ones(64).double()])  # noqa: E731
    return Subject(makers, [x], [torch.ones(64)], exact, Work(64.0, 128.0, 512.0, 1024.0))


def x_of(made: Subject) -> torch.Tensor:
    return made.leaves[0]


def right() -> Forward:
    return lambda: [torch.linspace(-1, 1, 64).requires_grad_() * 2]


def wrong() -> Forward:
    return lambda: [torch.linspace(-1, 1, 64) * 2.001]


def missing() -> Forward:
    raise Unavailable("not installed (pip install it)")


def broken() -> Forward:
    raise KeyError("first line\nsecond line")


def later(action: Callable[[], object], calls: int) -> Callable[[], Forward]:
    """Right for `calls` calls, then `action`."""
    left = [calls]

    def forward() -> list[torch.Tensor]:
        left[0] -= 1
        if left[0] < 0:
            action()
        return [torch.linspace(-1, 1, 64) * 2]

    return lambda: forward


def fail() -> None:
    raise RuntimeError("gave up in the middle")


def take_all_memory() -> None:
    torch.empty(1 << 50)


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(60)


def deadly(case: Case, batch: int, device: torch.device) -> Subject:
    """One implementation dies while it is built, one in the middle of the rounds, one leaves, one hangs."""
    return subject(
        cpu=right,
        sdpa=later(die, 0),
        flex=later(die, 3),
        triton=later(hang, 0),
    )


def deadly_eager(case: Case, batch: int, device: torch.device) -> Subject:
    os._exit(5)


def impossible(case: Case, batch: int, device: torch.device) -> Subject:
    raise AssertionError("nothing may be built")
