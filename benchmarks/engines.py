"""Whole models in engines of other projects."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from subject import Unavailable
from torch import Tensor, nn

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def openvino(model: nn.Module, x: Tensor, dtype: str) -> Callable[[], Tensor]:
    """OpenVINO on the CPU, for latency, at torch's number of threads; its own inference precision."""
    if find_spec("openvino") is None:
        raise Unavailable("openvino is not installed (pip install openvino)")
    if x.device.type != "cpu":
        raise Unavailable("compared on a CPU alone")
    import openvino as ov

    with torch.no_grad():
        converted = ov.convert_model(copy.deepcopy(model), example_input=x)
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = ov.Core().compile_model(converted, "CPU", settings)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if chosen != PRECISIONS[dtype]:
        raise Unavailable(f"OpenVINO runs it in {chosen} on this CPU")
    request, inputs = compiled.create_infer_request(), [x.numpy()]
    return lambda: torch.from_numpy(next(iter(request.infer(inputs).values())).copy())


def onnxruntime(model: nn.Module, x: Tensor, dtype: str) -> Callable[[], Tensor]:
    """ONNX Runtime on the CPU, at torch's number of threads, from torch's exporter."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise Unavailable(f"{', '.join(missing)} not installed (pip install 'mvit_kernels[onnx]')")
    if dtype != "float32" or x.device.type != "cpu":
        raise Unavailable("compared in float32 on a CPU alone: its CPU kernels have no half precision")
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(copy.deepcopy(model), (x,), str(path), dynamo=True, verbose=False, input_names=["x"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads would slow the next in turn
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])
