"""The compiled libraries, one of CPU and one of CUDA kernels: loaded once, when this module is imported.

They register the kernels of the ops that :mod:`mvit_kernels.ops` defines. Where one is missing or can't be loaded
nothing fails here, and the other is not touched: :func:`load_error` and :func:`cuda_load_error` are the reasons that
dispatch, ``explain`` and ``info`` show.
"""

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "lib"
LIBRARY = FOLDER / "libmvit_kernels_cpu.so"
CUDA_LIBRARY = FOLDER / "libmvit_kernels_cuda.so"
BUILD_INFO = FOLDER / "build_info.json"
INTERFACE = 4
"""Of the schemas in :mod:`mvit_kernels.ops`; counts up when one changes, with csrc/bindings/interface.cpp.

Nothing else keeps a library of other schemas from being called with arguments that it reads as something else.
"""


def _read_build_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _not_built(name: str, library: Path, info: dict[str, Any]) -> str:
    reason = info.get("reason") or f"no file {library}; run pip install --no-build-isolation -e ."
    return f"the {name} library was not built: {reason}"


def _open(name: str, library: Path) -> ctypes.CDLL | str:
    """The library with its kernels registered, or why not."""
    try:
        torch.ops.load_library(str(library))
        opened = ctypes.CDLL(str(library))  # the handle torch has just opened
        interface = opened.mvit_kernels_interface()
    except (OSError, RuntimeError, AttributeError) as error:  # the file, a registration in it, an entry missing from it
        return f"the {name} library could not be loaded: {error}"
    if interface != INTERFACE:
        return (
            f"the {name} library was built for other op schemas (interface {interface}, {INTERFACE} is right); "
            "run pip install --no-build-isolation -e . again"
        )
    return opened


def _load_cpu(info: dict[str, Any]) -> tuple[str | None, str | None, tuple[str, ...]]:
    """(error, level in use, levels built in)"""
    if not LIBRARY.exists():
        return _not_built("C++", LIBRARY, info), None, ()
    library = _open("C++", LIBRARY)
    if isinstance(library, str):
        return library, None, ()
    try:
        level, levels = _text_of(library.mvit_kernels_cpu_level), _text_of(library.mvit_kernels_cpu_levels)
    except AttributeError as error:
        return f"the C++ library could not be loaded: {error}", None, ()
    if not level:
        wanted = os.environ.get("MVIT_KERNELS_CPU_LEVEL", "")
        return f"MVIT_KERNELS_CPU_LEVEL {wanted!r}: one of {levels} that this CPU supports", None, ()
    return None, level, tuple(levels.split(","))


def _load_cuda(info: dict[str, Any]) -> str | None:
    if not CUDA_LIBRARY.exists():
        return _not_built("CUDA", CUDA_LIBRARY, info)
    release = str(info.get("cuda") or "")
    if torch.version.cuda is None:
        return f"the CUDA library is for torch with CUDA {release}; torch {torch.__version__} was built without CUDA"
    if release and release.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"the CUDA library is for CUDA {release}; torch {torch.__version__} was built for {torch.version.cuda}"
    library = _open("CUDA", CUDA_LIBRARY)
    return library if isinstance(library, str) else None


def _text_of(entry: Any) -> str:
    entry.argtypes = []
    entry.restype = ctypes.c_char_p
    text: bytes | None = entry()
    return "" if text is None else text.decode()


_BUILD_INFO = _read_build_info(BUILD_INFO)
_LOAD_ERROR, _CPU_LEVEL, _CPU_LEVELS = _load_cpu(_BUILD_INFO.get("cpu", {}))
_CUDA_LOAD_ERROR = _load_cuda(_BUILD_INFO.get("cuda", {}))


def load_error() -> str | None:
    """Why the library of CPU kernels is not there, with the loader's own words; None if it is loaded."""
    return _LOAD_ERROR


def cpu_level() -> str | None:
    """The instruction-set level the kernels run at on this machine, "avx2" for one; None if it is not loaded."""
    return _CPU_LEVEL


def cpu_levels() -> tuple[str, ...]:
    """The instruction-set levels built into the library, lowest first; empty if it is not loaded."""
    return _CPU_LEVELS


def cuda_load_error() -> str | None:
    """Why the library of CUDA kernels is not there, with the loader's own words; None if it is loaded."""
    return _CUDA_LOAD_ERROR


def cuda_architectures() -> tuple[str, ...]:
    """What the CUDA library holds code for: "80" for sm_80, "120+PTX" for PTX of compute_120."""
    return tuple(_BUILD_INFO.get("cuda", {}).get("architectures", ()))


def build_info() -> dict[str, Any]:
    """What the build recorded: version, git revision, compilers, levels, architectures, torch; empty if never built."""
    return _BUILD_INFO
