"""Options, machine line and summary of `pytest benchmarks/`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DEFAULT_MODELS
from summary import ROWS, table

from mvit_kernels import measure, models
from mvit_kernels.cli.options import at_least

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mvit_kernels")
    group.addoption(
        "--model",
        action="append",
        choices=models.list_models(),
        metavar="NAME",
        help=f"take the layers of this model; may be repeated (default: {', '.join(DEFAULT_MODELS)})",
    )
    group.addoption("--dtype", choices=tuple(DTYPES), default="float32", help="of parameters and inputs")
    group.addoption("--batch", type=at_least(1), default=1, metavar="N", help="clips at once")
    group.addoption("--rounds", type=at_least(1), default=10, metavar="N", help="timed runs of each case")
    group.addoption("--backward", action="store_true", help="time the layers forward + backward as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--backward"):
        left_out = [item for item in items if item.name.startswith("test_forward_and_backward")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def dtype(pytestconfig: pytest.Config) -> torch.dtype:
    return DTYPES[pytestconfig.getoption("--dtype")]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["mvit_kernels"] = measure.machine("cuda" if torch.cuda.is_available() else "cpu")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if rows:
        machine = measure.machine("cuda" if torch.cuda.is_available() else "cpu")
        where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads, SIMD {machine['simd']}"
        setting = f"{config.getoption('--dtype')}, batch {config.getoption('--batch')}"
        terminalreporter.section(f"{where}, torch {machine['torch']}, {setting}")
        terminalreporter.write_line(table(rows))
