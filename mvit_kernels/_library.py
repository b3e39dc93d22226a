"""The compiled library: loaded once, when this module is imported, and what it says of itself.

The library registers the CPU kernels of the ops that :mod:`mvit_kernels.ops` defines. Where it is missing or can't be
loaded nothing fails here: :func:`load_error` is the reason that dispatch, ``explain`` and ``info`` show.
"""

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "lib"
LIBRARY = FOLDER / "libmvit_kernels_cpu.so"
BUILD_INFO = FOLDER / "build_info.json"
INTERFACE = 1
"""Of the schemas in :mod:`mvit_kernels.ops`; counts up when one changes, with csrc/bindings/interface.cpp.

Nothing else keeps a library of other schemas from being called with arguments that it reads as something else.
"""


def _read_build_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _reason_not_built(info: dict[str, Any]) -> str:
    reason = info.get("cpu", {}).get("reason") or f"no file {LIBRARY}; run pip install --no-build-isolation -e ."
    return f"the C++ library was not built: {reason}"


def _load() -> tuple[str | None, str | None, tuple[str, ...]]:
    """(error, level in use, levels built in)"""
    if not LIBRARY.exists():
        return _reason_not_built(_BUILD_INFO), None, ()
    try:
        torch.ops.load_library(str(LIBRARY))
        library = ctypes.CDLL(str(LIBRARY))  # the handle torch has just opened
        interface = library.mvit_kernels_interface()
        level, levels = _text_of(library.mvit_kernels_cpu_level), _text_of(library.mvit_kernels_cpu_levels)
    except (OSError, RuntimeError, AttributeError) as error:  # the file, a registration in it, an entry missing from it
        return f"the C++ library could not be loaded: {error}", None, ()
    if interface != INTERFACE:
        return (
            (
                f"the C++ library was built for other op schemas (interface {interface}, {INTERFACE} is right); "
                "run pip install --no-build-isolation -e . again"
            ),
            None,
            (),
        )
    if not level:
        wanted = os.environ.get("MVIT_KERNELS_CPU_LEVEL", "")
        return f"MVIT_KERNELS_CPU_LEVEL {wanted!r}: one of {levels} that this CPU supports", None, ()
    return None, level, tuple(levels.split(","))


def _text_of(entry: Any) -> str:
    entry.argtypes = []
    entry.restype = ctypes.c_char_p
    text: bytes | None = entry()
    return "" if text is None else text.decode()


_BUILD_INFO = _read_build_info(BUILD_INFO)
_LOAD_ERROR, _CPU_LEVEL, _CPU_LEVELS = _load()


def load_error() -> str | None:
    """Why the library is not there, with the loader's own words; None if it is loaded."""
    return _LOAD_ERROR


def cpu_level() -> str | None:
    """The instruction-set level the kernels run at on this machine, "avx2" for one; None if it is not loaded."""
    return _CPU_LEVEL


def cpu_levels() -> tuple[str, ...]:
    """The instruction-set levels built into the library, lowest first; empty if it is not loaded."""
    return _CPU_LEVELS


def build_info() -> dict[str, Any]:
    """What the build recorded: version, git revision, compiler, levels, torch; empty if nothing was ever built."""
    return _BUILD_INFO
