"""What becomes of a case: rows in any event, a figure for what is right alone."""

from __future__ import annotations

from dataclasses import replace

import fakes
import pytest
import subjects
import torch
from cases import Case
from measuring import Measurer, Settings, share
from needs import needed_bytes
from subject import Computation, timed
from worker import Worker

from mvit_kernels import backends, measure
from mvit_kernels.measure import Spread
from mvit_kernels.runs import Row

FAST = Settings(rounds=3)


def measured(made, *peers: str, case: Case = fakes.CASE, settings: Settings = FAST) -> dict[str, Row]:
    found = Measurer(settings, lambda *_: made).rows(case, peers)
    assert [row.peer for row in found] == ["eager", *peers]
    return {row.peer: row for row in found}


def test_samples_come_from_the_same_rounds_and_give_the_ratio(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def taking(seconds: float):
        def forward() -> list[torch.Tensor]:
            clock[0] += seconds
            return [torch.linspace(-1, 1, 64) * 2]

        return lambda: forward

    made = fakes.subject(cpu=taking(0.25))
    made.makers = {**made.makers, "eager": taking(1.0)}
    rows = measured(made, "cpu")
    assert rows["eager"].samples == (1.0,) * 3 and rows["cpu"].samples == (0.25,) * 3
    assert rows["cpu"].speedup == Spread(4.0, 4.0, 4.0) and rows["eager"].speedup == Spread(1.0, 1.0, 1.0)


@pytest.mark.parametrize("mode", ["forward", "backward", "training"])
def test_a_result_that_is_wrong_is_not_timed(mode):
    calls = []
    made = fakes.subject(cpu=fakes.right)
    x = fakes.x_of(made)

    def off() -> list[torch.Tensor]:
        calls.append(None)
        return [x * 2.00001]

    made.makers = {**made.makers, "cpu": lambda: off}
    row = measured(made, "cpu", case=replace(fakes.CASE, mode=mode))["cpu"]
    assert row.status == "wrong" and row.seconds is None and len(calls) == 1
    assert row.reason.startswith("not timed, the output is wrong: off by ")


def test_a_gradient_that_is_wrong_is_not_timed():
    made = fakes.subject()
    x = fakes.x_of(made)
    made.makers = {**made.makers, "cpu": lambda: lambda: [x.detach() * 2 + (x - x.detach()) * 2.001]}
    assert measured(made, "cpu", case=fakes.CASE)["cpu"].status == "measured"
    row = measured(made, "cpu", case=replace(fakes.CASE, mode="training"))["cpu"]
    assert row.status == "wrong" and "the gradient 0 is wrong" in row.reason


def test_other_projects_are_given_more_room_but_not_any():
    made = fakes.subject(sdpa=lambda: lambda: [torch.linspace(-1, 1, 64) * (2 + 4e-7)], flex=fakes.wrong)
    made.makers = {**made.makers, "cpu": made.makers["sdpa"]}
    rows = measured(made, "sdpa", "flex", "cpu")
    assert [rows[peer].status for peer in ("sdpa", "flex", "cpu")] == ["measured", "wrong", "wrong"]


@pytest.mark.skipif("cpu" not in backends.available(), reason="the cpu backend can't run here")
@pytest.mark.parametrize("level", ["op", "layer", "block"])
def test_a_kernel_that_is_wrong_is_found_at_every_level(level, monkeypatch):
    backend = backends.get("cpu")
    right = backend.pooling_attention
    monkeypatch.setattr(backend, "pooling_attention", lambda *a, **o: (right(*a, **o)[0] * 1.0001, right(*a, **o)[1]))
    part = "block15.pooling_attention" if level == "op" else "block15"
    case = Case(level, "mvit_v1_b_16x4", part, 15)
    row = Measurer(replace(FAST, rounds=1), subjects.build).rows(case, ["cpu"])[1]
    assert row.status == "wrong" and row.seconds is None


def test_nan_is_wrong():
    made = fakes.subject(cpu=lambda: lambda: [torch.full((64,), torch.nan)])
    assert measured(made, "cpu")["cpu"].status == "wrong"


def test_what_is_missing_or_fails_is_a_row_with_the_reason_and_the_others_are_measured():
    made = fakes.subject(sdpa=fakes.missing, flex=fakes.broken, compile=fakes.later(fakes.fail, 3), cpu=fakes.right)
    rows = measured(made, "sdpa", "flex", "compile", "triton", "cpu")
    found = {peer: (row.status, row.reason) for peer, row in rows.items()}
    assert found == {
        "eager": ("measured", ""),
        "sdpa": ("unavailable", "not installed (pip install it)"),
        "flex": ("failed", r"KeyError: 'first line\nsecond line'"),
        "compile": ("failed", "RuntimeError: gave up in the middle"),
        "triton": ("unavailable", "does not have this"),
        "cpu": ("measured", ""),
    }


def test_memory_that_runs_out_in_the_middle_is_a_row_and_the_others_are_measured():
    made = fakes.subject(sdpa=fakes.later(fakes.take_all_memory, 3), cpu=fakes.right)
    rows = measured(made, "sdpa", "cpu")
    assert [rows[peer].status for peer in ("eager", "sdpa", "cpu")] == ["measured", "too large", "measured"]
    assert "can't allocate memory" in rows["sdpa"].reason


def test_without_eager_there_is_nothing_to_compare_with():
    made = fakes.subject(cpu=fakes.right)
    made.makers = {**made.makers, "eager": fakes.broken}
    rows = measured(made, "cpu")
    assert rows["eager"].status == rows["cpu"].status == "failed"
    assert rows["cpu"].reason.startswith("eager, which it is compared with: KeyError")


def test_a_case_that_memory_does_not_hold_is_not_built(monkeypatch):
    monkeypatch.setattr(measure, "available_memory", lambda device: 2**20)
    rows = Measurer(FAST, fakes.impossible).rows(fakes.CASE, ["eager", "cpu"])
    assert [row.status for row in rows] == ["too large"] * 2
    assert "GiB are free" in rows[0].reason


def test_an_engine_without_gradients_says_so():
    made = fakes.subject(openvino=fakes.right)
    made.forward_only = frozenset({"openvino"})
    row = measured(made, "openvino", case=replace(fakes.CASE, mode="training"))["openvino"]
    assert (row.status, row.reason) == ("unavailable", "has no gradients")


def test_memory_and_work_are_in_the_row():
    peaks = {"float32": 1e9, "copy": 1e9}
    row = measured(fakes.subject(), settings=replace(FAST, peaks=peaks), case=replace(fakes.CASE, mode="training"))
    eager = row["eager"]
    assert eager.peak_extra_bytes >= 256 and eager.saved_bytes is not None
    assert (eager.multiply_adds, eager.moved_bytes) == (192.0, 1536.0)
    assert eager.share == pytest.approx(1536e-9 / eager.seconds.median)


def test_the_share_is_of_whichever_peak_binds():
    peaks = {"float32": 100.0, "copy": 10.0}
    assert share(50.0, 1.0, Spread(1, 1, 1), "float32", peaks) == 0.5
    assert share(1.0, 5.0, Spread(1, 1, 1), "float32", peaks) == 0.5
    assert share(1.0, 5.0, Spread(1, 1, 1), "float16", peaks) is None


def test_backward_is_timed_without_its_forward():
    order = []
    x = torch.ones(3, requires_grad=True)

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            order.append("forward")
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            order.append("backward")
            return grad * 2

    computation = Computation(lambda: [Noted.apply(x)], [x], [torch.ones(3)])
    entry = timed("backward", computation)
    entry.before()
    assert order == ["forward"]
    entry.call()
    assert order == ["forward", "backward"]
    steps = []
    timed("training", computation, steps.append).call()
    assert order[2:] == ["forward", "backward"] and len(steps) == 1


def test_the_estimate_grows_with_what_is_asked_for():
    small = needed_bytes(fakes.CASE, 1)
    assert needed_bytes(fakes.CASE, 2) == 2 * small
    assert needed_bytes(replace(fakes.CASE, mode="training"), 1) > small
    sweep = Case("sweep", "mvit_v2_s_16x4", axis="frames", value=64)
    assert needed_bytes(sweep, 1) > 5 * needed_bytes(replace(sweep, value=8), 1)


class Impatient(Worker):
    """Waits long for everything on a machine that is busy, but not for the one that never ends."""

    def _start(self) -> None:
        self.limit = 60.0
        super()._start()

    def told(self, peer: str, stage: str) -> None:
        self.limit = 1.0 if (peer, stage) == ("triton", "checking") else 60.0


def test_a_process_that_dies_or_hangs_takes_no_more_than_a_row_with_it():
    worker = Impatient(FAST, fakes.deadly, limit=60.0, threads=1)
    told = []
    try:
        worker.use(FAST)
        peers = ["sdpa", "flex", "triton", "cpu"]
        rows = worker.rows(fakes.CASE, peers, lambda *news: (told.append(news), worker.told(*news)))
    finally:
        worker.stop()
    assert [row.peer for row in rows] == ["eager", *peers]
    found = {row.peer: (row.status, row.reason) for row in rows}
    assert found == {
        "eager": ("measured", ""),
        "sdpa": ("crashed", "the process was killed by SIGSEGV while checking"),
        "flex": ("crashed", "the process was killed by SIGSEGV while timing"),
        "triton": ("too slow", "checking took longer than 1 s"),
        "cpu": ("measured", ""),
    }
    assert ("cpu", "timing") in told


def test_a_baseline_that_kills_the_process_is_said_of_every_row():
    worker = Worker(FAST, fakes.deadly_eager, limit=20.0, threads=1)
    try:
        rows = worker.rows(fakes.CASE, ["cpu"])
    finally:
        worker.stop()
    assert [row.status for row in rows] == ["crashed", "crashed"]
    assert rows[1].reason == "eager, which it is compared with: the process ended with status 5 while building"
