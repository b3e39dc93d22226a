"""A call on one backend of this package, where it can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from subject import Unavailable

from mvit_kernels import backends, use_backend


def on_backend(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` on one backend of this package, "reference" its eager one."""

    def run() -> Any:
        with use_backend("eager" if name == "reference" else name):
            return call()

    return run


def must_run_here(name: str) -> None:
    """:class:`Unavailable` with its reason where a backend of this package can't run here."""
    if name == "reference":
        return
    if name not in backends.backend_names():
        raise Unavailable("this version has no such backend")
    reason = backends.get(name).unavailable()
    if reason is not None:
        raise Unavailable(reason)
