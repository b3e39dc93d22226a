"""MultiScaleBlock against SlowFast's block spelled out."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvit_kernels.modules import DropPath, MultiScaleBlock

from . import spelled_out

GRID = (2, 6, 8)
STRIDED = {"kernel_q": (3, 3, 3), "stride_q": (1, 2, 2), "kernel_kv": (3, 3, 3), "stride_kv": (1, 2, 2)}

VARIANTS: dict[str, dict[str, Any]] = {
    "no pooling": {},
    "strided": STRIDED,
    "temporal stride": {**STRIDED, "stride_q": (2, 2, 2)},
    "channels change in the attention": {"dim_out": 24, "dim_mul_in_att": True, **STRIDED},
    "channels change in the mlp": {"dim_out": 24, **STRIDED},
    "layer scale": {"dim_out": 24, "dim_mul_in_att": True, "layer_scale_init_value": 0.1},
    "mlp ratio": {"mlp_ratio": 1.5},
    "mvit v2": {
        **STRIDED,
        "rel_pos_spatial": True,
        "rel_pos_temporal": True,
        "residual_pooling": True,
        "qkv_bias": True,
    },
    "empty lists": {"kernel_q": [], "stride_q": [], "kernel_kv": [], "stride_kv": []},
}


def block_and_input(cls: bool, dim_out: int = 12, **options: Any) -> tuple[MultiScaleBlock, Tensor]:
    block = MultiScaleBlock(12, dim_out, 2, GRID, has_cls_embed=cls, **options)
    spelled_out.randomize(block.double())
    x = torch.randn(2, cls + prod(GRID), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return block, x


@pytest.mark.parametrize("cls", [True, False], ids=["cls", "no cls"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_block_matches_slowfast(variant: str, cls: bool) -> None:
    block, x = block_and_input(cls, **VARIANTS[variant])
    out, grid = block(x, list(GRID))
    expected, expected_grid = spelled_out.block(block, x, GRID)
    assert grid == list(expected_grid)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_state_dict_names_are_slowfasts() -> None:
    block, _ = block_and_input(True, dim_out=24, layer_scale_init_value=0.1)
    parts = {"norm1", "norm2", "mlp.fc1", "mlp.fc2", "proj", "attn.proj"}
    names = {f"{part}.{parameter}" for part in parts for parameter in ("weight", "bias")}
    assert set(block.state_dict()) == names | {"attn.qkv.weight", "gamma_1", "gamma_2"}


def test_without_a_grid_the_tensor_is_returned_alone() -> None:
    block, x = block_and_input(False)
    out = block(x)
    assert isinstance(out, Tensor)
    assert torch.equal(out, block(x, GRID)[0])


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 3, 2)
    out = drop(x)
    assert torch.equal(out.amin((1, 2)), out.amax((1, 2)))
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    assert not DropPath(1.0)(x).any()


def test_a_fully_dropped_path_leaves_the_skip_path() -> None:
    block, x = block_and_input(True, drop_path=1.0)
    assert torch.equal(block(x, GRID)[0], x)
    assert not torch.equal(block.eval()(x, GRID)[0], x)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dim_out": 0}, ValueError, "dim_out is 0, a positive int"),
        ({"qk_scale": 0.5}, ValueError, "qk_scale is 0.5, None"),
        ({"up_rate": 3}, ValueError, "up_rate is 3, dim_out / dim = 12 / 12"),
        ({"mlp_ratio": 0.0}, ValueError, "mlp_ratio is 0.0, a positive number"),
        ({"drop_path": 1.5}, ValueError, "drop_path is 1.5, a probability"),
        ({"norm_layer": nn.Identity}, TypeError, "norm_layer makes a Identity, a LayerNorm"),
        ({"norm_layer": partial(nn.LayerNorm, eps=-1.0)}, ValueError, "norm_layer has eps -1.0"),
        ({"kernel_q": (), "stride_q": (1, 2, 2)}, ValueError, "kernel_q is"),
    ],
)
def test_a_bad_argument_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"dim": 12, "dim_out": 12, "num_heads": 2, "input_size": GRID}
    with pytest.raises(error, match=message):
        MultiScaleBlock(**{**arguments, **change})
