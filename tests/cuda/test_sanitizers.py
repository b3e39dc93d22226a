"""The CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer: no byte to spare around tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.conftest import ROOT

PROGRAM = r"""
import ctypes, importlib.util, sys

spec = importlib.util.spec_from_file_location("mvit_emulation", sys.argv[1])
emulation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(emulation)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
short = int(sys.argv[2])  # bytes that the allocation of q or x lacks


def room(numbers, size=2):
    memory = libc.malloc(numbers * size)  # AddressSanitizer's: aligned to 16 bytes, guarded at both ends
    ctypes.memset(memory, 0, numbers * size)
    return memory


def attention(dtype, dim, num_q, num_k, grid_k, tf32=False, multiprocessors=1):
    contiguous = lambda n: (2 * n * dim, n * dim, dim)
    size = 4 if dtype == "float32" else 2
    emulation.pooling_attention(
        dtype, tf32, multiprocessors, (1, 2, num_q, num_k, dim),
        room(2 * num_q * dim - short // size, size), contiguous(num_q),
        room(2 * num_k * dim, size), contiguous(num_k), room(2 * num_k * dim, size), contiguous(num_k),
        room(2 * num_q * sum(grid_k), 4) if grid_k else 0,
        (2 * num_q * sum(grid_k), num_q * sum(grid_k), sum(grid_k)) if grid_k else (0, 0, 0), grid_k or (0, 0, 0),
        0.1, True, "no_cls", room(num_q * 2 * dim, size), room(2 * num_q, 4), 3)


def attention_backward(dtype, dim, num_q, num_k, grid_k, tf32=False, multiprocessors=1):
    contiguous = lambda n: (2 * n * dim, n * dim, dim)
    entries, size = sum(grid_k), 4 if dtype == "float32" else 2
    tokens = (num_q, num_k, num_k, num_q, num_q, num_k, num_k)
    q, k, v, grad, dq, dk, dv = (room(2 * n * dim, size) for n in tokens)
    rel_pos, d_rel_pos = (room(2 * num_q * entries, 4) if entries else 0 for _ in range(2))
    emulation.pooling_attention_backward(
        dtype, tf32, multiprocessors, (1, 2, num_q, num_k, dim),
        [(q, contiguous(num_q)), (k, contiguous(num_k)), (v, contiguous(num_k)),
         (rel_pos, (2 * num_q * entries, num_q * entries, entries))],
        grid_k, 0.1, True, "no_cls", room(2 * num_q, 4), (grad, contiguous(num_q)), room(2 * num_q, 4),
        [dq, dk, dv, d_rel_pos], 3)


def pooled_query(dtype, dim, mode, kernel, stride):
    tokens, queries, grid_k = 1 + 2 * 7 * 5, (2, 4, 3), (2, 3, 5)
    num_q, num_k, taps = 1 + 24, 1 + 30, kernel[0] * kernel[1] * kernel[2]
    branch = dict(
        x=room(2 * tokens * dim - short // 2), strides=(2 * tokens * dim, tokens * dim, dim), out=0, thw=(2, 7, 5),
        kernel=kernel, stride=stride, padding=tuple(k // 2 for k in kernel), mode=mode, per_head_weight=False,
        norm_eps=1e-6, weight=(room(dim * taps), dtype), norm_weight=(room(dim), dtype), norm_bias=(room(dim), dtype))
    strides = (2 * num_k * dim, num_k * dim, dim)
    emulation.pooled_query_attention(
        dtype, (1, 2, num_k, dim), branch, room(2 * num_k * dim), strides, room(2 * num_k * dim), strides, grid_k,
        [(room(q * k * dim), dtype) for q, k in zip(queries, grid_k)], 0.1, True, "no_cls",
        room(num_q * 2 * dim), room(2 * num_q, 4), 3)


def pooling(dtype, size, dim, mode, kernel, stride):
    tokens, outputs = 1 + 2 * 7 * 5, 1
    for n, k, s in zip((2, 7, 5), kernel, stride):
        outputs *= (n + k // 2 * 2 - k) // s + 1
    taps = kernel[0] * kernel[1] * kernel[2]
    branch = dict(
        x=room(2 * tokens * dim - short // size, size), strides=(2 * tokens * dim, tokens * dim, dim),
        out=room(2 * (1 + outputs) * dim, size), thw=(2, 7, 5), kernel=kernel, stride=stride,
        padding=tuple(k // 2 for k in kernel), mode=mode, per_head_weight=False, norm_eps=1e-6,
        weight=(room(dim * taps, size) if mode == "conv" else 0, dtype),
        norm_weight=(room(dim, size), dtype), norm_bias=(room(dim, size), dtype))
    emulation.pool3d_norm(dtype, 1, 2, dim, True, [branch], 3)


def pooling_backward(dtype, size, dim, mode, kernel, stride):
    tokens, outputs = 1 + 2 * 7 * 5, 1
    for n, k, s in zip((2, 7, 5), kernel, stride):
        outputs *= (n + k // 2 * 2 - k) // s + 1
    taps = kernel[0] * kernel[1] * kernel[2]
    norm, strides = mode == "conv", (2 * tokens * dim, tokens * dim, dim)
    weight, vector = ((room(dim * n, size) if norm else 0, dtype) for n in (taps, 1))
    branch = dict(
        x=room(2 * tokens * dim - short // size, size), strides=strides, out=0, thw=(2, 7, 5), kernel=kernel,
        stride=stride, padding=tuple(k // 2 for k in kernel), mode=mode, per_head_weight=False,
        norm_eps=1e-6 if norm else None, weight=weight, norm_weight=vector, norm_bias=vector,
        grad=room(2 * (1 + outputs) * dim, size), grad_strides=(2 * (1 + outputs) * dim, (1 + outputs) * dim, dim),
        grad_x=room(2 * tokens * dim, size), grad_x_strides=strides,
        grad_weight=(room(dim * taps, size) if norm else 0, dtype),
        grad_norm_weight=(room(dim, size) if norm else 0, dtype),
        grad_norm_bias=(room(dim, size) if norm else 0, dtype))
    emulation.pool3d_norm_backward(dtype, 1, 2, dim, True, [branch], 3)


attention("bfloat16", 96, 70, 1 + 2 * 7 * 7, (2, 7, 7))
attention("float16", 72, 5, 65, None)
attention("bfloat16", 128, 16, 1, None)
attention("float32", 72, 5, 65, None)
attention("float32", 96, 70, 1 + 2 * 5 * 5, (2, 5, 5), tf32=True)
attention("float16", 96, 5, 130, None, multiprocessors=50)
attention("float32", 48, 5, 66, None, multiprocessors=50)
attention("float16", 64, 9, 1 + 50, (1, 1, 50))
pooled_query("bfloat16", 96, "conv", (3, 3, 3), (1, 2, 2))
attention_backward("bfloat16", 96, 70, 1 + 2 * 7 * 7, (2, 7, 7))
attention_backward("float16", 72, 1030, 5, (0, 0, 0))
attention_backward("float32", 72, 70, 1 + 2 * 3 * 4, (2, 3, 4))
attention_backward("float32", 96, 1030, 5, (0, 0, 0))
attention_backward("float32", 48, 17, 1 + 2 * 3 * 4, (2, 3, 4), tf32=True)
attention_backward("bfloat16", 96, 5, 1 + 2 * 20 * 25, (2, 20, 25), multiprocessors=50)
attention_backward("float32", 72, 5, 1 + 7 * 20, (1, 7, 20), multiprocessors=50)
pooling("bfloat16", 2, 96, "conv", (3, 3, 3), (1, 2, 2))
pooling("float32", 4, 72, "max", (1, 3, 3), (1, 1, 1))
pooling_backward("bfloat16", 2, 96, "conv", (3, 3, 3), (1, 2, 2))
pooling_backward("float32", 4, 72, "max", (1, 3, 3), (1, 2, 2))
queries, keys = (2, 3, 5), (2, 2, 3)
tables = [(room(q * k * 96), "float16") for q, k in zip(queries, keys)]
emulation.decomposed_rel_pos("float16", 1, 2, 96, True, queries, keys, room(2 * 31 * 96), (2 * 31 * 96, 31 * 96, 96),
                             tables, room(2 * 31 * 7, 4), 3)
emulation.decomposed_rel_pos_backward(
    "float16", 1, 2, 96, True, queries, keys, room(2 * 31 * 96), (2 * 31 * 96, 31 * 96, 96), tables,
    room(2 * 31 * 7, 4), (2 * 31 * 7, 31 * 7, 7), room(2 * 31 * 96),
    [(room(q * k * 96), "float16") for q, k in zip(queries, keys)], 3)
print("clean")
"""


def run(module: Path, short: int) -> subprocess.CompletedProcess[str]:
    library = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {**os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-c", PROGRAM, str(module), str(short)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)


def test_kernels_touch_nothing_outside_their_tensors(sanitized_emulation: Path) -> None:
    done = run(sanitized_emulation, 0)
    assert done.returncode == 0 and "clean" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("short", [16])
def test_a_read_past_the_end_is_caught(sanitized_emulation: Path, short: int) -> None:
    done = run(sanitized_emulation, short)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
