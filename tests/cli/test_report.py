"""`python -m mvit_kernels report`: one page that needs nothing else, a comparison, and one line for what is no run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from mvit_kernels import runs
from mvit_kernels.cli import main
from tests.runs.test_runs import row, run

pytest.importorskip("matplotlib")


class Page(HTMLParser):
    """Text, tags and addresses of a page; fails where a tag is left open or closed twice."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def everything() -> runs.Run:
    """A row of every kind that the page shows."""
    swept = [
        row(peer, ratio, level="sweep", part="", axis="frames", value=n, peak_extra_bytes=n * 1000)
        for peer, ratio in (("eager", 1.0), ("cpu", 2.0))
        for n in (8, 16, 32)
    ]
    engines = [row(peer, level="model", part="") for peer in ("eager", "openvino", "cpu-block")]
    odd = row("triton", status="failed", reason='<script> & "quotes"', seconds=None, speedup=None, samples=())
    layers = [row("eager", 1.0), row(), odd, row(mode="training", saved_bytes=77)]
    return run(*layers, *engines, *swept, row(level="op", part="block3.fc1"), row(level="block"))


def test_the_page_is_whole_and_needs_nothing_else(tmp_path, capsys):
    runs.save(everything(), tmp_path / "run.json")
    assert main(["report", str(tmp_path / "run.json"), "--svg", str(tmp_path / "svg")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert "script" not in page.tags and "link" not in page.tags
    anchors = [address for address in page.addresses if address.startswith("#")]
    assert {anchor[1:] for anchor in anchors} == set(page.ids) and len(page.ids) == len(set(page.ids))
    pictures = [address for address in page.addresses if not address.startswith("#")]
    assert pictures and all(address.startswith("data:image/svg+xml;base64,") for address in pictures)
    assert "url(" not in text and '<meta name="viewport"' in text
    words = " ".join(page.words)
    assert "a processor" in words and "pytest benchmarks" in words and '<script> & "quotes"' in words
    assert "2.00x" in words and "cpu-block" in words
    drawn = {path.stem for path in (tmp_path / "svg").iterdir()}
    assert {"speedup-layer-forward-float32", "models-forward-float32", "roofline-forward-float32"} <= drawn
    assert {"memory-peak-forward-float32", "memory-saved-training-float32", "sweep-frames-forward"} <= drawn
    assert len(drawn) == len(pictures)


def test_the_exponent_of_a_sweep_is_on_the_page(tmp_path):
    runs.save(everything(), tmp_path / "run.json")
    main(["report", str(tmp_path / "run.json"), "--html", str(tmp_path / "page.html")])
    rows = re.findall(
        r"<td>frames, forward</td><td>(\w+)</td><td>(.*?)</td><td>(.*?)</td>", (tmp_path / "page.html").read_text()
    )
    assert rows == [("eager", "0.00", "1.00"), ("cpu", "0.00", "1.00")]


def test_a_run_without_a_single_figure_is_a_page_too(tmp_path):
    runs.save(run(finished=False), tmp_path / "run.json")
    assert main(["report", str(tmp_path / "run.json")]) == 0
    assert "cut short" in (tmp_path / "run.html").read_text()


@pytest.mark.parametrize(("ratio", "status"), [(2.0, 0), (1.5, 1)])
def test_a_regression_is_the_exit_status(ratio, status, tmp_path, capsys):
    runs.save(run(row(ratio=ratio)), tmp_path / "now.json")
    runs.save(run(row()), tmp_path / "before.json")
    assert main(["report", str(tmp_path / "now.json"), "--compare", str(tmp_path / "before.json")]) == status
    assert ("WORSE" in capsys.readouterr().out) == bool(status)
    assert "before.json" in (tmp_path / "now.html").read_text()


def test_the_limit_is_what_was_asked_for(tmp_path):
    runs.save(run(row(ratio=1.5)), tmp_path / "now.json")
    runs.save(run(row()), tmp_path / "before.json")
    arguments = ["report", str(tmp_path / "now.json"), "--compare", str(tmp_path / "before.json")]
    assert main([*arguments, "--fail-above", "1.5"]) == 0


def test_what_is_no_run_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"format": 1}')
    assert main(["report", str(tmp_path / "run.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("run.json: is JSON, but was not written by pytest benchmarks/ --json")
    assert not (tmp_path / "run.html").exists()


def test_a_limit_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["report", "run.json", "--fail-above", "0.5"])
    assert stopped.value.code == 2 and "0.5 is not a number of at least 1" in capsys.readouterr().err
