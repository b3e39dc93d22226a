"""The rate of multiply-adds that the CPU kernels could reach at most, and how many a layer needs."""

from __future__ import annotations

import ctypes
import threading

import torch
from torch import nn

from mvit_kernels import _library
from mvit_kernels.models import LayerShape
from mvit_kernels.problem import Pool, tokens, touched_grid

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
ROUNDS = 80_000_000  # some tenths of a second: starting threads and their skew must not count


def multiply_adds_here(dtype: torch.dtype) -> int:
    """Do nothing but multiply-adds in registers, on this thread, and say how many there were."""
    probe = ctypes.CDLL(str(_library.LIBRARY)).mvit_kernels_cpu_multiply_adds
    probe.argtypes, probe.restype = [ctypes.c_int32, ctypes.c_int64], ctypes.c_int64
    done: int = probe(DTYPE_CODES[dtype], ROUNDS)
    return done


def multiply_adds(dtype: torch.dtype) -> int:
    """The same on every thread of torch's number at once; of all of them."""
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda: done.append(multiply_adds_here(dtype))) for _ in range(torch.get_num_threads())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


def layer_multiply_adds(shape: LayerShape, attention: nn.Module) -> float:
    """Multiply-adds of one sample's forward: projections (k and v of touched tokens alone), poolings, attention."""
    qkv, project = attention.qkv, attention.project[0]
    assert isinstance(qkv, nn.Linear) and isinstance(project, nn.Linear)
    cls, channels = int(shape.has_cls), shape.heads * shape.head_dim
    kv_tokens = tokens(shape.grid)
    if shape.pool_kv is not None and shape.pool_kv.skips_tokens:
        kv_tokens = tokens(touched_grid(shape.pool_kv, shape.grid).thw)
    total = qkv.in_features * channels * (cls + tokens(shape.grid) + 2 * (cls + kv_tokens))
    total += shape.num_q * project.in_features * project.out_features
    total += _pooling(shape.pool_q, tokens(shape.grid_q), channels)
    total += 2 * _pooling(shape.pool_kv, tokens(shape.grid_kv), channels)
    if any(shape.table_rows):
        total += shape.num_q * channels * sum(shape.grid_kv)
    return total + 2 * shape.scores * shape.head_dim


def _pooling(pool: Pool | None, outputs: int, channels: int) -> int:
    return 0 if pool is None else tokens(pool.kernel) * outputs * channels
