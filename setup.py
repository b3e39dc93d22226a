"""Builds the C++ and CUDA libraries with CMake and Ninja. Everything else about the package is in pyproject.toml.

torch is taken from the running environment, so install with ``pip install --no-build-isolation``. Where the library
can't be built the package is installed as pure Python, and the reason goes into ``mvit_kernels/lib/build_info.json``,
from where ``python -m mvit_kernels info`` shows it.

Environment:
    MVIT_KERNELS_REQUIRE_CPP=1   a C++ library that can't be built is an error
    MVIT_KERNELS_CUDA            auto (default): the CUDA library too, where there is a toolchain (cuda_toolchain.py);
                                 require: it is an error where it can't be built; off: not tried
    CUDA_HOME                    the toolkit's folder; else nvcc on PATH, else that of the package index beside torch
    TORCH_CUDA_ARCH_LIST         architectures, "8.0;9.0+PTX"; else those of all GPUs from sm_80 on, and PTX
    MVIT_KERNELS_LOCAL_VERSION   what follows the + of the version, "cu130" for one; tools/build_wheels.py sets it
    MAX_JOBS                     compile jobs; otherwise as many as there are cores and 2 GB of free memory for each
    CXX, CXXFLAGS, LDFLAGS       as CMake takes them
"""

import filecmp
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

from setuptools import Extension, __version__, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError, OptionError

try:  # a new virtual environment has an old setuptools or none, and without build isolation pip does not look
    if int(__version__.split(".")[0]) < 77:
        raise ImportError(f"setuptools {__version__} is too old")
    from packaging.version import Version
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError as error:
    sys.exit(f'mvit_kernels: {error}; first run: pip install "setuptools>=77" wheel "packaging>=24.2" cmake ninja')

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # pip does not put it there

from cuda_toolchain import NoToolchain, find_toolchain  # noqa: E402

LIBRARY = "libmvit_kernels_cpu.so"
CUDA_LIBRARY = "libmvit_kernels_cuda.so"
BUILD_INFO = "build_info.json"
FILES = (LIBRARY, CUDA_LIBRARY, BUILD_INFO)
REVISION = "revision.json"  # what git said, in a source distribution
TORCH_TARGET = Version("2.10")  # the oldest torch that has the stable C++ interface used here
BYTES_PER_JOB = 2 << 30


class NotBuilt(Exception):
    """Why there is no library: one line, in words a user can act on."""


class BuildExt(build_ext):
    """Puts libraries and build_info.json into mvit_kernels/lib: of the source tree if in place, else of the build."""

    def run(self) -> None:
        folder = self.folder(self.inplace)
        folder.mkdir(parents=True, exist_ok=True)
        info = {"version": self.distribution.get_version(), **git_state()}
        cpp = os.environ.get("MVIT_KERNELS_REQUIRE_CPP", "0") not in ("", "0")
        cuda = os.environ.get("MVIT_KERNELS_CUDA") or "auto"
        if cuda not in ("auto", "require", "off"):
            raise OptionError(f"MVIT_KERNELS_CUDA {cuda!r}: auto, require or off")
        info["cpu"] = build("C++", folder / LIBRARY, build_cpu_library, cpp, "MVIT_KERNELS_REQUIRE_CPP=1")
        if cuda == "off":
            (folder / CUDA_LIBRARY).unlink(missing_ok=True)
            info["cuda"] = {"built": False, "reason": "MVIT_KERNELS_CUDA was off"}
        else:
            required, switch = cuda == "require", "MVIT_KERNELS_CUDA=require"
            info["cuda"] = build("CUDA", folder / CUDA_LIBRARY, build_cuda_library, required, switch)
        (folder / BUILD_INFO).write_text(json.dumps(info, indent=2) + "\n")

    def folder(self, inplace: bool) -> Path:
        return (ROOT if inplace else Path(self.build_lib)) / "mvit_kernels" / "lib"

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        built, here = self.folder(inplace=False), self.folder(inplace=True)
        return {str(built / name): str(here / name) for name in FILES if (here / name).exists()}

    def get_outputs(self) -> list[str]:
        if self.inplace:
            return list(self.get_output_mapping())
        folder = self.folder(inplace=False)
        return [str(folder / name) for name in FILES if (folder / name).exists()]


class BdistWheel(bdist_wheel):
    """py3-none-<platform>: the libraries do not use Python's C API. py3-none-any where there is none."""

    def get_tag(self) -> tuple[str, str, str]:
        folder = self.get_finalized_command("build_ext").folder(inplace=False)
        built = any((folder / name).exists() for name in (LIBRARY, CUDA_LIBRARY))
        return "py3", "none", super().get_tag()[2] if built else "any"


class Sdist(sdist):
    """Takes the commit along: there is no git where a source distribution is built."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        (Path(base_dir) / REVISION).write_text(json.dumps(git_state()) + "\n")


def build(name: str, target: Path, how: Callable[[], tuple[Path, dict]], required: bool, switch: str) -> dict:
    """Builds one library into `target`; returns what build_info.json says of it.

    Where it can't be built that is an error if it is `required`, as the setting `switch` makes it, else a reason.
    """
    try:
        library, info = how()
        copy_if_changed(library, target)
        return info
    except (NotBuilt, NoToolchain) as reason:
        # A library left from an earlier build would not be of these sources.
        target.unlink(missing_ok=True)
        if required:
            raise CompileError(f"the {name} library was not built: {reason}") from None
        print(
            f"mvit_kernels: the {name} library was not built: {reason}\n"
            f"mvit_kernels: going on without it; {switch} makes this an error",
            file=sys.stderr,
        )
        return {"built": False, "reason": str(reason)}


def build_cpu_library() -> tuple[Path, dict]:
    torch_version, torch_folder = find_torch()
    tree = run_cmake(ROOT, "cmake", torch_version, torch_folder, {})
    info = json.loads((tree / "cpu.json").read_text())
    return tree / LIBRARY, {"built": True, "torch": torch_version, "torch_target": str(TORCH_TARGET), **info}


def build_cuda_library() -> tuple[Path, dict]:
    torch_version, torch_folder = find_torch()
    toolchain = find_toolchain(torch_folder)
    options = {
        "MVIT_NVCC": str(toolchain.nvcc),
        "MVIT_CUDA_INCLUDE": ";".join(map(str, toolchain.include)),
        "MVIT_CUDART": str(toolchain.runtime),
        "MVIT_CUDA_ARCHITECTURES": ";".join(toolchain.architectures),
    }
    tree = run_cmake(ROOT / "csrc" / "cuda", "cuda", torch_version, torch_folder, options)
    said = {"nvcc": toolchain.version, "cuda": toolchain.release, "architectures": list(toolchain.architectures)}
    return tree / CUDA_LIBRARY, {"built": True, "torch": torch_version, "torch_target": str(TORCH_TARGET), **said}


def run_cmake(source: Path, name: str, torch_version: str, torch_folder: Path, options: Mapping[str, str]) -> Path:
    """Runs CMake and Ninja; returns the build tree. Rebuilds only what has changed."""
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    configure = [
        *(cmake, "-S", str(source), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_BUILD_TYPE=Release"),
        *(f"-DMVIT_TORCH_INCLUDE={torch_folder / 'include'}", f"-DMVIT_TORCH_LIB={torch_folder / 'lib'}"),
        f"-DMVIT_TORCH_TARGET=0x{TORCH_TARGET.major:02x}{TORCH_TARGET.minor:02x}{0:012x}",
        *(f"-D{option}={value}" for option, value in options.items()),
    ]
    # CMake keeps the compiler and the tools of its first run, so every choice of them gets a build tree of its own.
    choices = [configure, torch_version, *(os.environ.get(name) for name in ("CXX", "CXXFLAGS", "LDFLAGS"))]
    tree = ROOT / "build" / f"{name}-{hashlib.sha256(json.dumps(choices).encode()).hexdigest()[:12]}"
    run("configuring with CMake", [*configure, "-B", str(tree)], echo=False)
    run("compiling", [cmake, "--build", str(tree), "--parallel", str(max_jobs())], echo=True)
    return tree


def find_torch() -> tuple[str, Path]:
    """torch's version and folder. Does not import it: the build needs its headers and libraries alone."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise NotBuilt("torch is not in the build environment; install torch, then pip install --no-build-isolation")
    version, folder = importlib.metadata.version("torch"), Path(spec.origin).parent
    if Version(version).release < TORCH_TARGET.release:
        raise NotBuilt(f"torch {version} is in the build environment; {TORCH_TARGET} or newer is needed")
    if not (folder / "include" / "torch" / "csrc" / "stable" / "library.h").exists():
        raise NotBuilt(f"torch {version} in {folder} has no C++ headers; a torch wheel has them")
    return version, folder


def find_tool(name: str) -> str:
    # pip puts cmake and ninja beside the running Python, which is not on PATH where the environment is not activated.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    tool = shutil.which(name, path=path)
    if tool is None:
        raise NotBuilt(f"{name} is not in the build environment; pip install {name}")
    return tool


def max_jobs() -> int:
    if given := os.environ.get("MAX_JOBS"):
        if not given.isdecimal() or int(given) < 1:
            raise OptionError(f"MAX_JOBS {given!r}: a whole number from 1")
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        available_kib = int(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1])
    except (OSError, TypeError):  # not Linux
        return cores
    return max(1, min(cores, available_kib * 1024 // BYTES_PER_JOB))


def run(step: str, command: list[str], *, echo: bool) -> None:
    """Runs a command; its output is shown as it comes (echo), or only if it fails."""
    lines = []
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout:
                lines.append(line)
                if echo:
                    print(line, end="", flush=True)
    except OSError as error:
        raise NotBuilt(f"{step} failed: {error}") from None
    if process.returncode:
        if not echo:
            print(*lines, sep="", file=sys.stderr)
        raise NotBuilt(f"{step} failed: {first_error(lines)}")


def first_error(lines: list[str]) -> str:
    """The first error of a tool's output, on one line."""
    errors = (number for number, line in enumerate(lines) if re.search(r"\berror\b|undefined reference", line, re.I))
    start = next(errors, max(0, len(lines) - 4))
    return " ".join(" ".join(lines[start : start + 6]).split())[:300] or "no output"


def copy_if_changed(source: Path, target: Path) -> None:
    """Replaces the file in one step: a process that has the old one loaded keeps it."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    fresh = target.with_suffix(".tmp")
    shutil.copy2(source, fresh)
    os.replace(fresh, target)


def git_state() -> dict:
    """The commit, and whether tracked files differ from it; None for both where nothing tells."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == ROOT:
            changes = git("status", "--porcelain", "--untracked-files=no")
            return {"revision": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):  # no git, no repository, no commit
        pass
    if (ROOT / REVISION).exists():
        return json.loads((ROOT / REVISION).read_text())
    return {"revision": None, "dirty": None}


def version() -> str:
    """The package's version, and what a wheel of its own adds to it."""
    text = (ROOT / "mvit_kernels" / "__init__.py").read_text()
    public = re.search(r'^__version__ = "(.+)"$', text, re.M)[1]
    local = os.environ.get("MVIT_KERNELS_LOCAL_VERSION", "")
    if local and not re.fullmatch(r"[a-z0-9]+(\.[a-z0-9]+)*", local):
        sys.exit(f"MVIT_KERNELS_LOCAL_VERSION {local!r}: lower-case letters, digits and dots, 'cu130' for one")
    return f"{public}+{local}" if local else public


setup(
    version=version(),
    ext_modules=[Extension("mvit_kernels.lib.libmvit_kernels", sources=[])],  # CMake knows the sources
    cmdclass={"build_ext": BuildExt, "bdist_wheel": BdistWheel, "sdist": Sdist},
)
