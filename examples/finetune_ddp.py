"""Fine-tune an accelerated model with DistributedDataParallel.

    torchrun --standalone --nproc-per-node 2 examples/finetune_ddp.py

Every rank takes its part of each batch; the gradients are averaged by DDP as for any module. A model that was trained
on the even digits gets a new head and learns the odd ones.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torch.distributed as dist
from digits import moving_digits, small_mvit
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import mvit_kernels


def train(model: nn.Module, clips: Tensor, labels: Tensor, epochs: int, batch: int, title: str) -> None:
    device = next(model.parameters()).device
    parallel = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    data = TensorDataset(clips, labels)
    sampler: DistributedSampler = DistributedSampler(data, seed=0)
    loader = DataLoader(data, batch_size=batch, sampler=sampler, drop_last=True)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        total = torch.zeros(2, device=device)
        for x, y in loader:
            loss = nn.functional.cross_entropy(parallel(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += torch.stack((loss.detach(), torch.ones_like(loss)))
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            print(f"{title}, epoch {epoch}: mean loss {float(total[0] / total[1]):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="per rank")
    parser.add_argument("--clips", type=int, default=600, help="taken from the data set")
    args = parser.parse_args()
    if not dist.is_torchelastic_launched():
        sys.exit("start it with torchrun: torchrun --standalone --nproc-per-node 2 examples/finetune_ddp.py")

    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", dist.get_node_local_rank()) if cuda else torch.device("cpu")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    clips, labels = moving_digits()
    clips, labels = clips[: args.clips], labels[: args.clips]
    even = labels % 2 == 0
    model = small_mvit(classes=5).train().to(device)
    report = mvit_kernels.accelerate(model)
    if dist.get_rank() == 0:
        print(report, flush=True)
    train(model, clips[even], labels[even] // 2, args.epochs, args.batch, "even digits")
    head = model.head[1]
    model.head[1] = nn.Linear(head.in_features, 5).to(device)
    train(model, clips[~even], labels[~even] // 2, args.epochs, args.batch, "odd digits, new head")
    weights = [p.detach().double().sum() for p in model.parameters()]
    checksum = torch.stack(weights).sum()
    everywhere = [torch.zeros_like(checksum) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, checksum)
    assert all(torch.equal(other, checksum) for other in everywhere), "the ranks' weights differ"
    if dist.get_rank() == 0:
        print(f"the weights are the same on {dist.get_world_size()} ranks", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
