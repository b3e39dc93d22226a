"""Accelerate a torchvision model, compare it with itself, and give it back.

    python examples/accelerate_torchvision.py --model mvit_v2_s --weights DEFAULT

Without --weights the weights are random and nothing is downloaded.
"""

from __future__ import annotations

import argparse

import torch
import torchvision

import mvit_kernels
from mvit_kernels import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mvit_v2_s", choices=("mvit_v1_b", "mvit_v2_s"))
    parser.add_argument("--weights", help="DEFAULT or KINETICS400_V1: downloads torchvision's")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torchvision.models.get_model(args.model, weights=args.weights).eval().to(device)
    clips = torch.randn(args.batch, 3, 16, 224, 224, device=device)

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return model(clips)

    def accelerated() -> torch.Tensor:
        with mvit_kernels.accelerated(model):  # for this block only
            return forward()

    before = forward()
    report = mvit_kernels.accelerate(model)
    print(report)
    after = forward()
    mvit_kernels.restore(model)
    assert torch.equal(forward(), before)

    difference = float((after - before).abs().max() / before.abs().max())
    print(f"logits differ by {difference:.1e} of scale")
    timings = measure.time_alternating(
        {"eager": forward, "mvit_kernels": accelerated}, repeats=args.repeats, warmup=0, device=device
    )
    for name in ("eager", "mvit_kernels"):
        print(f"{name:<14}{timings.spread(name).median * 1e3:8.0f} ms")


if __name__ == "__main__":
    main()
