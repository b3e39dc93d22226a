"""What holds of every wheel and of the libraries in it: for build_wheels.py, and for the tests of a library built here.

Reads libraries with nm of the binutils.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

CPU, CUDA = "libmvit_kernels_cpu.so", "libmvit_kernels_cuda.so"

CPU_BUDGET = 6 << 20
"""Bytes that the library of CPU kernels may have; it has 3.8 MiB."""
CUDA_BUDGET = {"host": 1 << 20, "code": 4 << 20, "PTX": 6 << 20}
"""Of the library of CUDA kernels: without kernels, and more for each architecture with code and each with PTX. With
nvcc 13.0 the first has 0.5 MiB and six architectures and PTX together 28."""

FLOOR = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11)}
"""What manylinux_2_28 has: glibc 2.28 and the libstdc++ of GCC 8."""

EXPORTS = {
    CPU: {
        "mvit_kernels_interface",
        "mvit_kernels_cpu_level",
        "mvit_kernels_cpu_levels",
        "mvit_kernels_cpu_multiply_adds",
    },
    CUDA: {"mvit_kernels_interface"},
}
"""The functions that Python looks up."""

CONTENTS = (
    r"mvit_kernels/(\w+/)*\w+\.py",
    r"mvit_kernels/py\.typed",
    rf"mvit_kernels/lib/({re.escape(CPU)}|{re.escape(CUDA)}|build_info\.json)",
    r"mvit_kernels-[^/]+\.dist-info/([A-Z_]+|licenses/LICENSE|top_level\.txt)",
)
"""Every file of a wheel is one of these: no sources of kernels, no tests, no emulation."""


class WheelError(Exception):
    """What is wrong with a wheel: one line."""


def check_wheel(wheel: Path) -> None:
    """Its files, the sizes of its libraries and their symbols.

    Raises:
        WheelError: the first rule that does not hold.
    """
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        check_contents(archive.namelist())
        built = json.loads(archive.read("mvit_kernels/lib/build_info.json"))
        for name in (CPU, CUDA):
            if built.get("cpu" if name == CPU else "cuda", {}).get("built"):
                library = Path(archive.extract(f"mvit_kernels/lib/{name}", folder))
                check_size(library, built)
                check_symbols(library)


def check_contents(names: Iterable[str]) -> None:
    for name in names:
        if not name.endswith("/") and not any(re.fullmatch(pattern, name) for pattern in CONTENTS):
            raise WheelError(f"{name} does not belong in a wheel (CONTENTS of tools/wheel_rules.py)")


def check_size(library: Path, built: dict) -> None:
    """`built` is the wheel's build_info.json."""
    names = built.get("cuda", {}).get("architectures", [])
    cuda = CUDA_BUDGET["host"] + sum(CUDA_BUDGET["PTX" if name.endswith("+PTX") else "code"] for name in names)
    size, budget = library.stat().st_size, CPU_BUDGET if library.name == CPU else cuda
    if size > budget:
        raise WheelError(f"{library.name} has {size} bytes, its budget is {budget} (tools/wheel_rules.py)")


def check_symbols(library: Path) -> None:
    names = imports(library, weak=True)
    for what, wrong in (
        ("imports of Python:", of_python(names)),
        ("imports of torch more than its stable C interface:", foreign(imports(library))),
        ("needs a newer system than manylinux_2_28:", too_new(names)),
        ("shows what Python does not look up:", exports(library) - EXPORTS[library.name]),
    ):
        if wrong:
            raise WheelError(f"{library.name} {what} {' '.join(sorted(wrong)[:5])}")


def symbols(library: Path, *options: str) -> list[tuple[str, str]]:
    """(nm's type letter, name) of each symbol."""
    try:
        output = subprocess.run(["nm", *options, library], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise WheelError(f"{library.name} can't be read: {error}") from None
    return [(line.split()[-2], line.split()[-1]) for line in output.splitlines() if len(line.split()) >= 2]


def imports(library: Path, *, weak: bool = False) -> set[str]:
    """With the version behind an "@" where it has one; those that need not be there too, if `weak`."""
    return {name for kind, name in symbols(library, "-D", "--undefined-only") if weak or kind == "U"}


def exports(library: Path) -> set[str]:
    return {name for _, name in symbols(library, "-D", "--defined-only")}


def of_torch(names: Iterable[str]) -> set[str]:
    """Those without a version: libc's, libstdc++'s and CUDA's have one, but where libtorch_cpu.so has a copy."""
    return {name for name in names if "@" not in name and not re.match(r"_ZN?K?St", name)}


def foreign(names: Iterable[str]) -> set[str]:
    """What is torch's but not of its stable C interface: at:: and c10:: for two."""
    return {name for name in of_torch(names) if not re.match(r"(aoti_torch|torch)_\w+$", name)}


def of_python(names: Iterable[str]) -> set[str]:
    return {name for name in names if re.match(r"_?Py", name)}


def too_new(names: Iterable[str]) -> set[str]:
    found = {name: re.search(r"@+(GLIBC|GLIBCXX|CXXABI)_([\d.]+)$", name) for name in names}
    return {name for name, v in found.items() if v and tuple(map(int, v[2].split("."))) > FLOOR[v[1]]}
