"""`torch.ops.mvit_kernels_triton.*`: the contract of `mvit_kernels.ops`, implemented by Triton kernels.

The implementations import triton when they are first called. They serve CUDA and HIP tensors; and CPU tensors where
TRITON_INTERPRET=1 makes triton interpret its kernels, which is for tests.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..ops.contract import LIBRARIES
from ..problem import Grid, Pool

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

LIBRARY = LIBRARIES["mvit_kernels_triton"]


def _grids(flat: Sequence[int]) -> list[Grid]:
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)]


def _pools(mode: Sequence[str], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> list[Pool]:
    return [Pool(*geometry) for geometry in zip(mode, _grids(kernel), _grids(stride), _grids(padding), strict=True)]


def _present(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    return [parameter if parameter.numel() else None for parameter in parameters]


def _eps(stored: Sequence[float]) -> list[float | None]:
    """-1 stands for no norm."""
    return [None if eps < 0 else eps for eps in stored]


def _pool3d_norm(
    x: Tensor,
    thw: Sequence[int],
    has_cls: bool,
    mode: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
) -> Tensor:
    from . import run_pool

    pools = _pools([mode], kernel, stride, padding)
    return run_pool.forward([x], _grids(thw), has_cls, pools, [weight], [norm_weight], [norm_bias], [norm_eps])[0]


def _qkv_pool3d_norm(
    x: Sequence[Tensor],
    thw: Sequence[int],
    has_cls: bool,
    mode: Sequence[str],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    weight: Sequence[Tensor],
    norm_weight: Sequence[Tensor],
    norm_bias: Sequence[Tensor],
    norm_eps: Sequence[float],
) -> list[Tensor]:
    from . import run_pool

    parameters = (_present(weight), _present(norm_weight), _present(norm_bias))
    return run_pool.forward(x, _grids(thw), has_cls, _pools(mode, kernel, stride, padding), *parameters, _eps(norm_eps))


def _qkv_pool3d_norm_backward(
    grad: Sequence[Tensor],
    x: Sequence[Tensor],
    thw: Sequence[int],
    has_cls: bool,
    mode: Sequence[str],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    weight: Sequence[Tensor],
    norm_weight: Sequence[Tensor],
    norm_bias: Sequence[Tensor],
    norm_eps: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    from . import run_pool

    pools = _pools(mode, kernel, stride, padding)
    parameters = (_present(weight), _present(norm_weight), _present(norm_bias))
    return run_pool.backward(grad, x, _grids(thw), has_cls, pools, *parameters, _eps(norm_eps), needs)


def _pooling_attention(*args: Any) -> tuple[Tensor, Tensor]:
    from . import run_attention

    return run_attention.forward(*args[:8])  # not tf32: a launch asks PyTorch itself


def _pooling_attention_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from . import run_attention

    return run_attention.backward(*args[:12])


def _decomposed_rel_pos(*args: Any) -> Tensor:
    from . import run_rel_pos

    return run_rel_pos.forward(*args)


def _decomposed_rel_pos_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from . import run_rel_pos

    return run_rel_pos.backward(*args)


IMPLEMENTATIONS = {
    "pool3d_norm": _pool3d_norm,
    "qkv_pool3d_norm": _qkv_pool3d_norm,
    "qkv_pool3d_norm_backward": _qkv_pool3d_norm_backward,
    "decomposed_rel_pos": _decomposed_rel_pos,
    "decomposed_rel_pos_backward": _decomposed_rel_pos_backward,
    "pooling_attention": _pooling_attention,
    "pooling_attention_backward": _pooling_attention_backward,
}

for _name, _function in IMPLEMENTATIONS.items():
    for _key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        LIBRARY.impl(_name, _function, _key)
