"""What a launch needs to know of where it runs, and the launch itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..backends.compiled import tf32_allowed
from .launch import family


@dataclass
class Recording:
    """Launches that were noted instead of made, for ahead-of-time compilation: kernel, program count, arguments."""

    arch: str
    launches: list[tuple[Any, int, tuple[Any, ...], dict[str, int]]] = field(default_factory=list)


_recording: ContextVar[Recording | None] = ContextVar("mvit_kernels_triton_recording", default=None)


@contextmanager
def record_launches(arch: str) -> Iterator[Recording]:
    """Note the launches inside the `with` as for a GPU of family `arch`, and make none. Meta tensors are enough."""
    recording = Recording(arch)
    token = _recording.set(recording)
    try:
        yield recording
    finally:
        _recording.reset(token)


def device_family(device: torch.device) -> str:
    """The architecture family of a device; "any" for the CPU, where the interpreter runs."""
    recording = _recording.get()
    if recording is not None:
        return recording.arch
    if device.type != "cuda":
        return "any"
    return family(None if torch.version.hip else torch.cuda.get_device_capability(device))


def launch(
    kernel: Any, programs: int, like: Tensor, *args: Any, warps: int, stages: int, registers: int | None = None
) -> None:
    """Run `programs` programs of a kernel on the device of `like`; on the CPU the interpreter runs them.

    `registers` bounds those of a thread on NVIDIA's GPUs. Without a bound ptxas spills a few to run more programs.
    """
    options = {"num_warps": warps, "num_stages": stages}
    if registers is not None and device_family(like.device) not in ("gfx9", "any"):
        options["maxnreg"] = registers
    recording = _recording.get()
    if recording is not None:
        recording.launches.append((kernel, programs, args, options))
        return
    # Triton launches on the current device.
    on: AbstractContextManager[object] = nullcontext() if like.device.type == "cpu" else torch.cuda.device(like.device)
    with on:
        kernel[(programs,)](*args, **options)


def precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies: float32 in full, or in TF32 where PyTorch's own setting allows it for matrix products."""
    return "ieee" if dtype == torch.float32 and not tf32_allowed() else "tf32"
