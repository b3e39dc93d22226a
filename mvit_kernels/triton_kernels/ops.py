"""`torch.ops.mvit_kernels_triton.*`: the contract of `mvit_kernels.ops`, implemented by Triton kernels.

The implementations import triton when they are first called. They serve CUDA and HIP tensors; and CPU tensors where
TRITON_INTERPRET=1 makes triton interpret its kernels, which is for tests.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..op_arguments import given, given_eps, grids, pools
from ..ops.contract import LIBRARIES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

LIBRARY = LIBRARIES["mvit_kernels_triton"]


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

    pool = pools([mode], kernel, stride, padding)
    return run_pool.forward([x], grids(thw), has_cls, pool, [weight], [norm_weight], [norm_bias], [norm_eps])[0]


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

    parameters = (given(weight), given(norm_weight), given(norm_bias))
    return run_pool.forward(
        x, grids(thw), has_cls, pools(mode, kernel, stride, padding), *parameters, given_eps(norm_eps)
    )


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

    pool = pools(mode, kernel, stride, padding)
    parameters = (given(weight), given(norm_weight), given(norm_bias))
    return run_pool.backward(grad, x, grids(thw), has_cls, pool, *parameters, given_eps(norm_eps), needs)


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
