"""What this machine can do at most, measured: multiply-adds in registers and a copy; on a GPU a matmul and a copy."""

from __future__ import annotations

import ctypes
import threading
import time

import torch

from mvit_kernels import _library, measure

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CODES = {torch.float32: 0, torch.bfloat16: 1}
ROUNDS = 80_000_000  # some tenths of a second: starting threads and their skew must not count
COPIED = 256 * measure.MIB


def multiply_adds_here(dtype: torch.dtype, rounds: int = ROUNDS) -> int:
    """Do nothing but multiply-adds in registers, on this thread, and say how many there were."""
    probe = ctypes.CDLL(str(_library.LIBRARY)).mvit_kernels_cpu_multiply_adds
    probe.argtypes, probe.restype = [ctypes.c_int32, ctypes.c_int64], ctypes.c_int64
    done: int = probe(CODES.get(dtype, 0), rounds)
    return done


def multiply_adds(dtype: torch.dtype, rounds: int = ROUNDS) -> int:
    """The same on every thread of torch's number at once; of all of them."""
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda: done.append(multiply_adds_here(dtype, rounds)))
        for _ in range(torch.get_num_threads())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


def measured(device: torch.device, repeats: int = 3) -> dict[str, float]:
    """Multiply-adds per second by dtype, and "copy": bytes read and written per second. The best of a few.

    float16 runs on a CPU's float32 units in these kernels, so its peak is float32's. Without the C++ library the peak
    of float32 is a large matrix product's, and the half types have none.
    """
    if device.type == "cuda":
        return _gpu(device, repeats)
    found = {"copy": 2 * COPIED / _best(_copy(device), repeats)}
    if _library.load_error() is None:
        for dtype in DTYPES:
            found[str(dtype).removeprefix("torch.")] = max(_rate(dtype) for _ in range(repeats))
    else:
        a = torch.randn(2048, 2048)
        found["float32"] = 2048**3 / _best(lambda: a @ a, repeats)
    return found


def _rate(dtype: torch.dtype) -> float:
    start = time.perf_counter()
    done = multiply_adds(dtype)
    return done / (time.perf_counter() - start)


def _copy(device: torch.device):  # type: ignore[no-untyped-def]
    source = torch.ones(COPIED, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _best(call, repeats: int, device: str | torch.device = "cpu") -> float:  # type: ignore[no-untyped-def]
    return min(measure.time_alternating({"": call}, repeats=repeats, warmup=1, device=device).seconds[""])


def _gpu(device: torch.device, repeats: int) -> dict[str, float]:
    found = {"copy": 2 * COPIED / _best(_copy(device), repeats, device)}
    for dtype in DTYPES:
        a = torch.randn(8192, 8192, device=device).to(dtype)
        found[str(dtype).removeprefix("torch.")] = 8192**3 / _best(lambda a=a: a @ a, repeats, device)
    return found
