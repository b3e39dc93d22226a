"""A progress bar for the long command, on a terminal and with tqdm only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """What a long run tells of itself."""

    def stage(self, text: str) -> None:
        """What is being done now."""

    def step(self) -> None:
        """One of the announced steps is done."""


class _Silent:
    def stage(self, text: str) -> None: ...

    def step(self) -> None: ...


class _Bar:
    def __init__(self, bar: object) -> None:
        self._bar = bar

    def stage(self, text: str) -> None:
        self._bar.set_description(text)  # type: ignore[attr-defined]

    def step(self) -> None:
        self._bar.update()  # type: ignore[attr-defined]


@contextmanager
def progress(steps: int) -> Iterator[Progress]:
    """A bar of `steps` steps on standard error; silent where that is no terminal or tqdm is not installed."""
    try:
        import tqdm
    except ImportError:
        tqdm = None
    if tqdm is None or not sys.stderr.isatty():
        yield _Silent()
        return
    with tqdm.tqdm(total=steps, leave=False, file=sys.stderr, bar_format="{desc:<40} {bar} {n}/{total}") as bar:
        yield _Bar(bar)
