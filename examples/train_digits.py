"""A small MViT trained on moving digits, eager and accelerated from the same seed: the same loss curve within noise.

    pip install scikit-learn matplotlib
    python examples/train_digits.py --plot digits.png

Rounding differs in the last bit and training amplifies it, so the curves are equal at first and then differ as two
runs of one model do that were rounded differently. To show how much that is, a third run is eager again with its
initial weights changed by one part in ten million.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from digits import moving_digits, small_mvit
from torch import Tensor, nn

import mvit_kernels

TEST_CLIPS = 297
RUNS = ("eager", "accelerated", "eager, last bit changed")


def train(run: str, data: tuple[Tensor, Tensor], steps: int, batch: int, seed: int) -> tuple[list[float], float, float]:
    """Loss of every step, accuracy on the clips held out, and seconds."""
    torch.manual_seed(seed)
    model = small_mvit().train()
    if run == "accelerated":
        report = mvit_kernels.accelerate(model)
        assert len(report.replaced) == 3, report
    elif run != "eager":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 1e-7 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    clips, labels = data
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=max(steps, 2))
    losses: list[float] = []
    start = time.perf_counter()
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(clips) - TEST_CLIPS, (batch,), generator=draws)
        loss = nn.functional.cross_entropy(model(clips[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - start
    model.eval()
    with torch.inference_mode():
        guesses = torch.cat([model(part).argmax(1) for part in clips[-TEST_CLIPS:].split(99)])
    return losses, float((guesses == labels[-TEST_CLIPS:]).float().mean()), seconds


def windows(losses: list[float], size: int) -> Tensor:
    """Means of `size` steps each."""
    return torch.tensor([sum(part) / len(part) for i in range(0, len(losses), size) if (part := losses[i : i + size])])


def draw(path: Path, curves: dict[str, list[float]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (run, losses), style in zip(curves.items(), ("-", "--", ":"), strict=True):
        axes.plot(losses, style, linewidth=1, label=run)
    axes.set(xlabel="step", ylabel="cross-entropy", title="a small MViTv2 on moving digits, one seed")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="write the loss curves as a picture")
    args = parser.parse_args()

    torch.set_num_threads(1)  # a model this small gains nothing from more
    data = moving_digits()
    curves, results = {}, {}
    for run in RUNS:
        losses, accuracy, seconds = train(run, data, args.steps, args.batch, args.seed)
        curves[run], results[run] = losses, (accuracy, seconds)
    size = max(args.steps // 10, 1)
    means = {run: windows(losses, size) for run, losses in curves.items()}
    print("steps      " + "  ".join(f"{run:>24}" for run in RUNS))
    for i in range(len(means["eager"])):
        print(
            f"{i * size:>4}-{min((i + 1) * size, args.steps) - 1:<4}  "
            + "  ".join(f"{means[r][i]:>24.4f}" for r in RUNS)
        )
    for run, (accuracy, seconds) in results.items():
        print(f"{run}: accuracy {accuracy:.1%} of {TEST_CLIPS} clips held out, {seconds:.1f} s")
    found, noise = (float((means[run] - means["eager"]).abs().max()) for run in RUNS[1:])
    first = abs(curves["accelerated"][0] - curves["eager"][0])
    print(f"first loss differs by {first:.1e}")
    print(
        f"means of {size} steps differ from eager by at most {found:.4f}; by {noise:.4f} where the last bit was changed"
    )
    if args.plot:
        draw(args.plot, curves)
    same = first < 1e-5 and found <= 3 * noise + 1e-3
    print("the same loss curve within noise" if same else "the loss curves DIFFER by more than noise")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
