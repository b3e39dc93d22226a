"""Finds what the CUDA library is compiled with: nvcc, the headers and runtime of its release, the architectures.

For setup.py. Looks at files and asks nvcc alone: no driver, no GPU, no network, no import of torch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
"""Built for where TORCH_CUDA_ARCH_LIST says nothing, those that nvcc knows, and PTX of the last for later GPUs."""


class NoToolchain(Exception):
    """Why there is no CUDA library: one line, in words a user can act on."""


@dataclass(frozen=True)
class Toolchain:
    nvcc: Path
    version: str
    """Of nvcc, "13.0.88"."""
    include: tuple[Path, ...]
    runtime: Path
    """libcudart.so.<major>, to link against; the one torch brings is loaded."""
    architectures: tuple[str, ...]
    """As csrc/cuda/CMakeLists.txt takes them: "80", "90a", "120+PTX"."""

    @property
    def release(self) -> str:
        """Of CUDA, "13.0"."""
        return ".".join(self.version.split(".")[:2])


def find_toolchain(torch_folder: Path) -> Toolchain:
    """The toolchain for the torch in `torch_folder`, or NoToolchain."""
    wanted = _cuda_of_torch(torch_folder)
    nvcc = _find_nvcc(torch_folder)
    version = re.search(r"release \d+\.\d+, V(\d+\.\d+\.\d+)", _ask(nvcc, "--version"))
    if version is None:
        raise NoToolchain(f"{nvcc} --version names no release")
    major = version[1].split(".")[0]
    if major != wanted.split(".")[0]:
        raise NoToolchain(f"{nvcc} is of CUDA {version[1]}, torch was built for {wanted}: one major release is right")
    # A toolkit has all in one folder, a package index has it beside torch.
    homes = [nvcc.resolve().parents[1], nvcc.parents[1], *sorted((torch_folder.parent / "nvidia").glob("cu[0-9]*"))]
    include = tuple(dict.fromkeys(home / "include" for home in homes if (home / "include").is_dir()))
    for header in ("cuda_runtime_api.h", "crt/host_config.h"):
        if not any((folder / header).exists() for folder in include):
            raise NoToolchain(f"{nvcc} has no header {header} beside it; nvidia-cuda-runtime and nvidia-cuda-crt have")
    name = f"libcudart.so.{major}"
    folders = [home / lib for home in homes for lib in ("lib64", "lib")]
    runtime = next((folder / name for folder in folders if (folder / name).exists()), None)
    if runtime is None:
        raise NoToolchain(f"there is no {name} beside {nvcc} or torch")
    architectures = choose_architectures(
        _ask(nvcc, "--list-gpu-arch").split(), os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    )
    return Toolchain(nvcc, version[1], include, runtime, architectures)


def choose_architectures(known: list[str], wished: str) -> tuple[str, ...]:
    """What to build for: `wished` as in TORCH_CUDA_ARCH_LIST ("8.0 9.0a+PTX"), or the usual ones; in nvcc's words.

    Raises:
        NoToolchain: a wish that is not understood, or that nvcc (`known`, "compute_80") can't meet.
    """
    numbers = {name.removeprefix("compute_") for name in known}
    if not wished.strip():
        chosen = [number for number in ARCHITECTURES if number in numbers]
        if not chosen:
            raise NoToolchain(f"nvcc knows none of the architectures {' '.join(ARCHITECTURES)}")
        return (*chosen, f"{chosen[-1]}+PTX")
    found: list[str] = []
    for wish in re.split(r"[;,\s]+", wished.strip()):
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", wish)
        if parts is None:
            raise NoToolchain(f"TORCH_CUDA_ARCH_LIST {wished!r}: {wish!r} is no architecture like 8.0, 9.0a or 9.0+PTX")
        number = parts[1] + parts[2]
        if number not in numbers:
            raise NoToolchain(f"TORCH_CUDA_ARCH_LIST {wished!r}: nvcc does not know {wish}")
        if int(number) < 80:
            raise NoToolchain(f"TORCH_CUDA_ARCH_LIST {wished!r}: {wish} is too old, the kernels need 8.0")
        found += [number + parts[3], *([f"{number}{parts[3]}+PTX"] if parts[4] else [])]
    return tuple(dict.fromkeys(found))


def _cuda_of_torch(folder: Path) -> str:
    release = re.search(r"^cuda(?::[^=]*)? = '([\d.]+)'", (folder / "version.py").read_text(), re.M)
    if release is None:
        raise NoToolchain("the torch in the build environment was built without CUDA")
    return release[1]


def _find_nvcc(torch_folder: Path) -> Path:
    home = os.environ.get("CUDA_HOME")
    if home:
        nvcc = Path(home) / "bin" / "nvcc"
        if not nvcc.exists():
            raise NoToolchain(f"CUDA_HOME {home!r} has no bin/nvcc")
        return nvcc
    if found := shutil.which("nvcc"):
        return _behind_a_script(Path(found))
    for nvcc in sorted((torch_folder.parent / "nvidia").glob("cu[0-9]*/bin/nvcc")):
        return nvcc
    raise NoToolchain("there is no nvcc in CUDA_HOME, on PATH or beside torch; pip install nvidia-cuda-nvcc")


def _behind_a_script(nvcc: Path) -> Path:
    """nvcc itself, where what is on PATH is a script that calls it: the toolkit's folder is the one it names."""
    top = re.search(r"^#\$ TOP=(.+)$", _ask(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.M)
    real = Path(os.path.normpath(top[1].strip())) / "bin" / "nvcc" if top else nvcc
    return real if real.exists() else nvcc


def _ask(nvcc: Path, *arguments: str) -> str:
    try:
        done = subprocess.run([str(nvcc), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoToolchain(f"{nvcc} {' '.join(arguments)} failed: {error}") from None
    return done.stdout + done.stderr
