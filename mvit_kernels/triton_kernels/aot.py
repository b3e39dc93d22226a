"""Compile the kernels for a GPU that is not there, and read what the compiler says of the result."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .device import record_launches

ARCHITECTURES = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "sm120": GPUTarget("cuda", 120, 32),
    "gfx9": GPUTarget("hip", "gfx942", 64),
}

SHARED_LIMIT = {"sm80": 163 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024, "sm120": 99 * 1024, "gfx9": 64 * 1024}
"""Shared memory one program can have (CUDA programming guide, table of compute capabilities; CDNA 3 ISA)."""

_SHARED_PER_UNIT = {"sm80": 164, "sm90": 228, "sm100": 228, "sm120": 100, "gfx9": 64}
_THREADS_PER_UNIT = {"sm80": 2048, "sm90": 2048, "sm100": 2048, "sm120": 1536, "gfx9": 2048}

TENSOR_CORE = {
    "sm80": r"^\s*(mma\.sync)\S*",
    "sm90": r"^\s*(wgmma\.mma_async|mma\.sync)\S*",
    "sm100": r"^\s*(?:@\S+\s+)?(tcgen05\.mma|mma\.sync)\S*",
    "sm120": r"^\s*(mma\.sync)\S*",
    "gfx9": r"^\s*(v_mfma)\S*",
}

WANTED = {"sm80": "mma.sync", "sm90": "wgmma", "sm100": "tcgen05", "sm120": "mma.sync", "gfx9": "v_mfma"}
"""The tensor-core instruction that an architecture's forward attention must have."""

_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}
_TYPES[torch.int16], _TYPES[torch.uint8] = "*i16", "*u8"


@dataclass
class Report:
    """One compiled kernel, in the compiler's own figures; AMD's registers and spills are in the code object's notes."""

    kernel: str
    arch: str
    dtype: str
    registers: int
    spills: int
    shared: int
    threads: int
    tensor_core: dict[str, int] = field(default_factory=dict)
    async_copies: int = 0

    def faults(self) -> list[str]:
        """What must not be: spills, more shared memory than there is, a matrix kernel without tensor cores."""
        found = []
        if self.spills:
            found.append(f"{self.spills} B spilled")
        if self.shared > SHARED_LIMIT[self.arch]:
            found.append(f"{self.shared} B shared memory, {SHARED_LIMIT[self.arch]} at most")
        if self.blocks_per_multiprocessor < 1:
            found.append(f"{self.registers} registers: no program fits")
        if self.dtype != "float32" and self.kernel.startswith(("attention", "rel_pos")):
            kind = WANTED[self.arch] if self.kernel == "attention_forward" else ""
            if not any(kind in name for name in self.tensor_core):
                found.append(f"no {kind or 'tensor-core'} instruction")
            if self.kernel == "attention_forward" and self.arch != "gfx9" and not self.async_copies:
                found.append("no asynchronous copies")
        return found

    @property
    def blocks_per_multiprocessor(self) -> int:
        """Programs resident on one multiprocessor (compute unit on AMD), by registers, shared memory and threads."""
        warp = 64 if self.arch == "gfx9" else 32
        if self.arch == "gfx9":  # 512 vector registers for each lane of each of four SIMDs
            by_registers = 4 * (512 // max(8, -(-self.registers // 8) * 8)) // (self.threads // warp)
        else:  # allocated to a warp in units of 256
            by_registers = 65536 // (-(-self.registers * 32 // 256) * 256) // (self.threads // 32)
        limits = [by_registers, _THREADS_PER_UNIT[self.arch] // self.threads, 32]
        if self.shared:
            limits.append(_SHARED_PER_UNIT[self.arch] * 1024 // (self.shared + 1024 * (self.arch != "gfx9")))
        return min(limits)


def compile_launches(arch: str, run: Callable[[], Any]) -> list[Report]:
    """Compile every kernel that `run` launches, for `arch`. `run` may use meta tensors; nothing is executed."""
    with record_launches(arch) as recording:
        run()
    reports = []
    for kernel, _, args, options in recording.launches:
        reports.append(_compile(kernel, args, options, arch))
    return reports


def source(kernel: Any, args: tuple[Any, ...]) -> ASTSource:
    """The kernel with types, constants and divisibility as Triton's launcher would find them."""
    signature, constants, attributes = {}, {}, {}
    for i, (parameter, value) in enumerate(zip(kernel.params, args, strict=True)):
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or (special and isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if special and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


_compiled: dict[Any, Report] = {}


def _compile(kernel: Any, args: tuple[Any, ...], options: dict[str, int], arch: str) -> Report:
    src = source(kernel, args)
    key = (src.hash(), tuple(options.items()), arch)
    if key not in _compiled:
        compiled = triton.compile(src, target=ARCHITECTURES[arch], options=options)
        dtype = str(next(arg.dtype for arg in args if isinstance(arg, Tensor))).removeprefix("torch.")
        _compiled[key] = _report(compiled, kernel.__name__, arch, dtype)
    return _compiled[key]


def _report(compiled: Any, name: str, arch: str, dtype: str) -> Report:
    metadata = compiled.metadata
    assembly = compiled.asm["amdgcn" if arch == "gfx9" else "ptx"]
    if arch == "gfx9":
        registers = _number(r"\.vgpr_count:\s+(\d+)", assembly)  # accumulation registers are among them on gfx942
        spills = _number(r"\.vgpr_spill_count:\s+(\d+)", assembly)
        threads = metadata.num_warps * 64
    else:
        registers, spills = _cuda_resources(compiled.asm["cubin"])
        threads = metadata.num_warps * 32
    found = re.findall(TENSOR_CORE[arch], assembly, re.MULTILINE)
    copies = len(
        re.findall(r"cp\.async\.(?:ca|cg)|cp\.async\.bulk\.tensor|global_load_lds|buffer_load.*\blds\b", assembly)
    )
    return Report(
        name,
        arch,
        dtype,
        registers,
        spills,
        metadata.shared,
        threads,
        {kind: found.count(kind) for kind in set(found)},
        copies,
    )


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0


@cache
def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _cuda_resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of local memory) by cuobjdump. Local memory is where spills go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [_tool("cuobjdump"), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return _number(r"REG:(\d+)", text), _number(r"STACK:(\d+)", text) + _number(r"LOCAL:(\d+)", text)
