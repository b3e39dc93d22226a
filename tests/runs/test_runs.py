"""Files of runs: read back as written, refused where they are something else, and compared."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from mvit_kernels import runs
from mvit_kernels.measure import Spread
from mvit_kernels.runs import Row, Run, RunError
from mvit_kernels.runs.fit import exponent


def row(peer: str = "cpu", ratio: float = 2.0, spread: float = 0.02, **changes) -> Row:
    made = Row(
        level="layer",
        model="mvit_v2_s_16x4",
        part="block3",
        mode="forward",
        dtype="float32",
        batch=1,
        threads=2,
        peer=peer,
        seconds=Spread(0.1, 0.09, 0.11),
        speedup=Spread(ratio, ratio - spread, ratio + spread),
        samples=(0.09, 0.1, 0.11),
        peak_extra_bytes=1000,
        multiply_adds=1e9,
        moved_bytes=1e6,
        share=0.5,
        error=0.7,
    )
    return replace(made, **changes)


def run(*rows: Row, **changes) -> Run:
    made = Run(
        machine={"cpu": "a processor", "threads": 2, "torch": "2.14", "revision": "abc"},
        versions={"torch": "2.14"},
        command="pytest benchmarks",
        started="2026-01-02T03:04:05Z",
        peaks={"float32": 1e11, "copy": 1e10},
        rows=list(rows),
        finished=True,
    )
    return replace(made, **changes)


def test_a_run_is_read_back_as_it_was_written(tmp_path):
    unavailable = row("triton", status="unavailable", reason="no GPU", seconds=None, speedup=None, samples=())
    found = run(row("eager", 1.0), row(saved_bytes=5), unavailable)
    runs.save(found, tmp_path / "deep" / "run.json")
    assert runs.load(tmp_path / "deep" / "run.json") == found


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    runs.save(run(row()), path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        runs.save(run(row(), row("cuda")), path)
    assert runs.load(path) == run(row())
    assert list(tmp_path.iterdir()) == [path]


def change(at: str, value):
    """The text of a run's file with one value replaced, or removed where `value` is ...."""
    found = {"format": runs.records.FORMAT, "version": runs.records.VERSION, **asdict(run(row()))}
    *path, last = at.split(".")
    place = found
    for step in path:
        place = place[int(step) if step.isdigit() else step]
    if value is ...:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return json.dumps(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a whole JSON file"),
        (change("rows.0.part", "x")[:-100], "is not a whole JSON file"),
        ("[" * 100_000, "is JSON nested too deep|is not a whole JSON file"),
        ("[1, 2]", "was not written by pytest benchmarks/"),
        ('{"machine_info": {}, "benchmarks": []}', "was not written by pytest benchmarks/"),
        (change("version", 99), "is of version 99 of the format, 1 is what this can read"),
        (change("rows", ...), "rows is missing"),
        (change("rows", {}), "rows is {}, list is right"),
        (change("rows.0", 3), r"rows\[0\] is 3, an object is right"),
        (change("rows.0.peer", ...), r"rows\[0\].peer is missing"),
        (change("rows.0.batch", True), r"rows\[0\].batch is True, int is right"),
        (change("rows.0.status", "fine"), r"rows\[0\].status is 'fine', one of measured, "),
        (change("rows.0.seconds", "fast"), r"rows\[0\].seconds is 'fast', an object is right"),
        (change("rows.0.seconds.p20", None), r"rows\[0\].seconds.p20 is None, float is right"),
        (change("rows.0.samples", [1, "2"]), r"rows\[0\].samples holds something that is no number"),
        (change("rows.0.seconds", None), r"rows\[0\] is measured but has no seconds"),
        (change("peaks.copy", "high"), "peaks.copy is 'high', float is right"),
        (change("machine", []), r"machine is \[\], dict is right"),
    ],
)
def test_a_file_that_is_no_run_is_one_line(text, message, tmp_path):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(RunError, match=message) as caught:
        runs.load(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_bytes_that_are_no_text_and_a_file_that_is_not_there(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00" * 9)
    for name, message in (("binary.json", "is not a JSON file"), ("absent.json", "No such file")):
        with pytest.raises(RunError, match=message):
            runs.load(tmp_path / name)


def test_a_slower_ratio_is_a_regression_and_is_named():
    found = runs.compare(run(row(ratio=1.5)), run(row(ratio=2.0)), 1.10)
    assert found.failed
    (line,) = [line for line in found.lines() if line.startswith("WORSE")]
    assert line == "WORSE mvit_v2_s_16x4 block3 forward float32, cpu: speed-up over eager 1.33 times worse"


def test_slower_seconds_with_the_same_ratio_are_no_regression():
    slow = row(seconds=Spread(0.3, 0.29, 0.31), samples=(0.29, 0.3, 0.31))
    assert not runs.compare(run(slow), run(row()), 1.10).failed


def test_a_change_below_the_limit_or_within_the_rounds_is_no_regression():
    assert not runs.compare(run(row(ratio=1.9)), run(row(ratio=2.0)), 1.10).failed
    noisy = runs.compare(run(row(ratio=1.5, spread=0.6)), run(row(ratio=2.0)), 1.10)
    assert not noisy.failed and len(noisy.noise) == 1


def test_more_memory_is_a_regression():
    found = runs.compare(run(row(peak_extra_bytes=1200)), run(row()), 1.10)
    assert [change.what for change in found.regressions] == ["peak extra memory"]


def test_what_is_not_measured_any_more_is_a_regression_and_what_was_not_asked_for_is_none():
    wrong = row(status="wrong", reason="off by 1", seconds=None, speedup=None)
    assert runs.compare(run(wrong), run(row()), 1.10).broken == [wrong]
    missing = runs.compare(run(), run(row()), 1.10)
    assert not missing.failed and missing.missing == [row()]


def test_other_projects_may_change_as_they_like():
    assert not runs.compare(run(row("openvino", 0.5)), run(row("openvino", 2.0)), 1.10).failed


def test_another_machine_is_remarked_on():
    other = run(row(), machine={"cpu": "another", "threads": 2, "torch": "2.14"})
    assert "cpu is another, was a processor" in runs.compare(other, run(row()), 1.1).lines()[0]


def test_the_exponent_of_a_power_law_is_found():
    assert exponent([(n, 3 * n**1.7) for n in (8, 16, 32, 64)]) == pytest.approx(1.7)
    assert exponent([(8, 1.0), (16, 2.0)]) is None
    assert exponent([(8, 1.0), (16, 0.0), (32, 2.0)]) is None
