"""Small whole models of the libraries on the index: what accelerate replaces in them, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mvit_kernels


def timm_model(name: str, **options: Any) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=7, **options)


def transformers_model(kind: str, **options: Any) -> nn.Module:
    library = pytest.importorskip("transformers")
    return getattr(library, f"{kind}Model")(getattr(library, f"{kind}Config")(**options))


def pytorchvideo_model() -> nn.Module:
    models = pytest.importorskip("pytorchvideo.models.vision_transformers")
    return models.create_multiscale_vision_transformers(
        spatial_size=32,
        temporal_size=4,
        depth=3,
        head_num_classes=7,
        patch_embed_dim=16,
        num_heads=1,
        embed_dim_mul=[[1, 2.0]],
        atten_head_mul=[[1, 2.0]],
        pool_q_stride_size=[[1, 1, 2, 2]],
        pool_kv_stride_adaptive=[1, 2, 2],
        pool_kvq_kernel=[3, 3, 3],
    )


SAM = {"img_size": 128, "depth": 2, "global_attn_indexes": (1,), "embed_dim": 48, "num_heads": 2}
HF_SAM = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 128,
    "global_attn_indexes": [1],
    "output_channels": 16,
    "mlp_dim": 96,
}
HF_HIERA = {"embed_dim": 24, "image_size": [64, 64], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "timm mvitv2": (lambda: timm_model("mvitv2_tiny", img_size=64), (1, 3, 64, 64), 10, 0),
    "timm hiera": (lambda: timm_model("hiera_tiny_224", img_size=64), (1, 3, 64, 64), 3, 9),
    "timm samvit": (lambda: timm_model("samvit_base_patch16", **SAM), (1, 3, 128, 128), 2, 0),
    "transformers SAM": (lambda: transformers_model("SamVision", **HF_SAM), (1, 3, 128, 128), 2, 0),
    "transformers Hiera": (lambda: transformers_model("Hiera", **HF_HIERA), (1, 3, 64, 64), 5, 0),
    "PyTorchVideo": (pytorchvideo_model, (1, 3, 4, 32, 32), 3, 0),
}
"""Builder, input, layers replaced, layers left alone."""


@pytest.mark.parametrize("name", MODELS)
def test_the_model_gives_what_it_gave(name: str) -> None:
    build, shape, replaced, left_alone = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    model = build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # heads start at zero in some
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    def run() -> list[Tensor]:
        out = model(x)
        out = out if isinstance(out, Tensor) else out.last_hidden_state
        found = torch.autograd.grad(out.square().sum(), [x, *model.parameters()], allow_unused=True)
        return [out, *(tensor for tensor in found if tensor is not None)]

    before = run()
    report = mvit_kernels.accelerate(model)
    assert (len(report.replaced), len(report.left_alone)) == (replaced, left_alone), str(report)
    largest = max(float(tensor.abs().max()) for tensor in before[1:])
    for ours, eager in zip(run(), before, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-8, atol=1e-10 * float(eager.abs().max()) + 1e-13 * largest)
    mvit_kernels.restore(model)
    for again, eager in zip(run(), before, strict=True):
        assert torch.equal(again, eager)
