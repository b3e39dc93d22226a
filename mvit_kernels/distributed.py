"""DTensor rules of the ops: attention is independent per head and per sample, so sharded heads or batches stay sharded.

    import mvit_kernels.distributed     # registers the rules; the package itself does not import torch.distributed

Token tensors (B, H, N, D) and the log-sum-exp may be sharded over the batch or the heads on any mesh axis. Pooling
parameters and gathered relative-position tables are replicated; their gradients come back as partial sums. Another
placement is redistributed to what the first token tensor has; a first tensor sharded over tokens or channels is
replicated. No communication happens inside an op.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.utils._pytree import tree_leaves, tree_map

from .ops.contract import LIBRARY

Placements = tuple[Placement, ...]

TOKENS = ("x", "q", "k", "v", "rel_pos", "grad", "grad_lse", "lse")
"""Arguments (B, H, ...)."""
MERGED = ("grad_out",)
"""Arguments (B, N, H, D)."""

# What an op returns, in order; the last entry repeats: tokens, merged tokens, gradients of parameters.
RETURNS = {
    "pool3d_norm": ("tokens",),
    "qkv_pool3d_norm": ("tokens",),
    "qkv_pool3d_norm_backward": ("tokens", "parameter", "parameter", "parameter"),
    "decomposed_rel_pos": ("tokens",),
    "decomposed_rel_pos_backward": ("tokens", "parameter", "parameter", "parameter"),
    "pooling_attention": ("merged", "tokens"),
    "pooling_attention_backward": ("tokens",),
    "pooled_query_attention": ("merged",),
}


def _dispatch(cls: type, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    """The op on every rank's shards."""
    names = [argument.name for argument in op._schema.arguments]
    arguments = dict(zip(names, args, strict=False)) | (kwargs or {})
    first = next(leaf for leaf in tree_leaves(list(arguments.values())) if isinstance(leaf, DTensor))
    lead = next(
        (
            leaf
            for name in TOKENS
            if name in arguments
            for leaf in tree_leaves(arguments[name])
            if isinstance(leaf, DTensor)
        ),
        first,
    )
    mesh = lead.device_mesh
    tokens = tuple(p if p in (Shard(0), Shard(1)) else Replicate() for p in lead.placements)
    merged = tuple(Shard(2) if p == Shard(1) else p for p in tokens)
    placed: dict[str, Placements] = {
        "tokens": tokens,
        "merged": merged,
        "parameter": tuple(Replicate() for _ in tokens),
    }

    def local(role: str) -> Any:
        def convert(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if not isinstance(leaf, DTensor):  # as the same on every rank
                leaf = DTensor.from_local(leaf, mesh, placed["parameter"], run_check=False)
            wanted = placed["parameter" if leaf.numel() == 0 else role]
            return leaf.redistribute(mesh, wanted).to_local()

        return convert

    roles = {name: "tokens" if name in TOKENS else "merged" if name in MERGED else "parameter" for name in names}
    if Shard(1) in tokens:
        _check_shared_filters(op, arguments)
    result = op(*(tree_map(local(roles[name]), value) for name, value in arguments.items()))
    return _wrap(op, result, mesh, placed)


def _check_shared_filters(op: Any, arguments: dict[str, Any]) -> None:
    if "weight" not in arguments:
        return
    dims = {x.shape[3] for x in tree_leaves(arguments["x"])}
    weights = [w for w in tree_leaves(arguments["weight"]) if isinstance(w, Tensor) and w.numel()]
    if any(w.shape[0] not in dims for w in weights):
        raise NotImplementedError(f"{op}: x is sharded over heads but weight has a filter per channel; replicate x")


def _wrap(op: Any, result: Any, mesh: Any, placed: dict[str, Placements]) -> Any:
    returns = RETURNS[op._schema.name.partition("::")[2]]
    partial: Placements = tuple(Replicate() if p.is_replicate() else Partial() for p in placed["tokens"])
    placed = {**placed, "parameter": partial}

    def wrap(y: Tensor, role: str) -> DTensor:
        placements = tuple(Replicate() for _ in partial) if y.numel() == 0 else placed[role]
        return DTensor.from_local(y, mesh, placements, run_check=False)

    if isinstance(result, Tensor):
        return wrap(result, returns[0])
    wrapped = [wrap(y, returns[i % len(returns)]) for i, y in enumerate(result)]
    return tuple(wrapped) if isinstance(result, tuple) else wrapped


for _name in RETURNS:
    torch.library.register_torch_dispatch(f"mvit_kernels::{_name}", DTensor, _dispatch, lib=LIBRARY)
