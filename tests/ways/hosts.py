"""Models to run in every way: torchvision's MViT, v1 and v2, and the package's own; two blocks, small and quick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mvit_kernels import models

FRAMES, SIDE, CLASSES = 4, 32, 7


def torchvision_model(version: int = 2, **changes: Any) -> nn.Module:
    """torchvision's class with two blocks of v1_b or v2_s: the first pools k and v with a stride above the kernel."""
    from torchvision.models.video import mvit

    v2 = version == 2
    settings = [
        mvit.MSBlockConfig(
            1, 16, 16 if v2 else 32, [3, 3, 3] if v2 else [], [3, 3, 3], [1, 1, 1] if v2 else [], [1, 4, 4]
        ),
        mvit.MSBlockConfig(2, 16 if v2 else 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2]),
    ]
    options: dict[str, Any] = {
        "residual_pool": v2,
        "residual_with_cls_embed": False,
        "rel_pos_embed": v2,
        "proj_after_attn": v2,
        "num_classes": CLASSES,
        "stochastic_depth_prob": 0.0,
        "dropout": 0.0,
        **changes,
    }
    torch.manual_seed(0)
    return randomised(mvit.MViT((SIDE, SIDE), FRAMES, settings, **options)).eval()


def own_model(**changes: Any) -> nn.Module:
    """MViTv2 of the package with two blocks."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "num_frames": FRAMES,
        "crop_size": SIDE,
        "num_classes": CLASSES,
        "depth": 2,
        "embed_dim": 16,
        "dim_mul": ((1, 2.0),),
        "head_mul": ((1, 2.0),),
        "pool_q_stride": ((0, 1, 1, 1), (1, 1, 2, 2)),
        "pool_kv_stride_adaptive": (1, 4, 4),
        "droppath_rate": 0.0,
        "head_dropout_rate": 0.0,
        **changes,
    }
    return randomised(models.create("mvit_v2_s_16x4", **options)).eval()


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "torchvision v1": lambda: torchvision_model(1),
    "torchvision v2": lambda: torchvision_model(2),
    "own v2": own_model,
}


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter away from its initial zero, one or tiny value, so that each of them matters."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or "pos" in name:
            base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.data = base + 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def clips(batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """(batch, 3, FRAMES, SIDE, SIDE), the same for the same batch."""
    return torch.randn(batch, 3, FRAMES, SIDE, SIDE, generator=torch.Generator().manual_seed(batch)).to(dtype)


def gradients(model: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor, scale: float = 1) -> dict[str, Tensor]:
    """Output and the gradient of every parameter of `model` and of the input for scale * sum(call(x)**2)."""
    x = x.detach().requires_grad_()
    model.zero_grad()
    y = call(x)
    (scale * y.square().sum()).backward()
    assert x.grad is not None
    found = {"output": y.detach(), "input": x.grad}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], of_scale: float = 2e-5) -> None:
    """Each tensor within `of_scale` of the expected one's largest value.

    A gradient below a thousandth of the largest counts as that: a bias on every key shifts all scores of a query alike
    and has none, so that only rounding is left of it.
    """
    assert found.keys() == expected.keys()
    scales = {name: float(value.abs().max()) for name, value in expected.items()}
    least = 1e-3 * max(scale for name, scale in scales.items() if name != "output")
    for name, value in expected.items():
        scale = scales[name] if name == "output" else max(scales[name], least)
        error = float((found[name] - value).abs().max())
        assert error <= of_scale * scale, f"{name}: error {error:.2e} at scale {scale:.2e}"
