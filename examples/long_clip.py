"""A clip too long for one device: the frames are spread over ranks, and each rank attends for its own frames.

    torchrun --nproc-per-node 2 examples/long_clip.py

Every rank holds the tokens of a run of frames, and the cls token. It projects and pools them (one halo of frames from
its neighbours), gathers the pooled keys and values of all ranks, which are short where k and v are pooled with a large
stride, and attends from its own queries. The result is exact. All communication is PyTorch's.

What a rank keeps is its share of the queries, and of the relative-position rows and the outputs that belong to them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from mvit_kernels import ops
from mvit_kernels.description import MHPA, PoolNorm, Separate
from mvit_kernels.modules import MultiHeadPoolingAttention
from mvit_kernels.problem import Grid
from mvit_kernels.rel_pos_tables import gather_table


def attend_over_ranks(layer: MHPA, x: Tensor, thw: Grid) -> Tensor:
    """One rank's part of :func:`mvit_kernels.mhpa.forward` of `layer`.

    Args:
        layer: with a pooling of q, k and v by a convolution of temporal stride 1 and odd kernel, as in every published
            MViT, separate projections, and a cls token.
        x: (B, 1 + T*H*W, C): the cls token, and this rank's T frames; equal T on every rank, rank 0 the first.
        thw: this rank's (T, H, W).
    Returns:
        (B, 1 + T*Hq*Wq, A), of this rank's frames; the row of the cls token is the same on every rank.
    """
    assert isinstance(layer.qkv, Separate) and layer.has_cls
    world, rank = dist.get_world_size(), dist.get_rank()
    tokens = [
        linear(x).unflatten(2, (layer.heads, -1)).transpose(1, 2) for linear in (layer.qkv.q, layer.qkv.k, layer.qkv.v)
    ]
    branches = [layer.pool_q, layer.pool_k, layer.pool_v]
    (q, grid_q), (k, grid_k), (v, _) = (pool(y, branch, thw) for y, branch in zip(tokens, branches, strict=True))

    k, v = (torch.cat((y[:, :, :1], *all_gather(y[:, :, 1:].contiguous())), dim=2) for y in (k, v))
    grid_k = (world * grid_k[0], *grid_k[1:])
    rows = None
    if layer.rel_pos is not None:
        rel, frames = layer.rel_pos, (world * grid_q[0], grid_k[0])
        t = None if rel.t is None else gather_table(rel.t, *frames, rel.index)[rank * grid_q[0] :][: grid_q[0]]
        h, w = (
            None if table is None else gather_table(table, grid_q[axis], grid_k[axis], rel.index)
            for axis, table in ((1, rel.h), (2, rel.w))
        )
        rows = ops.decomposed_rel_pos(q, grid_q, grid_k, has_cls=True, table_t=t, table_h=h, table_w=w)
    out = ops.pooling_attention(
        q, k, v, rel_pos=rows, grid_k=grid_k, scale=layer.scale, has_cls=True, residual=layer.residual
    )
    return layer.out(out.flatten(2))


def pool(x: Tensor, branch: PoolNorm | None, thw: Grid) -> tuple[Tensor, Grid]:
    """Pool this rank's frames of x (B, H, 1 + T*H*W, D), with the frames around them that the kernel reaches."""
    assert branch is not None and branch.pool.stride[0] == 1
    reach, world, rank = branch.pool.kernel[0] // 2, dist.get_world_size(), dist.get_rank()
    frame = thw[1] * thw[2]
    before = after = x[:, :, :0]
    if reach:
        # First and last frames in one call, of which every rank uses a part: its backward must run on all of them.
        edges = torch.stack((x[:, :, 1 : 1 + reach * frame], x[:, :, x.shape[2] - reach * frame :]))
        ranks = all_gather(edges)
        # Beyond the clip's ends the convolution's own padding is zero frames.
        before = ranks[rank - 1][1] if rank > 0 else torch.zeros_like(edges[1])
        after = ranks[rank + 1][0] if rank + 1 < world else torch.zeros_like(edges[0])
    padded = replace(branch.pool, padding=(0, *branch.pool.padding[1:]))
    y = ops.pool3d_norm(
        torch.cat((x[:, :, :1], before, x[:, :, 1:], after), dim=2),
        (thw[0] + 2 * reach, *thw[1:]),
        padded,
        has_cls=True,
        weight=branch.weight,
        norm_weight=branch.norm_weight,
        norm_bias=branch.norm_bias,
        norm_eps=branch.norm_eps,
    )
    return y, branch.pool.out_grid(thw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16, help="of the whole clip, a multiple of the ranks")
    parser.add_argument("--side", type=int, default=28, help="tokens per row and column of a frame")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    world, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(0)
    grid, mine = (args.frames, args.side, args.side), (args.frames // world, args.side, args.side)
    layer = MultiHeadPoolingAttention(
        96, 96, grid, 2, True, kernel_q=(3, 3, 3), kernel_kv=(3, 3, 3), stride_kv=(1, 4, 4),
        rel_pos_spatial=True, rel_pos_temporal=True, residual_pooling=True, separate_qkv=True,
    )  # fmt: skip
    x = torch.randn(1, 1 + grid[0] * grid[1] * grid[2], 96)
    with torch.no_grad():
        share = x[:, 1:].chunk(world, dim=1)[rank]
        out = attend_over_ranks(layer.describe(), torch.cat((x[:, :1], share), dim=1), mine)
        whole = layer(x, grid)[0]
    expected = torch.cat((whole[:, :1], whole[:, 1:].chunk(world, dim=1)[rank]), dim=1)
    error = float((out - expected).abs().max() / expected.abs().max())
    print(f"rank {rank}: {out.shape[1]} of {whole.shape[1]} tokens, {error:.1e} of scale from one process", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
