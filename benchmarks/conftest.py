"""Options, choice of cases, progress, JSON and comparison of `pytest benchmarks/`."""

from __future__ import annotations

import re
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cases
import pytest
from cases import Case
from session import Session

from mvit_kernels import runs
from mvit_kernels.cli.options import at_least

SESSION = pytest.StashKey[Session]()
WORDS = re.compile(r"[\w.\-+:\[\]/]+")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mvit_kernels benchmarks")
    group.addoption("--quick", action="store_true", help="about a minute: a few layers and one model")
    group.addoption("--all", action="store_true", help="every case and implementation: days")
    group.addoption("--rounds", type=at_least(1), metavar="N", help="timed rounds of a case (default: what fits)")
    group.addoption("--batch", type=at_least(1), default=1, metavar="N", help="clips at once (default: 1)")
    group.addoption("--threads", type=at_least(1), metavar="N", help="CPU threads (default: torch's choice)")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda where there is one, else cpu")
    group.addoption("--cpu-time", action="store_true", help="CPU seconds on one thread, for a machine that is busy")
    group.addoption(
        "--step-limit", type=float, default=600.0, metavar="S", help="longest step of an implementation (default: 600)"
    )
    group.addoption("--json", type=Path, metavar="FILE", help="the run (default: .benchmarks/DATE.json)")
    group.addoption("--compare", type=Path, metavar="RUN.json", help="an earlier run; fail where this one is worse")
    group.addoption(
        "--fail-above", type=float, default=1.10, metavar="X", help="how much worse is a regression (default: 1.10)"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fail-above") < 1:
        raise pytest.UsageError(f"--fail-above {config.getoption('--fail-above')}: at least 1.0 is right")
    before = None
    if config.getoption("--compare") is not None:
        try:
            before = runs.load(config.getoption("--compare"))
        except runs.RunError as error:
            raise pytest.UsageError(f"--compare {error}") from None
    stamp = datetime.now(timezone.utc)
    path = config.getoption("--json") or Path(config.rootpath) / ".benchmarks" / f"{stamp:%Y%m%d-%H%M%S}.json"
    config.stash[SESSION] = Session(
        path=path,
        before=before,
        fail_above=config.getoption("--fail-above"),
        command=shlex.join(["pytest", *config.invocation_params.args]),
        started=f"{stamp:%Y-%m-%dT%H:%M:%SZ}",
        batch=config.getoption("--batch"),
        rounds=config.getoption("--rounds"),
        threads=config.getoption("--threads"),
        device=config.getoption("--device"),
        cpu_time=config.getoption("--cpu-time"),
        hurry=config.getoption("--quick"),
        limit=config.getoption("--step-limit"),
        say=lambda line: _say(config, line),
    )


def _say(config: pytest.Config, line: str) -> None:
    manager = config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        print(line, file=sys.stderr, flush=True)
        return
    with manager.global_and_fixture_disabled():
        print(line, file=sys.stderr, flush=True)


def chosen(config: pytest.Config) -> list[tuple[Case, str]]:
    """(case, implementation): of everything with -k or --all, else of the default or the quick subset."""
    keyword = config.getoption("-k") or ""
    named = [argument for argument in config.args if "::" in argument]
    if config.getoption("--quick"):
        wanted = cases.in_quick
    elif config.getoption("--all") or keyword or named:
        wanted = lambda case, peer: True  # noqa: E731
    else:
        wanted = cases.in_default
    found = [(case, peer) for case in cases.all_cases() for peer in case.peers if wanted(case, peer)]
    if keyword:
        match = keyword_filter(keyword)
        found = [(case, peer) for case, peer in found if match(f"{case.name}-{peer}")]
    if named:
        names = {argument.partition("[")[2].removesuffix("]") for argument in named}
        found = [(case, peer) for case, peer in found if f"{case.name}-{peer}" in names or "" in names]
    return found


def keyword_filter(expression: str) -> Any:
    """pytest's -k, asked before the items are made: there are many. One that can't be read is left to pytest."""

    def match(name: str) -> bool:
        def value(word: re.Match[str]) -> str:
            text = word.group()
            return (
                text
                if text in ("and", "or", "not")
                else str(text.lower() in f"test_suite.py test_performance {name.lower()}")
            )

        try:
            return bool(eval(WORDS.sub(value, expression), {"__builtins__": {}}))
        except SyntaxError:
            return True

    return match


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"case", "peer"} <= set(metafunc.fixturenames):
        found = chosen(metafunc.config)
        metafunc.parametrize(("case", "peer"), found, ids=[f"{case.name}-{peer}" for case, peer in found])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted: dict[Case, list[str]] = {}
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "case" in parameters:
            wanted.setdefault(parameters["case"], []).append(parameters["peer"])
    config.stash[SESSION].expect(wanted)


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> Any:
    session = pytestconfig.stash[SESSION]
    session.begin()
    yield session
    session.end()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["mvit_kernels"] = config.stash[SESSION].run.machine


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = config.stash[SESSION]
    if not session.run.rows:
        return
    terminalreporter.section(session.run.where)
    for line in session.summary():
        terminalreporter.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    ours = session.config.stash[SESSION]
    if ours.comparison is not None and ours.comparison.failed and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
