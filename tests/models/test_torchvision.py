"""The reference model against torchvision's MViT with the same weights, and the key map between them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvit_kernels import models

video = pytest.importorskip("torchvision.models.video")

FLOAT32_OF_SCALE = 1e-5
FLOAT64_OF_SCALE = 1e-10


def sharpen(model: nn.Module) -> nn.Module:
    """Weights with which softmax is far from uniform, and position, norms and biases matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if name.endswith("qkv.weight"):
                parameter.mul_(4.0)
            elif "rel_pos" in name or "pos_encoding" in name or name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "norm" in name:
                parameter.add_(0.2 * noise)
    return model.eval()


def assert_close(ours: Tensor, theirs: Tensor, of_scale: float) -> None:
    error, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= of_scale * scale, f"error {error:.2e} at scale {scale:.2e}"


def block_outputs(model: nn.Module, x: Tensor) -> tuple[list[tuple[Tensor, Any]], Tensor]:
    """Tokens and grid out of every block, and the logits."""
    outputs: list[tuple[Tensor, Any]] = []
    hooks = [block.register_forward_hook(lambda _, args, out: outputs.append(out)) for block in model.blocks]
    with torch.no_grad():
        logits = model(x)
    for hook in hooks:
        hook.remove()
    return outputs, logits


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_float32_layer_by_layer_and_end_to_end(name: str) -> None:
    torch.manual_seed(0)
    theirs = sharpen(getattr(video, name)())
    ours = models.from_torchvision(theirs)
    x = torch.randn(1, 3, 16, 224, 224)
    outputs, logits = block_outputs(ours, x)
    expected_outputs, expected_logits = block_outputs(theirs, x)
    for (tokens, grid), (expected, expected_grid) in zip(outputs, expected_outputs, strict=True):
        assert grid == list(expected_grid)
        assert_close(tokens, expected, FLOAT32_OF_SCALE)
    assert_close(logits, expected_logits, FLOAT32_OF_SCALE)


@pytest.mark.parametrize(("name", "parameters"), [("mvit_v1_b", 36_610_672), ("mvit_v2_s", 34_537_744)])
def test_parameter_count_and_published_configuration(name: str, parameters: int) -> None:
    with torch.device("meta"):
        theirs = getattr(video, name)()
        ours = models.from_torchvision(theirs)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == parameters
    published = models.model_config(f"{name}_16x4")
    assert ours.config.blocks() == published.blocks()
    assert models.layer_shapes(ours.config) == models.layer_shapes(published)


def small(
    *, spatial_size: tuple[int, int] = (64, 64), q_pools: bool = True, kernel: list[int] | None = None, **options: Any
) -> nn.Module:
    """torchvision's MViT with three blocks."""
    setting = partial(video.mvit.MSBlockConfig, kernel_kv=kernel or [3, 3, 3])
    first_q = {"kernel_q": kernel or [3, 3, 3], "stride_q": [1, 1, 1]} if q_pools else {"kernel_q": [], "stride_q": []}
    middle, last = (12, 24) if options.get("proj_after_attn") else (24, 24)
    blocks = [
        setting(1, 12, middle, **first_q, stride_kv=[1, 4, 4]),
        setting(2, middle, last, kernel_q=[3, 3, 3], stride_q=[1, 2, 2], stride_kv=[1, 2, 2]),
        setting(2, last, last, **first_q, stride_kv=[1, 2, 2]),
    ]
    defaults: dict[str, Any] = {
        "spatial_size": spatial_size,
        "temporal_size": 4,
        "block_setting": blocks,
        "residual_pool": True,
        "residual_with_cls_embed": False,
        "rel_pos_embed": True,
        "proj_after_attn": False,
        "num_classes": 7,
    }
    torch.manual_seed(0)
    return video.MViT(**{**defaults, **options})


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "v2": {"proj_after_attn": True},
    "v1": {"residual_pool": False, "rel_pos_embed": False, "q_pools": False},
    "residual on all rows": {"residual_with_cls_embed": True},
    "non-square": {"spatial_size": (64, 48)},
    "table shorter than the grid": {"spatial_size": (104, 72), "proj_after_attn": True},
    "other kernel": {"kernel": [1, 5, 5]},
    "other patches": {
        "patch_embed_kernel": (1, 3, 3),
        "patch_embed_stride": (1, 4, 4),
        "patch_embed_padding": (0, 1, 1),
    },
    "norm without parameters": {"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)},
    "norm without bias": {"norm_layer": partial(nn.LayerNorm, bias=False, eps=1e-3)},
    "dropouts": {"dropout": 0.2, "attention_dropout": 0.1, "stochastic_depth_prob": 0.3},
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_float64_end_to_end(configuration: str) -> None:
    theirs = sharpen(small(**CONFIGURATIONS[configuration]).double())
    ours = models.from_torchvision(theirs)
    x = torch.randn(2, 3, *ours.config.clip, dtype=torch.float64)
    with torch.no_grad():
        assert_close(ours(x), theirs(x), FLOAT64_OF_SCALE)


def test_float64_gradients() -> None:
    theirs = sharpen(small(proj_after_attn=True).double())
    ours = models.from_torchvision(theirs)
    x = torch.randn(1, 3, 4, 64, 64, dtype=torch.float64)
    for model in (ours, theirs):
        model(x).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = models.convert_state_dict(gradients, from_="torchvision", to="mvit_kernels")
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=FLOAT64_OF_SCALE * largest)


def test_dropout_rates_and_training_mode_carry_over() -> None:
    theirs = small(dropout=0.2, attention_dropout=0.1, stochastic_depth_prob=0.3).train()
    config = models.from_torchvision(theirs).config
    assert models.from_torchvision(theirs).training
    assert (config.head_dropout_rate, config.dropout_rate, config.droppath_rate) == (0.2, 0.1, 0.3)


def test_weights_are_copied() -> None:
    theirs = small()
    ours = models.from_torchvision(theirs)
    before = theirs.head[1].weight.clone()
    with torch.no_grad():
        ours.head.projection.weight.zero_()
    assert torch.equal(theirs.head[1].weight, before)


def test_what_is_not_torchvisions_model_is_named() -> None:
    with pytest.raises(TypeError, match="model is a Linear, a MViT is right"):
        models.from_torchvision(nn.Linear(1, 1))
    theirs = small()
    theirs.head = nn.Identity()
    with pytest.raises(TypeError, match="head is a Identity"):
        models.from_torchvision(theirs)
    theirs = small()
    theirs.blocks[1].norm1 = nn.BatchNorm1d(24)
    with pytest.raises(TypeError, match=r"blocks\.1\.norm1 is a BatchNorm1d, a LayerNorm is right"):
        models.from_torchvision(theirs)
    theirs = small()
    theirs.blocks[1].attn.residual_pool = False
    with pytest.raises(ValueError, match="residual_pool differs from block to block"):
        models.from_torchvision(theirs)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_key_map_is_a_renaming_both_ways(configuration: str) -> None:
    theirs = small(**CONFIGURATIONS[configuration]).state_dict()
    ours = models.convert_state_dict(theirs, from_="torchvision", to="mvit_kernels")
    assert ours.keys() == models.from_torchvision(small(**CONFIGURATIONS[configuration])).state_dict().keys()
    back = models.convert_state_dict(ours, from_="mvit_kernels", to="torchvision")
    assert list(back) == list(theirs)
    assert all(torch.equal(back[key], tensor) for key, tensor in theirs.items())
    assert all(
        ours_.data_ptr() == tensor.data_ptr() for ours_, tensor in zip(ours.values(), theirs.values(), strict=True)
    )


def test_unknown_and_missing_keys_are_all_listed() -> None:
    theirs = small(rel_pos_embed=False).state_dict()
    with pytest.raises(ValueError, match=r"unknown torchvision keys: blocks\.0\.attn\.gamma, fc\.weight$"):
        extra = {"fc.weight": torch.zeros(1), "blocks.0.attn.gamma": torch.zeros(1)}
        models.convert_state_dict({**theirs, **extra}, from_="torchvision", to="mvit_kernels")

    lost = ["blocks.1.attn.pool_k.pool.weight", "blocks.2.norm2.bias", "head.1.bias", "pos_encoding.class_pos"]
    with pytest.raises(ValueError) as error:
        partial_ = {key: tensor for key, tensor in theirs.items() if key not in lost}
        models.convert_state_dict(partial_, from_="torchvision", to="mvit_kernels")
    assert str(error.value).startswith("convert_state_dict: missing torchvision keys: ")
    assert sorted(str(error.value).split(": ")[2].split(", ")) == lost

    ours = models.convert_state_dict(theirs, from_="torchvision", to="mvit_kernels")
    ours["blocks.0.attn.q.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"unknown mvit_kernels keys: blocks\.0\.attn\.q\.weight"):
        models.convert_state_dict(ours, from_="mvit_kernels", to="torchvision")
