"""What torchrun runs: one scenario on two ranks, its results from rank 0 written to a file.

torchrun --nproc-per-node 2 -m tests.distributed.worker ddp out.pt
"""

from __future__ import annotations

import copy
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.experimental import implicit_replication
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import mvit_kernels
from mvit_kernels import backends
from mvit_kernels.modules import MultiHeadPoolingAttention
from tests.ways.hosts import clips, torchvision_model

sys.path.append(str(Path(__file__).parents[2] / "examples"))

Named = dict[str, Tensor]


def whole_gradients(model: nn.Module) -> Named:
    return {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def mine(x: Tensor) -> Tensor:
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def single_process(model: nn.Module) -> Named:
    """The gradients of the mean over the whole batch, from the host's own forward."""
    model = copy.deepcopy(model)
    model(clips(4)).square().mean().backward()
    return whole_gradients(model)


def ddp() -> tuple[Named, Named]:
    model = torchvision_model(2)
    expected = single_process(model)
    mvit_kernels.accelerate(model)
    parallel = DistributedDataParallel(model)
    with backends.record() as log:
        parallel(mine(clips(4))).square().mean().backward()
    assert sum(decision.problem.op == "pooling_attention" for decision in log) == 2, log
    return whole_gradients(model), expected


def fsdp(accelerate_first: bool) -> tuple[Named, Named]:
    model = torchvision_model(2)
    expected = single_process(model)
    host = type(model.blocks[0].attn)
    if accelerate_first:
        mvit_kernels.accelerate(model)
    for block in model.blocks:
        fully_shard(block.attn)  # gives the layer a class derived from its own
        fully_shard(block)
    fully_shard(model)
    if not accelerate_first:
        assert len(mvit_kernels.accelerate(model).replaced) == 2
    with backends.record() as log:
        model(mine(clips(4))).square().mean().backward()
    assert sum(decision.problem.op == "pooling_attention" for decision in log) == 2, log
    found = whole_gradients(model)
    mvit_kernels.restore(model)
    attention = model.blocks[0].attn
    assert isinstance(attention, host) and hasattr(attention, "unshard"), type(attention).__mro__
    with backends.record() as log:
        model(mine(clips(4)))
    assert not log
    return found, expected


def attention() -> tuple[MultiHeadPoolingAttention, Tensor, tuple[int, int, int]]:
    torch.manual_seed(0)
    thw = (4, 6, 7)
    layer = MultiHeadPoolingAttention(
        24, 32, (4, 7, 7), 4, True, kernel_q=(3, 3, 3), kernel_kv=(3, 3, 3), stride_q=(1, 2, 2), stride_kv=(1, 4, 4),
        rel_pos_spatial=True, rel_pos_temporal=True, residual_pooling=True, separate_qkv=True,
    )  # fmt: skip
    for parameter in layer.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return layer, torch.randn(2, 1 + 4 * 6 * 7, 24), thw


def tensor_parallel() -> tuple[Named, Named]:
    """Heads over ranks: q, k and v by columns, the output projection by rows, the small parameters replicated."""
    import mvit_kernels.distributed  # noqa: F401  the ops' DTensor rules

    layer, x, thw = attention()
    whole = copy.deepcopy(layer)
    y = whole(x, thw)[0]
    y.square().mean().backward()
    expected = whole_gradients(whole) | {"output": y.detach()}

    mesh = init_device_mesh("cpu", (2,))
    plan = {
        "q": ColwiseParallel(use_local_output=False),
        "k": ColwiseParallel(use_local_output=False),
        "v": ColwiseParallel(use_local_output=False),
        "proj": RowwiseParallel(),
    }
    parallelize_module(layer, mesh, plan)
    distribute_module(layer, mesh)  # what the plan left out: replicated
    parallelize_module(
        layer,
        mesh,
        PrepareModuleInput(input_layouts=(Replicate(), None), desired_input_layouts=(Replicate(), None)),
    )
    with implicit_replication(), backends.record() as log:
        y = layer(x, thw)[0]
        y.square().mean().backward()
    assert {decision.backend for decision in log} == {backends.available()[0]}
    assert isinstance(layer.q.weight, DTensor) and layer.q.weight.to_local().shape == (16, 24)
    return whole_gradients(layer) | {"output": y.detach()}, expected


def long_clip() -> tuple[Named, Named]:
    """Frames over ranks; the losses of the ranks sum to the whole's, the cls row counted on rank 0."""
    from long_clip import attend_over_ranks

    layer, x, thw = attention()
    x = torch.randn(2, 1 + 4 * 6 * 7, 24, generator=torch.Generator().manual_seed(1))
    whole = copy.deepcopy(layer)
    y = whole(x, thw)[0]
    y.square().sum().backward()
    expected = whole_gradients(whole) | {"output": y.detach()}

    world, rank = dist.get_world_size(), dist.get_rank()
    share = torch.cat((x[:, :1], x[:, 1:].chunk(world, dim=1)[rank]), dim=1)
    out = attend_over_ranks(layer.describe(), share, (thw[0] // world, *thw[1:]))
    counted = out if rank == 0 else out[:, 1:]
    counted.square().sum().backward()
    for parameter in layer.parameters():
        dist.all_reduce(parameter.grad)
    parts = [torch.empty_like(out[:, 1:]) for _ in range(world)]
    dist.all_gather(parts, out[:, 1:].detach().contiguous())
    return whole_gradients(layer) | {"output": torch.cat((out[:, :1].detach(), *parts), dim=1)}, expected


SCENARIOS = {
    "ddp": ddp,
    "fsdp, accelerated before": lambda: fsdp(True),
    "fsdp, accelerated after": lambda: fsdp(False),
    "tensor parallel over heads": tensor_parallel,
    "long clip": long_clip,
}


def main(path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {}
    for name, scenario in SCENARIOS.items():
        try:
            results[name] = tuple({key: value.clone() for key, value in part.items()} for part in scenario())
        except Exception:
            results[name] = traceback.format_exc()
        dist.barrier()
    if dist.get_rank() == 0:
        torch.save(results, path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
