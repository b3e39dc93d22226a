"""The image models against timm's MViTv2 with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mvit_kernels import models

timm = pytest.importorskip("timm")

NAMES = {
    "mvitv2_tiny": "mvit_v2_t",
    "mvitv2_small": "mvit_v2_s",
    "mvitv2_base": "mvit_v2_b",
    "mvitv2_large": "mvit_v2_l",
    "mvitv2_small_cls": "mvit_v2_s_cls",
    "mvitv2_base_cls": "mvit_v2_b_cls",
    "mvitv2_large_cls": "mvit_v2_l_cls",
    "mvitv2_huge_cls": "mvit_v2_h_cls",
}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return models.convert_state_dict(model.state_dict(), from_="timm", to="mvit_kernels")


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_and_names(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False, num_classes=1000)
        ours = models.create(NAMES[name])
    assert {key: tensor.shape for key, tensor in weights_of(theirs).items()} == {
        key: tensor.shape for key, tensor in ours.state_dict().items()
    }
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())


@pytest.mark.parametrize(("name", "residual"), [("mvitv2_tiny", "no_cls"), ("mvitv2_small_cls", "all")])
def test_float32_end_to_end(name: str, residual: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "rel_pos" in key or key.endswith("bias"):
                parameter.normal_(std=0.3)
            elif "qkv" in key:
                parameter.mul_(4.0)
    with torch.device("meta"):
        ours = models.create(NAMES[name], residual=residual).eval()
    ours.load_state_dict(weights_of(theirs), assign=True)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs(x)
        error = (ours(x) - expected).abs().max()
    assert error <= 1e-5 * expected.abs().max()
