"""torch.export, AOTInductor and ONNX."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import mvit_kernels
from mvit_kernels import accelerate

from .hosts import HOSTS, clips, own_model, torchvision_model

pytest.importorskip("torchvision")

ONNX = ("onnx", "onnxscript", "onnxruntime")
missing = [name for name in ONNX if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++")


def export(model: nn.Module) -> torch.export.ExportedProgram:
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=64)
        return torch.export.export(model, (clips(2),), dynamic_shapes=({0: batch},))


def op_calls(program: torch.export.ExportedProgram) -> list[str]:
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return [name.split(".")[1] for name in names if name.startswith("mvit_kernels.")]


@pytest.mark.parametrize("host", HOSTS)
def test_an_exported_program_holds_the_ops_and_takes_any_batch(host: str, backend) -> None:
    model = HOSTS[host]()
    with torch.no_grad():
        expected = model(clips(3))
    accelerate(model)
    program = export(model)
    rel_pos = ["decomposed_rel_pos"] if "v2" in host else []
    attention = ("qkv_pool3d_norm", "decomposed_rel_pos", "pooling_attention")
    calls = [name for name in op_calls(program) if name in attention]
    assert calls == ["qkv_pool3d_norm", *rel_pos, "pooling_attention"] * 2
    with torch.no_grad():
        torch.testing.assert_close(program.module()(clips(3)), expected, rtol=1e-4, atol=1e-5)


def test_an_exported_program_is_saved_and_loaded(tmp_path: Path, backend) -> None:
    model = accelerated_model()
    torch.export.save(export(model), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    with torch.no_grad():
        assert torch.equal(loaded.module()(clips(3)), model(clips(3)))


@needs_compiler
def test_an_aotinductor_package_runs_the_ops(tmp_path: Path, backend) -> None:
    model = torchvision_model(2)
    with torch.no_grad():
        expected = model(clips(3))
    accelerate(model)
    path = torch._inductor.aoti_compile_and_package(export(model), package_path=str(tmp_path / "model.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    torch.testing.assert_close(loaded(clips(3)), expected, rtol=1e-4, atol=1e-5)


@needs_onnx
@pytest.mark.parametrize("host", HOSTS)
def test_onnx_runtime_gives_the_same_through_standard_ops(host: str, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    model = HOSTS[host]()
    with torch.no_grad():
        expected = model(clips(3))
    accelerate(model)
    path = tmp_path / "model.onnx"
    with mvit_kernels.use_backend("eager"):
        batch = torch.export.Dim("batch", min=1, max=64)
        torch.onnx.export(model, (clips(2),), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    assert {node.domain for node in onnx.load(path).graph.node} <= {"", "pkg.onnxscript.torch_lib.common"}
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: clips(3).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def accelerated_model() -> nn.Module:
    model = own_model()
    accelerate(model)
    return model
