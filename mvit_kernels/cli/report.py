"""`report`: a run of `pytest benchmarks/` as one HTML page, and whether it is worse than an earlier one."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from .. import runs
from ..runs.page import page
from .options import UsageError, output_path


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="a run of pytest benchmarks/ as one HTML page; compare two",
        description="Make one self-contained HTML page of a run that `pytest benchmarks/ --json` wrote, and compare it "
        "with an earlier run. The exit status is 1 where it is worse.",
    )
    parser.add_argument("run_file", type=Path, metavar="RUN.json", help="what the run wrote")
    parser.add_argument("--html", type=output_path, metavar="FILE", help="the page (default: RUN.html beside it)")
    parser.add_argument("--svg", type=Path, metavar="FOLDER", help="write every figure there too")
    parser.add_argument("--compare", type=Path, metavar="RUN.json", help="an earlier run")
    parser.add_argument(
        "--fail-above", type=_factor, default=1.10, metavar="X", help="how much worse is a regression (default: 1.10)"
    )
    parser.set_defaults(run=run)


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Write the page and print what the comparison found."""
    try:
        found = runs.load(args.run_file)
        before = None if args.compare is None else runs.load(args.compare)
    except runs.RunError as error:
        raise UsageError(str(error)) from None
    comparison = None if before is None else runs.compare(found, before, args.fail_above)
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("report: needs matplotlib (pip install matplotlib)")
    from ..runs.figures import figures

    drawn = figures(found)
    path = args.html or output_path(str(args.run_file.with_suffix(".html")))
    path.write_text(page(found, drawn, comparison, "" if args.compare is None else args.compare.name))
    if args.svg is not None:
        args.svg.mkdir(parents=True, exist_ok=True)
        for figure in drawn:
            (args.svg / f"{figure.name}.svg").write_text(figure.svg)
    print(path)
    if comparison is None:
        return 0
    print("\n".join(comparison.lines()))
    return 1 if comparison.failed else 0
