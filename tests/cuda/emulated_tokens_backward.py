"""Calls into the emulated backward of pooling and relative position: what goes out is filled with NaN first."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from mvit_kernels.problem import Grid, Pool
from tests.cuda.emulated import _assert_margins, _branch, _name, _output, _parameter


def qkv_pool3d_norm_backward(
    emulation: ModuleType,
    grad: Sequence[Tensor],
    x: Sequence[Tensor],
    thw: Sequence[Grid],
    pool: Sequence[Pool],
    *,
    has_cls: bool,
    weight: Sequence[Tensor | None],
    norm_weight: Sequence[Tensor | None],
    norm_bias: Sequence[Tensor | None],
    norm_eps: Sequence[float | None],
    needs: Sequence[Sequence[bool]],
    seed: int = 0,
) -> list[list[Tensor | None]]:
    """Per branch the gradients of x, weight, norm weight and norm bias; None where not needed."""
    batch, heads, _, dim = x[0].shape
    found: list[list[Tensor | None]] = []
    rooms: list[Tensor] = []
    branches = []
    for i, branch in enumerate(pool):
        parameters = (weight[i], norm_weight[i], norm_bias[i])
        grad_x = _tokens(x[i], rooms) if needs[i][0] else None
        gradients = [
            _room(parameter, rooms) if parameter is not None and needed else None
            for parameter, needed in zip(parameters, needs[i][1:], strict=True)
        ]
        found.append([grad_x, *gradients])
        branches.append(
            {
                **_branch(x[i], None, thw[i], branch, *parameters, norm_eps[i]),
                "grad": grad[i].data_ptr(),
                "grad_strides": grad[i].stride()[:3],
                "grad_x": 0 if grad_x is None else grad_x.data_ptr(),
                "grad_x_strides": (0, 0, 0) if grad_x is None else grad_x.stride()[:3],
                "grad_weight": _parameter(gradients[0]),
                "grad_norm_weight": _parameter(gradients[1]),
                "grad_norm_bias": _parameter(gradients[2]),
            }
        )
    emulation.pool3d_norm_backward(_name(x[0]), batch, heads, dim, has_cls, branches, seed)
    for room in rooms:
        _assert_margins(room)
    return found


def decomposed_rel_pos_backward(
    emulation: ModuleType,
    grad: Tensor,
    q: Tensor,
    grid_q: Grid,
    grid_k: Grid,
    *,
    has_cls: bool,
    tables: Sequence[Tensor | None],
    needs: Sequence[bool],
    seed: int = 0,
) -> list[Tensor | None]:
    """The gradients of q and of the tables; None where not needed."""
    batch, heads, _, dim = q.shape
    rooms: list[Tensor] = []
    found = [
        _room(tensor, rooms) if tensor is not None and needed else None
        for tensor, needed in zip((q, *tables), needs, strict=True)
    ]
    emulation.decomposed_rel_pos_backward(
        *(_name(q), batch, heads, dim, has_cls, grid_q, grid_k, q.data_ptr(), q.stride()[:3]),
        [_parameter(table) for table in tables],
        *(grad.data_ptr(), grad.stride()[:3], 0 if found[0] is None else found[0].data_ptr()),
        [_parameter(table) for table in found[1:]],
        seed,
    )
    for room in rooms:
        _assert_margins(room)
    return found


def _room(like: Tensor, rooms: list[Tensor]) -> Tensor:
    room, tensor = _output(tuple(like.shape), like.dtype)
    rooms.append(room)
    return tensor


def _tokens(x: Tensor, rooms: list[Tensor]) -> Tensor:
    """The gradient of x as the bindings lay it out: [batch][token][head] where x lies so, as slices of a projection."""
    if x.stride(2) > x.stride(1) > 0:
        return _room(x.transpose(1, 2), rooms).transpose(1, 2)
    return _room(x, rooms)
