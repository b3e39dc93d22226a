"""Timing and memory measurement, shared by `python -m mvit_kernels bench` and benchmarks/.

Seconds and bytes. Only the caller's functions run in the timed region, so they must not make their inputs.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _library

MIB = 2**20
Clock = Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """Median, 20th and 80th percentile of some samples."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: list[float]) -> Spread:
        """Percentiles by linear interpolation between the sorted samples; ValueError if there are none."""
        if not samples:
            raise ValueError("Spread.of: samples is empty, at least one sample is right")
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(statistics.median(samples), p20, p80)


@dataclass(frozen=True)
class Timings:
    """Seconds per call, by name; sample i of every name comes from the same round."""

    seconds: dict[str, list[float]]

    def spread(self, name: str) -> Spread:
        """Spread of the seconds of `name`."""
        return Spread.of(self.seconds[name])

    def speedup(self, name: str, *, over: str) -> Spread:
        """How many times faster `name` is than `over`: spread of the ratio within each round.

        Neighbours in time share the machine's state, so these ratios vary less than the seconds do.
        """
        pairs = zip(self.seconds[over], self.seconds[name], strict=True)
        return Spread.of([slow / fast for slow, fast in pairs])


def time_alternating(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 10,
    warmup: int = 2,
    device: torch.device | str = "cpu",
    progress: Callable[[], object] | None = None,
    before: Callable[[str], object] | None = None,
    clock: Clock | None = None,
) -> Timings:
    """Time several callables in one process, in turn: A B A B ..., after as many rounds of warm-up.

    Args:
        calls: what to time, by name. The result of a call is dropped outside the timed region.
        repeats: timed rounds, at least 1.
        warmup: rounds before them, not timed.
        device: where the work runs.
        progress: called after every call, warm-up included: (warmup + repeats) * len(calls) times.
        before: called with the name before every call, outside the timed region.
        clock: seconds, in place of wall time: `time.process_time` on a machine that is busy. A GPU is timed by its
            events, each call from a cold L2 cache.
    Raises:
        ValueError: no calls, repeats below 1 or warmup below 0.
    """
    if not calls:
        raise ValueError("time_alternating: calls is empty, at least one callable is right")
    if repeats < 1:
        raise ValueError(f"time_alternating: repeats is {repeats}, at least 1 is right")
    if warmup < 0:
        raise ValueError(f"time_alternating: warmup is {warmup}, at least 0 is right")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with _no_garbage_collection():
        for i in range(-warmup, repeats):
            for name, call in calls.items():
                if before is not None:
                    before(name)
                elapsed = _seconds(call, torch.device(device), clock)
                if i >= 0:
                    seconds[name].append(elapsed)
                if progress is not None:
                    progress()
    return Timings(seconds)


def peak_extra_memory(call: Callable[[], object], *, device: torch.device | str = "cpu") -> int:
    """Peak bytes that `call` holds through PyTorch's allocator, over what was there at its start; its result counts.

    Call it once before, so that what is allocated once and kept is not counted. On the CPU this follows every
    allocation and release on the calling thread, C++ ops included; releasing what was there before does not count.
    Memory that a library takes from the system without the allocator is in no figure.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _peak_extra_cuda(call, device)
    if device.type == "cpu":
        return _peak_extra_cpu(call)
    raise ValueError(f"peak_extra_memory: device is {device}, cpu or cuda is right")


def kept_for_backward(call: Callable[[], Tensor | Sequence[Any]], *, device: torch.device | str = "cpu") -> int:
    """Bytes that a forward leaves allocated, the tensors of its result not counted: what it keeps for the backward.

    Call it once before, so that what is allocated once and kept is not counted. Counted by the allocator, as in
    :func:`peak_extra_memory`, and not by what autograd is told to save: it may be told to compute it again.
    """
    device = torch.device(device)
    result: Any = None

    def keep() -> None:
        nonlocal result
        result = call()

    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        keep()
        held = torch.cuda.memory_allocated(device) - before
    elif device.type == "cpu":
        held = sum(_cpu_allocations(keep))
    else:
        raise ValueError(f"kept_for_backward: device is {device}, cpu or cuda is right")
    tensors = [t for t in ([result] if isinstance(result, Tensor) else result) if isinstance(t, Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return held - sum(storages.values())


def captured(call: Callable[[], object], *, warmup: int = 3) -> Callable[[], object]:
    """`call` as a CUDA graph: what it launches, without the launches' time on the host.

    Raises:
        RuntimeError: what it does can't be captured; torch says what.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def available_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can be allocated now: free memory, less where a control group allows less."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min((found for found in (_meminfo_available(), _cgroup_available()) if found is not None), default=2**63)


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a figure was measured on: processor, threads, versions, SIMD level, GPU and revision (None where absent)."""
    device = torch.device(device)
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": _library.cpu_level(),
        "torch_simd": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "triton": _triton_version(),
        "revision": _revision(),
    }


def _seconds(call: Callable[[], object], device: torch.device, clock: Clock | None) -> float:
    if device.type == "cuda":
        return _seconds_cuda(call, device)
    clock = clock or time.perf_counter
    start = clock()
    result = call()
    elapsed = clock() - start
    del result
    return elapsed


def _seconds_cuda(call: Callable[[], object], device: torch.device) -> float:
    """Between two events on the GPU, from a cold L2 cache."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    _flush_l2(device)
    torch.cuda.synchronize(device)
    start.record()
    result = call()
    end.record()
    torch.cuda.synchronize(device)
    del result
    return start.elapsed_time(end) / 1e3


def _flush_l2(device: torch.device) -> None:
    size = torch.cuda.get_device_properties(device).L2_cache_size
    torch.empty(2 * size, dtype=torch.int8, device=device).zero_()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _peak_extra_cuda(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del result
    return peak - before


def _peak_extra_cpu(call: Callable[[], object]) -> int:
    held = peak = 0
    for size in _cpu_allocations(call):
        held += size
        peak = max(peak, held)
    return peak


def _cpu_allocations(call: Callable[[], object]) -> list[int]:
    """Bytes of each allocation, less than 0 of each release, during `call`, in order; its result is then dropped."""
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with _stderr_silenced():
        profiler.start()
    try:
        result = call()
    finally:
        with _stderr_silenced():
            profiler.stop()
    del result  # after the last event, so that it is counted
    recorded: Any = profiler.profiler  # the public event list folds releases into the operators around them
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Drop what the profiler's C++ side logs when it starts and stops, at every log level; its failures still raise."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _cgroup_available(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Of version 2, else of version 1; None without a limit."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            allowed = (folder / limit).read_text().strip()
            taken = int((folder / used).read_text())
            stat = dict(line.split() for line in (folder / limit).with_name("memory.stat").read_text().splitlines())
            # A page cache that is not in use is given back when memory is short.
            return None if allowed == "max" else max(int(allowed) - taken + int(stat.get(cache, 0)), 0)
        except (OSError, ValueError):
            continue
    return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def _revision() -> str | None:
    """Of the checkout this package is imported from, else of the build."""
    checkout = Path(__file__).parent.parent
    if (checkout / ".git").exists():
        command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):  # no git, or nothing committed
            pass
    return _library.build_info().get("revision")
