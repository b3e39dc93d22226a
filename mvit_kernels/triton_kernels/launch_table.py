"""How the matrix kernels are launched: plain data, read by `launch.py`.

One row: architecture family, kernel, greatest head dim, greatest key count (0: any), then the choice. The first row
that fits is taken; families fall back to "any". The rows follow from the compiler's own reports of registers, spills
and shared memory (`python -m mvit_kernels triton-report`) and are not measured; `python -m mvit_kernels tune` measures.

    block_m   queries of a program (forward, grad_q) or of a step (grad_kv)
    block_n   keys of a step (forward, grad_q) or of a program (grad_kv)
"""

VERSION = 1

FIELDS = ("family", "kernel", "dtype", "head_dim", "keys", "block_m", "block_n", "warps", "stages")

ROWS: tuple[tuple[str, str, str, int, int, int, int, int, int], ...] = (
    # float32 products run on the ordinary units: small tiles, or the operands do not fit the registers.
    ("any", "forward", "float32", 128, 0, 32, 16, 4, 1),
    ("any", "grad_q", "float32", 128, 0, 32, 16, 8, 1),
    ("sm90", "grad_kv", "float32", 128, 0, 16, 32, 4, 1),
    ("sm100", "grad_kv", "float32", 128, 0, 16, 32, 4, 1),
    ("sm120", "grad_kv", "float32", 128, 0, 16, 32, 4, 1),
    ("any", "grad_kv", "float32", 128, 0, 32, 32, 4, 1),
    # wgmma and tcgen05 take their operands from shared memory, so wide tiles fit.
    ("sm90", "forward", "half", 96, 64, 64, 32, 4, 2),
    ("sm90", "forward", "half", 96, 0, 128, 64, 8, 2),
    ("sm90", "forward", "half", 128, 0, 64, 32, 4, 2),
    ("sm90", "grad_q", "half", 128, 0, 64, 16, 4, 2),
    ("sm90", "grad_kv", "half", 96, 0, 32, 64, 8, 2),
    ("sm100", "forward", "half", 96, 64, 64, 32, 4, 2),
    ("sm100", "forward", "half", 96, 0, 128, 64, 8, 2),
    ("sm100", "forward", "half", 128, 0, 64, 32, 4, 2),
    ("sm100", "grad_q", "half", 96, 0, 64, 32, 4, 2),
    ("sm100", "grad_q", "half", 128, 0, 64, 16, 4, 1),
    ("sm100", "grad_kv", "half", 80, 0, 32, 64, 8, 1),
    ("sm100", "grad_kv", "half", 96, 0, 64, 64, 4, 1),
    ("gfx9", "forward", "half", 128, 0, 64, 64, 4, 1),
    ("gfx9", "grad_q", "half", 128, 0, 64, 32, 4, 1),
    ("gfx9", "grad_kv", "half", 128, 0, 32, 32, 4, 1),
    # mma.sync takes them from registers: 32 keys a step, and half the queries where the head is wide.
    ("sm120", "forward", "half", 96, 200, 64, 16, 4, 2),
    ("sm120", "forward", "half", 96, 400, 64, 32, 4, 2),
    ("sm120", "forward", "half", 96, 784, 64, 16, 4, 2),
    ("sm120", "forward", "half", 96, 0, 128, 32, 8, 2),
    ("any", "forward", "half", 96, 0, 64, 32, 4, 2),
    ("any", "forward", "half", 128, 0, 32, 32, 4, 2),
    ("any", "grad_q", "half", 96, 0, 64, 16, 4, 1),
    ("any", "grad_q", "half", 128, 0, 32, 16, 4, 1),
    ("any", "grad_kv", "half", 128, 0, 16, 32, 4, 2),
)
