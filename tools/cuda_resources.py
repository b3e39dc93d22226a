"""What nvcc makes of the CUDA kernels: registers, spills, tensor-core instructions, and the mix of the main loop.

    python tools/cuda_resources.py                     every kernel, every architecture
    python tools/cuda_resources.py --arch 80 --kernel 'bf16, 96'

Static analysis: nothing is run and no GPU is needed. Needs nvcc on PATH or in CUDA_HOME, and nvdisasm, which Triton's
wheel brings. Exits with 1 where a kernel spills, uses local memory, is over its budget, or lacks the
tensor-core instructions or 128-bit loads it should have.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90", "100", "120")

ATTENTION_REGISTERS = {48: 255, 64: 255, 80: 255, 96: 255, 128: 255}
"""The budget: what one thread may use. 255 lets two blocks of 128 threads share a multiprocessor."""

KERNELS = {
    f"pooling_attention<{dtype}, {dim}, AttentionBias::{bias}>": budget
    for dtype in ("f16", "bf16")
    for dim, budget in ATTENTION_REGISTERS.items()
    for bias in ("none", "product", "gather")
}
KERNELS |= {
    f"pooling_attention_{kind}<{dim}, {rel_pos}>": budget
    for kind in ("float32", "tf32")
    for dim, budget in ATTENTION_REGISTERS.items()
    for rel_pos in ("false", "true")
}
KERNELS |= {
    f"pooled_query_attention<{dtype}, {dim}, AttentionBias::{bias}>": budget
    for dtype in ("f16", "bf16")
    for dim, budget in ATTENTION_REGISTERS.items()
    for bias in ("none", "product")
}
KERNELS |= {f"attention_combine<{dtype}>": 64 for dtype in ("f16", "bf16", "f32")}
KERNELS |= {
    f"{name}<{dtype}, {dim}, {rel_pos}>": budget
    for name in ("attention_grad_q", "attention_grad_kv")
    for dtype in ("f16", "bf16")
    for dim, budget in ATTENTION_REGISTERS.items()
    for rel_pos in ("false", "true")
}
KERNELS |= {
    f"{name}_float32<{dim}, {tf32}, {rel_pos}>": budget
    for name in ("attention_grad_q", "attention_grad_kv")
    for dim, budget in ATTENTION_REGISTERS.items()
    for tf32 in ("false", "true")
    for rel_pos in ("false", "true")
}
KERNELS |= {f"attention_grad_sum<{dtype}>": 64 for dtype in ("f16", "bf16", "f32")}
TOKENS = {
    "pool3d_norm": 168,
    "pool3d_norm_strips": 128,
    "decomposed_rel_pos": 64,
    "pool3d_norm_backward_outputs": 168,
    "pool3d_norm_backward_output_strips": 168,
    "pool3d_norm_backward_inputs": 168,
    "pool3d_norm_backward_input_strips": 128,
    "pool3d_norm_backward_weight": 144,
    "pool3d_norm_backward_parameters": 64,
    "decomposed_rel_pos_backward_q": 96,
    "decomposed_rel_pos_backward_tables": 128,
    "decomposed_rel_pos_backward_sums": 64,
}
KERNELS |= {f"{name}<{dtype}>": budget for name, budget in TOKENS.items() for dtype in ("f16", "bf16", "f32")}
del KERNELS["pool3d_norm_backward_outputs<f32>"]  # never launched: strips serve float32
"""Every kernel with its register budget."""

PASSES = {
    "pooling_attention": 3,
    "pooled_query_attention": 3,
    "attention_grad_q": 2,
    "attention_grad_kv": 2,
    "attention_grad_q_float32": 4,
}
"""Passes of a loop inside the main loop. MViTv2-S's 8 + 7 + 7 entries of relative position take 2, 16 at a time, and 3
in the forward kernel, whose rounded entries and rests follow each other; half a tile of queries is one of 2 in
attention_grad_kv; the sums of a tile of 16 keys take 4."""

PROBLEMS = {
    name: (name, problem)
    for name, problem in {
        "pooling_attention": "AttentionForward",
        "pooling_attention_float32": "AttentionForward",
        "pooling_attention_tf32": "AttentionForward",
        "pooled_query_attention": "PooledQueryForward",
        "attention_combine": "AttentionForward",
        "attention_grad_q": "AttentionBackwardWork",
        "attention_grad_kv": "AttentionBackwardWork",
        "attention_grad_q_float32": "AttentionBackwardWork",
        "attention_grad_kv_float32": "AttentionBackwardWork",
        "attention_grad_sum": "AttentionBackwardWork",
    }.items()
}
PROBLEMS |= {
    "pool3d_norm": ("pool3d_norm", "PoolPlan"),
    "pool3d_norm_strips": ("pool3d_norm", "PoolPlan"),
    "decomposed_rel_pos": ("decomposed_rel_pos", "RelPosProblem"),
    **{
        f"pool3d_norm_backward_{kernel}": ("pool3d_norm_backward_sums", "PoolBackwardPlan")
        for kernel in ("outputs", "output_strips", "input_strips", "weight", "parameters")
    },
    "pool3d_norm_backward_inputs": ("pool3d_norm_backward", "PoolTransposedPlan"),
    **{
        f"decomposed_rel_pos_backward_{kernel}": ("decomposed_rel_pos_backward", "RelPosBackwardPlan")
        for kernel in ("q", "tables", "sums")
    },
}
"""The header of each kernel, and what it takes."""

TENSOR_CORES = (
    r"(pooling_attention|attention_grad_q|attention_grad_kv)<|pooling_attention_tf32|pooled_query|"
    r"\w+_float32<\d+, true,"
)
"""Kernels that must have tensor-core instructions."""

SOURCE = """#include "cuda/kernels/{name}.h"
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
    budget: int
    registers: int
    spilled: int
    stack: int
    hmma: int
    wide_loads: int
    loops: list[collections.Counter[str]] = field(default_factory=list)

    def problems(self) -> list[str]:
        found = []
        if self.spilled or self.stack:
            found.append(f"{self.spilled} bytes spilled, {self.stack} bytes of stack")
        if self.registers > self.budget:
            found.append(f"{self.registers} registers, the budget is {self.budget}")
        if not self.hmma and re.match(TENSOR_CORES, self.kernel):
            found.append("no tensor-core instruction")
        if not self.wide_loads:
            found.append("no 128-bit load from global memory")
        return found

    @property
    def loop(self) -> collections.Counter[str]:
        """The main loop: that with the most tensor-core instructions."""
        return max(self.loops, key=lambda counted: counted["tensor"], default=collections.Counter())


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def find_nvdisasm() -> str | None:
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        if tool.exists():
            return str(tool)
    return shutil.which("nvdisasm")


def compile_kernel(kernel: str, architecture: str, budget: int) -> Resources:
    """Raises RuntimeError with the compiler's words."""
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None or nvdisasm is None:
        raise RuntimeError("nvcc or nvdisasm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
        name = kernel.partition("<")[0]
        header, problem = PROBLEMS[name]
        source.write_text(SOURCE.format(name=header, kernel=kernel, problem=problem))
        options = [
            "-std=c++17",
            "--expt-relaxed-constexpr",
            "-O3",
            "-I",
            str(ROOT / "csrc"),
            f"-arch=sm_{architecture}",
        ]
        log = _run([nvcc, *options, "-cubin", "-Xptxas", "-v", str(source), "-o", str(cubin)])
        assembly = _run([nvdisasm, "-c", str(cubin)])
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", log)]
    instructions = _instructions(assembly)
    return Resources(
        kernel,
        architecture,
        budget,
        registers=int(re.findall(r"Used (\d+) registers", log)[0]),
        spilled=sum(spills),
        stack=int(re.findall(r"(\d+) bytes stack frame", log)[0]),
        hmma=sum(name.startswith("HMMA") for _, name, _ in instructions),
        wide_loads=sum(re.match(r"(LDG|LDGSTS)\..*128", name) is not None for _, name, _ in instructions),
        loops=_outer_loops(instructions, PASSES.get(name, 1)),
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), help="80 90 100 120")
    parser.add_argument("--kernel", default="", help="only kernels with this in their name")
    parser.add_argument("--loops", action="store_true", help="every outer loop with tensor-core instructions")
    options = parser.parse_args()
    jobs = [(k, a, budget) for k, budget in KERNELS.items() if options.kernel in k for a in options.arch]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        rows = list(pool.map(lambda job: compile_kernel(*job), jobs))
    print(table(rows, options.loops))
    return int(any(r.problems() for r in rows))


if __name__ == "__main__":
    sys.exit(main())
