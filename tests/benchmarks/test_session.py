"""A run as a whole: the file holds what was measured at every moment, and the choice of cases is the one asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cases
import fakes
import measuring
import pytest
import session as session_module
import torch
from cases import Case, all_cases, in_default, in_quick
from measuring import Settings, graphed, row_of
from session import Session
from subject import Timed

from mvit_kernels import measure, models, runs
from mvit_kernels.measure import Spread

OTHER = replace(fakes.CASE, mode="training")


class FakeWorker:
    """Gives every row a ratio of 2; stops in the middle of the second case if asked to."""

    interrupted = False

    def __init__(self, settings: Settings, build, *, limit: float, threads: int) -> None:
        self.asked = 0

    def peaks(self) -> dict[str, float]:
        return {"float32": 1e11, "copy": 1e10}

    def use(self, settings: Settings) -> None:
        assert settings.peaks == self.peaks()

    def rows(self, case: Case, peers):
        self.asked += 1
        if self.interrupted and self.asked == 2:
            raise KeyboardInterrupt
        figures = {"seconds": Spread(1, 1, 1), "speedup": Spread(2, 2, 2), "samples": (1.0,)}
        return [row_of(case, peer, 1, threads=1, **figures) for peer in ("eager", *peers)]

    def stop(self) -> None: ...


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(session_module, "Worker", FakeWorker)
    said: list[str] = []
    options = {"batch": 1, "rounds": None, "threads": None, "device": "cpu", "cpu_time": False, "hurry": False}
    path: Path = tmp_path / "run.json"
    session = Session(
        path=path,
        before=None,
        fail_above=1.1,
        command="pytest benchmarks",
        started="now",
        limit=1,
        say=said.append,
        **options,
    )
    session.expect({fakes.CASE: ["cpu"], OTHER: ["cpu"]})
    session.begin()
    return SimpleNamespace(session=session, path=path, said=said)


def test_the_file_is_written_as_it_goes(made):
    assert runs.load(made.path).rows == []
    made.session.row(fakes.CASE, "cpu")
    found = runs.load(made.path)
    assert [row.peer for row in found.rows] == ["eager", "cpu"] and not found.finished
    made.session.row(OTHER, "cpu")
    made.session.end()
    found = runs.load(made.path)
    assert len(found.rows) == 4 and found.finished and found.peaks["copy"] == 1e10
    assert any(line.startswith("[2/2]") and OTHER.name in line for line in made.said)


def test_what_was_measured_before_an_interrupt_is_kept(made, monkeypatch):
    monkeypatch.setattr(FakeWorker, "interrupted", True)
    made.session.row(fakes.CASE, "cpu")
    with pytest.raises(KeyboardInterrupt):
        made.session.row(OTHER, "cpu")
    made.session.end()
    found = runs.load(made.path)
    assert len(found.rows) == 2 and not found.finished


def test_a_case_is_measured_once(made):
    first = made.session.row(fakes.CASE, "cpu")
    assert made.session.row(fakes.CASE, "cpu") is first and made.session._worker.asked == 1


def test_an_earlier_run_is_compared_with_at_the_end(made):
    slower = made.session.row(fakes.CASE, "cpu")
    made.session.before = replace(made.session.run, rows=[replace(slower, speedup=Spread(3, 3, 3))], finished=True)
    made.session.end()
    assert made.session.comparison.failed
    assert any(line.startswith("WORSE") for line in made.session.summary())


def test_every_published_configuration_has_every_level_mode_and_dtype():
    names = {case.name for case in all_cases()}
    for model in models.list_models():
        for level in ("layer", "block", "op", "model"):
            for mode in ("forward", "backward", "training"):
                for dtype in ("float32", "bfloat16", "float16"):
                    assert any(n.startswith(f"{level}-{model}-") and n.endswith(f"-{mode}-{dtype}") for n in names)
    assert len(names) == sum(1 for _ in all_cases())


def test_the_subsets_have_every_level_and_are_small():
    for subset, least, most in ((in_default, 40, 120), (in_quick, 8, 20)):
        chosen = [case for case in all_cases() if any(subset(case, peer) for peer in case.peers)]
        assert {case.level for case in chosen} == set(cases.LEVELS)
        assert least <= len(chosen) <= most
        assert all(subset(case, "eager") for case in chosen)


def test_a_call_that_can_not_be_captured_is_timed_as_it_is(monkeypatch):
    entry = Timed(lambda: None, lambda: 1)
    monkeypatch.setattr(measure, "captured", lambda call: lambda: 2)
    assert (graphed(entry).call(), graphed(entry).remark) == (2, "CUDA graph")

    def refuse(call):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(measure, "captured", refuse)
    found = graphed(entry)
    assert (found.call(), found.remark) == (1, "no CUDA graph: RuntimeError: operation not permitted")


def test_an_error_is_one_line():
    assert measuring.one_line(ValueError("\n  first\nsecond")) == "ValueError: first"
    assert measuring.one_line(torch.OutOfMemoryError()) == "OutOfMemoryError"
