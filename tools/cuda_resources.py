"""What nvcc makes of the CUDA kernels: registers, local memory, tensor-core instructions, wide loads, the main loop.

    python tools/cuda_resources.py --library                            the built library, a row per kernel
    python tools/cuda_resources.py --library --arch 90 --kernel grad    each instantiation with that in its name
    python tools/cuda_resources.py --arch 80 --kernel 'bf16, 96'        compiles each by itself

Static analysis: nothing is run and no GPU is needed. cuobjdump and nvdisasm come with Triton's wheel or a CUDA toolkit;
to compile, nvcc on PATH or in CUDA_HOME. Exits with 1 where a kernel uses local memory (a spill, or an array that is
not in registers), is over its budget, or lacks the tensor-core instructions or 128-bit loads it should have; and where
a library lacks a kernel, or has one that has no budget here.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "mvit_kernels" / "lib" / "libmvit_kernels_cuda.so"
ARCHITECTURES = ("80", "90", "100", "120")

ATTENTION_DIMS = (48, 64, 80, 96, 128)
"""Those of csrc/common/attention_tiles.h; a test holds the two together."""

_HALF, _TYPES, _BOOL = ("f16", "bf16"), ("f16", "bf16", "f32"), ("false", "true")
_BIAS = tuple(f"AttentionBias::{bias}" for bias in ("none", "product", "gather"))


@dataclass(frozen=True)
class Family:
    """The instantiations of one kernel, and its budget."""

    arguments: tuple[tuple[object, ...], ...]
    """Of the template: all combinations."""
    header: str
    problem: str
    """What the kernel takes."""
    registers: int
    """The budget: what one thread may use."""
    shared_kib: int
    """The budget: dynamic shared memory of a block in any published layer. Every GPU from sm_80 on allows 99."""
    tensor_cores: tuple[str, ...] = ()
    """Beginnings of the template's arguments with which it must have tensor-core instructions; "" for all."""
    passes: int = 1
    """Of a loop inside the main loop."""
    never: tuple[str, ...] = ()
    """Combinations that are never launched."""

    def instantiations(self, name: str) -> list[str]:
        joined = (", ".join(map(str, arguments)) for arguments in itertools.product(*self.arguments))
        return [f"{name}<{arguments}>" for arguments in joined if arguments not in self.never]


# Two blocks of 128 threads share a multiprocessor where a thread has at most 255 registers. The 8 + 7 + 7 entries of
# MViTv2-S's relative position take 2 passes of 16 entries, and 3 in the forward kernel, whose rounded entries and rests
# follow each other; half a tile of queries is one of 2 in attention_grad_kv; the sums of a tile of 16 keys take 4.
FAMILIES = {
    "pooling_attention": Family(
        (_HALF, ATTENTION_DIMS, _BIAS), "pooling_attention", "AttentionForward", 255, 87, ("",), passes=3
    ),
    "pooled_query_attention": Family(
        (_HALF, ATTENTION_DIMS, _BIAS[:2]), "pooled_query_attention", "PooledQueryForward", 255, 87, ("",), passes=3
    ),
    "pooling_attention_float32": Family(
        *((ATTENTION_DIMS, _BOOL, _BOOL), "pooling_attention_float32", "AttentionForward", 255, 73),
        tuple(f"{dim}, true" for dim in ATTENTION_DIMS),
    ),
    "attention_combine": Family((_TYPES,), "attention_combine", "AttentionForward", 64, 0),
    "attention_grad_q": Family(
        *((_HALF, ATTENTION_DIMS, _BOOL, _BOOL), "attention_grad_q", "AttentionBackwardWork", 255, 99, ("",)),
        passes=2,
    ),
    "attention_grad_kv": Family(
        (_HALF, ATTENTION_DIMS, _BOOL), "attention_grad_kv", "AttentionBackwardWork", 255, 92, ("",), passes=2
    ),
    "attention_grad_q_float32": Family(
        *((ATTENTION_DIMS, _BOOL, _BOOL, _BOOL), "attention_grad_q_float32", "AttentionBackwardWork", 255, 96),
        tuple(f"{dim}, true" for dim in ATTENTION_DIMS),
        passes=4,
    ),
    "attention_grad_kv_float32": Family(
        *((ATTENTION_DIMS, _BOOL, _BOOL), "attention_grad_kv_float32", "AttentionBackwardWork", 255, 83),
        tuple(f"{dim}, true" for dim in ATTENTION_DIMS),
    ),
    "attention_grad_sum": Family((_TYPES,), "attention_grad_sum", "AttentionBackwardWork", 80, 0),
    "pool3d_norm": Family((_TYPES,), "pool3d_norm", "PoolPlan", 168, 74),
    "pool3d_norm_strips": Family((_TYPES,), "pool3d_norm", "PoolPlan", 128, 42),
    "pool3d_norm_backward_outputs": Family(
        (_HALF,), "pool3d_norm_backward_outputs", "PoolBackwardPlan", 168, 86
    ),  # strips serve float32
    "pool3d_norm_backward_output_strips": Family(
        (_TYPES,), "pool3d_norm_backward_outputs", "PoolBackwardPlan", 168, 50
    ),
    "pool3d_norm_backward_inputs": Family((_TYPES,), "pool3d_norm_backward_inputs", "PoolTransposedPlan", 168, 63),
    "pool3d_norm_backward_input_strips": Family((_TYPES,), "pool3d_norm_backward_inputs", "PoolBackwardPlan", 128, 42),
    "pool3d_norm_backward_weight_tiles": Family(
        (_TYPES,), "pool3d_norm_backward_weight_tiles", "PoolBackwardPlan", 168, 75
    ),
    "pool3d_norm_backward_weight": Family((_TYPES,), "pool3d_norm_backward_sums", "PoolBackwardPlan", 144, 12),
    "pool3d_norm_backward_parameters": Family((_TYPES,), "pool3d_norm_backward_sums", "PoolBackwardPlan", 64, 4),
    "decomposed_rel_pos": Family((_TYPES,), "decomposed_rel_pos", "RelPosProblem", 64, 0),
    "decomposed_rel_pos_backward_q": Family((_TYPES,), "decomposed_rel_pos_backward", "RelPosBackwardPlan", 96, 0),
    "decomposed_rel_pos_backward_tables": Family(
        (_TYPES,), "decomposed_rel_pos_backward", "RelPosBackwardPlan", 128, 16
    ),
    "decomposed_rel_pos_backward_sums": Family((_TYPES,), "decomposed_rel_pos_backward", "RelPosBackwardPlan", 64, 4),
}
"""Every kernel of the library."""

KERNELS = [kernel for name, family in FAMILIES.items() for kernel in family.instantiations(name)]

RESERVED_SHARED = 1024
"""Bytes of a block's shared memory that are the system's, from sm_90 on. The kernels' own is all dynamic."""

SOURCE = """#include "cuda/kernels/{header}.h"
namespace mvit::cuda {{
template __global__ void {kernel}(const __grid_constant__ {problem} p);
}}
"""

PIPES = {
    "tensor": r"HMMA",
    "special": r"MUFU",
    "shared": r"LDSM|LDS|STS",
    "global": r"LDG|STG|LDGSTS",
    "conversion": r"F2F|F2FP|I2F|F2I",
    "control": r"BRA|BAR|BSYNC|BSSY|DEPBAR|LDGDEPBAR|WARPSYNC|EXIT|SHFL|VOTE|CALL|RET|NOP",
}
"""By the instruction's name; all others are "arithmetic", the FMA and ALU pipes."""


@dataclass
class Resources:
    kernel: str
    architecture: str
    registers: int
    stack: int
    static_shared: int
    local: int
    """Bytes that instructions move to and from local memory, each counted once: spills are those."""
    hmma: int
    wide_loads: int
    loops: list[collections.Counter[str]] = field(default_factory=list)
    """Of the outer loops, instructions by pipe; none where they were not asked for."""

    @property
    def family(self) -> Family:
        return FAMILIES[_family(self.kernel)]

    def problems(self) -> list[str]:
        found = []
        if self.local or self.stack:
            found.append(f"{self.local} bytes to and from local memory, {self.stack} bytes of stack")
        if self.registers > self.family.registers:
            found.append(f"{self.registers} registers, the budget is {self.family.registers}")
        if self.static_shared > RESERVED_SHARED:
            found.append(f"{self.static_shared} bytes of static shared memory")
        if not self.hmma and _arguments(self.kernel).startswith(self.family.tensor_cores):
            found.append("no tensor-core instruction")
        if not self.wide_loads:
            found.append("no 128-bit load from global memory")
        return found

    @property
    def loop(self) -> collections.Counter[str]:
        """The main loop: that with the most tensor-core instructions."""
        return max(self.loops, key=lambda counted: counted["tensor"], default=collections.Counter())


def _family(kernel: str) -> str:
    return kernel.partition("<")[0]


def _arguments(kernel: str) -> str:
    return kernel.partition("<")[2].removesuffix(">")


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def find_tool(name: str) -> str | None:
    """cuobjdump or nvdisasm, of Triton's wheel or on PATH."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
        if tool.exists():
            return str(tool)
    return shutil.which(name)


def missing_tools(compiles: bool) -> str | None:
    """The tools that are not installed, or None."""
    tools = {name: find_tool(name) for name in ("cuobjdump", "nvdisasm")}
    tools |= {"nvcc": find_nvcc()} if compiles else {}
    return " and ".join(name for name, path in tools.items() if path is None) or None


def compile_kernel(kernel: str, architecture: str) -> Resources:
    """Of the kernel compiled by itself. Raises RuntimeError with the compiler's words."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
        family = FAMILIES[_family(kernel)]
        source.write_text(SOURCE.format(header=family.header, kernel=kernel, problem=family.problem))
        options = ["-std=c++17", "--expt-relaxed-constexpr", "-O3", f"-arch=sm_{architecture}", f"-I{ROOT / 'csrc'}"]
        _run([str(find_nvcc()), *options, "-cubin", str(source), "-o", str(cubin)])
        (resources,) = _read_cubin(cubin, architecture, loops_of=kernel)
    return resources


def read_library(library: Path, architectures: Iterable[str], loops_of: str | None = None) -> Iterator[Resources]:
    """Of every kernel in a library, with the loops of those that have `loops_of` in their name.

    Raises RuntimeError where it has a kernel that is not in the table.
    """
    dump = [str(find_tool("cuobjdump")), str(library.resolve())]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for architecture in architectures:
            _run([*dump, "-xelf", f".sm_{architecture}.cubin"], folder)
        cubins = [(path, path.suffixes[-2].removeprefix(".sm_")) for path in sorted(Path(folder).glob("*.cubin"))]
        for found in pool.map(lambda cubin: _read_cubin(*cubin, loops_of), cubins):
            yield from found


def not_in_library(rows: Iterable[Resources], architectures: Iterable[str], part: str = "") -> list[str]:
    """Kernels of the table, with `part` in their name, that are not among the rows of an architecture."""
    there = {(r.architecture, r.kernel) for r in rows}
    wanted = itertools.product(architectures, (kernel for kernel in KERNELS if part in kernel))
    return [f"sm_{architecture} {kernel}" for architecture, kernel in wanted if (architecture, kernel) not in there]


def _read_cubin(cubin: Path, architecture: str, loops_of: str | None) -> list[Resources]:
    usage = _run([str(find_tool("cuobjdump")), "-res-usage", str(cubin)])
    numbers = {
        symbol: dict(re.findall(r"(REG|STACK|SHARED):(\d+)", line))
        for symbol, line in re.findall(r"Function (\w+):\n(.*)", usage)
    }
    code = re.split(r"^\.text\.(\w+):$", _run([str(find_tool("nvdisasm")), "-c", str(cubin)]), flags=re.M)[1:]
    names = {_mangled(kernel): kernel for kernel in KERNELS}
    found = []
    for symbol, assembly in zip(code[::2], code[1::2], strict=True):
        kernel = next((kernel for start, kernel in names.items() if symbol.startswith(start)), None)
        if kernel is None:
            raise RuntimeError(f"{cubin.name} has {symbol}, which is not in the table of kernels")
        instructions, wanted = _instructions(assembly), loops_of is not None and loops_of in kernel
        found.append(
            Resources(
                kernel,
                architecture,
                registers=int(numbers[symbol]["REG"]),
                stack=int(numbers[symbol]["STACK"]),
                static_shared=int(numbers[symbol]["SHARED"]),
                local=sum(_bytes(name) for _, name, _ in instructions if name.startswith(("LDL", "STL"))),
                hmma=sum(name.startswith("HMMA") for _, name, _ in instructions),
                wide_loads=sum(re.match(r"(LDG|LDGSTS)\..*128", name) is not None for _, name, _ in instructions),
                loops=_outer_loops(instructions, FAMILIES[_family(kernel)].passes) if wanted else [],
            )
        )
    return found


def _mangled(kernel: str) -> str:
    """How the kernel's symbol begins, by the Itanium C++ ABI: S_ is mvit, S0_ mvit::cuda."""
    name, symbols = _family(kernel), ""
    for argument in _arguments(kernel).split(", "):
        if argument in _BIAS:
            symbols += f"LNS_13AttentionBiasE{_BIAS.index(argument)}E"
        elif argument in _BOOL:
            symbols += f"Lb{_BOOL.index(argument)}E"
        else:
            symbols += f"Li{argument}E" if argument.isdecimal() else f"NS0_{len(argument)}{argument}E"
    return f"_ZN4mvit4cuda{len(name)}{name}I{symbols}EEv"


def _bytes(instruction: str) -> int:
    size = re.search(r"\.(64|128)\b", instruction)
    return int(size[1]) // 8 if size else 4


def _run(command: list[str], folder: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout + done.stderr


Instruction = tuple[bool, str, str]
"""Whether it has a condition, its name, the rest; the name of a label is empty."""


def _instructions(assembly: str) -> list[Instruction]:
    found = []
    for line in assembly.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            found.append((False, "", label[1]))
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", line):
            conditional = bool(instruction[1]) or re.match(r"\s*!?UP\d", instruction[3]) is not None
            found.append((conditional, instruction[2], instruction[3]))
    return found


def _outer_loops(instructions: list[Instruction], passes: int) -> list[collections.Counter[str]]:
    """Instructions by pipe of one pass through each loop that is in no other, those of a loop inside it `passes` times.

    All of a loop are counted, also what only some passes need.
    """
    bodies = _loops(instructions)
    counts = []
    for body in bodies:
        if any(body < other for other in bodies):
            continue
        counted: collections.Counter[str] = collections.Counter()
        for i in body:
            name = instructions[i][1]
            if name and not name.startswith("NOP"):
                counted[_pipe(name)] += passes ** sum(i in inner for inner in bodies if inner < body)
        counts.append(counted)
    return counts


def _loops(instructions: list[Instruction]) -> list[frozenset[int]]:
    """The places of the instructions of each natural loop: of a branch to what lies on every way to it."""
    place = {rest: i for i, (_, name, rest) in enumerate(instructions) if not name}
    after: list[list[int]] = []
    for i, (conditional, name, rest) in enumerate(instructions):
        target = re.search(r"\.L\w+", rest) if name.startswith("BRA") else None
        ends = name.startswith(("BRA", "EXIT", "RET")) and not conditional
        after.append([place[target[0]]] if target else [])
        if not ends and i + 1 < len(instructions):
            after[i].append(i + 1)
    before: list[list[int]] = [[] for _ in after]
    for i, targets in enumerate(after):
        for target in targets:
            before[target].append(i)
    loops: dict[int, set[int]] = {}
    for i, targets in enumerate(after):
        for head in targets:
            if head <= i and not _reaches(after, 0, i, without=head):
                body = loops.setdefault(head, {head})
                todo = [i]
                while todo:
                    at = todo.pop()
                    if at not in body:
                        body.add(at)
                        todo += before[at]
    return [frozenset(body) for body in loops.values()]


def _reaches(after: list[list[int]], start: int, end: int, without: int) -> bool:
    seen, todo = {without}, [start]
    while todo:
        at = todo.pop()
        if at == end:
            return True
        if at not in seen:
            seen.add(at)
            todo += after[at]
    return False


def _pipe(name: str) -> str:
    return next((pipe for pipe, names in PIPES.items() if re.match(rf"({names})\b", name)), "arithmetic")


def table(rows: list[Resources], all_loops: bool = False) -> str:
    pipes = ["arithmetic", "special", "shared", "global", "conversion", "control"]
    lines = [f"{'kernel':50} {'sm':>4} {'regs':>5} {'HMMA':>5} {'per HMMA':>9} " + " ".join(f"{p:>10}" for p in pipes)]
    for r in rows:
        bad = f"  !! {'; '.join(r.problems())}" if r.problems() else ""
        loops = [loop for loop in r.loops if loop["tensor"]] if all_loops else []
        for loop in loops or [r.loop]:
            hmma = loop["tensor"]
            mix = " ".join(f"{loop[p] / hmma:10.2f}" if hmma else f"{'-':>10}" for p in pipes)
            lines.append(
                f"{r.kernel:50} {r.architecture:>4} {r.registers:5} {hmma or '-':>5} "
                f"{f'{sum(loop.values()) / hmma:.2f}' if hmma else '-':>9} {mix}{bad}"
            )
    return "\n".join(lines)


def summary(rows: list[Resources]) -> str:
    """A row for each family: the most registers, the fewest tensor-core instructions and wide loads of any variant.

    Shared memory is what the budget says, which a test holds to be that of the published layers.
    """
    architectures = list(dict.fromkeys(r.architecture for r in rows))
    names = (f"registers, sm_{a}" for a in architectures)
    heads = ["kernel", "variants", *names, "local memory, B", "HMMA", "128-bit loads", "shared memory, KB"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, family in FAMILIES.items():
        of_family = [r for r in rows if _family(r.kernel) == name]
        if not of_family:
            continue
        most = [max((r.registers for r in of_family if r.architecture == a), default=0) for a in architectures]
        tensor = [r.hmma for r in of_family if _arguments(r.kernel).startswith(family.tensor_cores)]
        cells = [
            *(f"`{name}`", len({r.kernel for r in of_family}), *most, max(r.local for r in of_family)),
            *(min(tensor, default="-"), min(r.wide_loads for r in of_family), family.shared_kib or "-"),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="?", type=Path, const=LIBRARY, help="read this library, or the built one")
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), help="80 90 100 120")
    parser.add_argument("--kernel", default="", help="only kernels with this in their name, each on its own row")
    parser.add_argument("--loops", action="store_true", help="every outer loop with tensor-core instructions")
    options = parser.parse_args()
    if missing := missing_tools(compiles=options.library is None):
        parser.error(f"{missing}: not installed")
    if options.library is not None and not options.library.exists():
        parser.error(f"{options.library}: not there; MVIT_KERNELS_CUDA=require builds it")
    lacks: list[str] = []
    if options.library is not None:
        mix = options.kernel if options.kernel or options.loops else None
        rows = [r for r in read_library(options.library, options.arch, mix) if options.kernel in r.kernel]
        lacks = not_in_library(rows, options.arch, options.kernel)
    else:
        jobs = [(kernel, a) for kernel in KERNELS if options.kernel in kernel for a in options.arch]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            rows = list(pool.map(lambda job: compile_kernel(*job), jobs))
    print(table(rows, options.loops) if options.kernel or options.loops else summary(rows))
    bad = [f"sm_{r.architecture} {r.kernel}: {'; '.join(r.problems())}" for r in rows if r.problems()]
    bad += [f"{kernel}: not in the library" for kernel in lacks]
    print(*bad, sep="\n", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
