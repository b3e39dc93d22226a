"""MultiHeadPoolingAttention against SlowFast's layer spelled out, and what other code relies on in it."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvit_kernels.modules import MultiHeadPoolingAttention
from mvit_kernels.rel_pos_tables import slowfast_index, torchvision_index

from . import spelled_out

GRID = (2, 6, 8)
POOLED = {"kernel_q": (3, 3, 3), "stride_q": (1, 2, 2), "kernel_kv": (3, 3, 3), "stride_kv": (1, 4, 4)}
REL_POS = {"rel_pos_spatial": True, "rel_pos_temporal": True}

VARIANTS: dict[str, dict[str, Any]] = {
    "no pooling": {},
    "mvit v1 block 0": {"kernel_kv": (3, 3, 3), "stride_kv": (1, 8, 8), "qkv_bias": True},
    "mvit v2": {**POOLED, **REL_POS, "residual_pooling": True, "qkv_bias": True},
    "residual on all rows": {**POOLED, "residual_pooling": True, "residual": "all"},
    "q pooled alone": {"kernel_q": (1, 3, 3), "stride_q": (1, 2, 2)},
    "kernel one with stride": {"kernel_q": (1, 1, 1), "stride_q": (1, 2, 2)},
    "stride one": {"kernel_q": (3, 3, 3), "kernel_kv": (1, 5, 5)},
    "temporal stride": {**POOLED, "stride_kv": (2, 2, 2), **REL_POS},
    "spatial rel pos": {**POOLED, "rel_pos_spatial": True},
    "temporal rel pos": {**POOLED, "rel_pos_temporal": True},
    "rel pos without pooling": {**REL_POS, "residual_pooling": True},
    "average": {
        **POOLED,
        "mode": "avg",
        "stride_kv": (1, 2, 2),
        "kernel_q": (1, 3, 3),
        "kernel_kv": (1, 3, 3),
        **REL_POS,
    },
    "average with untouched tokens": {"mode": "avg", "kernel_kv": (1, 3, 3), "stride_kv": (1, 8, 8)},
    "maximum": {**POOLED, "mode": "max", "residual_pooling": True},
    "separate projections": {**POOLED, "separate_qkv": True, "qkv_bias": True},
    "pool first": {**POOLED, "pool_first": True, **REL_POS, "residual_pooling": True},
    "pool first unshared": {**POOLED, "pool_first": True, "mode": "conv_unshared", "qkv_bias": True},
    "pool first maximum": {**POOLED, "pool_first": True, "mode": "max"},
    "pool first without pooling": {"pool_first": True},
    "norm without parameters": {**POOLED, "norm_layer": partial(nn.LayerNorm, elementwise_affine=False)},
    "norm without bias": {**POOLED, "norm_layer": partial(nn.LayerNorm, bias=False, eps=1e-3)},
}


def layer_and_input(cls: bool, thw: tuple[int, ...] = GRID, **options: Any) -> tuple[MultiHeadPoolingAttention, Tensor]:
    layer = MultiHeadPoolingAttention(12, 24, GRID, num_heads=3, has_cls_embed=cls, **options)
    spelled_out.randomize(layer.double())
    x = torch.randn(2, cls + prod(thw), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return layer, x.requires_grad_()


@pytest.mark.parametrize("cls", [True, False], ids=["cls", "no cls"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_gradients_match_slowfast(variant: str, cls: bool) -> None:
    layer, x = layer_and_input(cls, **VARIANTS[variant])
    out, grid = layer(x, list(GRID))
    expected, expected_grid = spelled_out.attention(layer, x, GRID)
    assert grid == list(expected_grid)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)

    weights = torch.randn_like(out)
    inputs = [x, *layer.parameters()]
    gradients, expected_gradients = (torch.autograd.grad((y * weights).sum(), inputs) for y in (out, expected))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        scale = expected_gradient.abs().max().clamp_min(1.0)
        torch.testing.assert_close(gradient / scale, expected_gradient / scale, rtol=0, atol=1e-10)


@pytest.mark.parametrize("thw", [(4, 8, 8), (1, 12, 4), (2, 7, 5)])
def test_another_grid_resizes_the_tables(thw: tuple[int, ...]) -> None:
    layer, x = layer_and_input(True, thw, kernel_q=(3, 3, 3), kernel_kv=(3, 3, 3), **REL_POS)
    expected, _ = spelled_out.attention(layer, x, thw)
    torch.testing.assert_close(layer(x, thw)[0], expected, rtol=0, atol=1e-10)


def test_tables_are_sized_for_the_longer_side_by_floor_division() -> None:
    layer = MultiHeadPoolingAttention(
        8,
        8,
        (5, 39, 21),
        1,
        kernel_q=(3, 3, 3),
        stride_q=(1, 2, 2),
        kernel_kv=(3, 3, 3),
        stride_kv=(1, 4, 4),
        **REL_POS,
    )
    assert layer.rel_pos_h.shape == layer.rel_pos_w.shape == (2 * 19 - 1, 8)
    assert layer.rel_pos_t.shape == (2 * 5 - 1, 8)


def test_each_index_formula_is_reachable() -> None:
    options = {"kernel_kv": (1, 3, 3), "stride_kv": (1, 8, 8), "rel_pos_spatial": True}
    # 78 queries and 10 keys: the libraries' rounding picks different rows.
    for name, formula in (("slowfast", slowfast_index), ("torchvision", torchvision_index)):
        layer = MultiHeadPoolingAttention(4, 4, (1, 78, 78), 1, rel_pos_index=name, **options)
        rel_pos = layer.describe().rel_pos
        assert rel_pos is not None and rel_pos.index is formula


def test_zero_init_starts_the_tables_at_zero() -> None:
    for zero in (True, False):
        layer = MultiHeadPoolingAttention(4, 4, (2, 4, 4), 1, rel_pos_zero_init=zero, **REL_POS)
        assert all(bool(t.any()) is not zero for t in (layer.rel_pos_h, layer.rel_pos_w, layer.rel_pos_t))


def test_without_pooling_the_grid_is_not_looked_at() -> None:
    # SlowFast's masked autoencoder passes the grid before masking.
    layer, _ = layer_and_input(False)
    x = torch.randn(2, 80, 12, dtype=torch.float64)
    for thw in ([4, 14, 14], None):
        out, grid = layer(x, thw)
        assert out.shape == (2, 80, 24)
        assert grid == thw


def test_grid_may_hold_tensors() -> None:
    layer, x = layer_and_input(True, **POOLED)
    out, grid = layer(x, [torch.tensor(GRID[0]), *GRID[1:]])
    assert grid == [2, 3, 4]
    assert torch.equal(out, layer(x, torch.Size(GRID))[0])


def test_state_dict_names_are_slowfasts() -> None:
    fused, _ = layer_and_input(True, **POOLED, **REL_POS, qkv_bias=True)
    names = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "rel_pos_h", "rel_pos_w", "rel_pos_t"}
    for branch in "qkv":
        names |= {f"pool_{branch}.weight", f"norm_{branch}.weight", f"norm_{branch}.bias"}
    assert set(fused.state_dict()) == names
    separate, _ = layer_and_input(True, separate_qkv=True)
    assert set(separate.state_dict()) == {"q.weight", "k.weight", "v.weight", "proj.weight", "proj.bias"}
    average, _ = layer_and_input(True, **POOLED, mode="avg")
    assert set(average.state_dict()) == {"qkv.weight", "proj.weight", "proj.bias"}


def test_a_replaced_parameter_is_seen_by_the_next_forward() -> None:
    layer, x = layer_and_input(True, **POOLED)
    before, _ = layer(x, GRID)
    assert layer.norm_k is not None
    layer.norm_k = nn.LayerNorm(8, eps=0.5).double()
    layer.qkv = nn.Linear(12, 72).double()
    out, _ = layer(x, GRID)
    assert not torch.allclose(out, before)
    torch.testing.assert_close(out, spelled_out.attention(layer, x, GRID)[0], rtol=0, atol=1e-10)


def test_gradients_where_only_some_branches_have_a_parameter() -> None:
    layer, x = layer_and_input(True, **POOLED)
    layer.norm_k = nn.LayerNorm(8, bias=False).double()
    layer.norm_v = nn.LayerNorm(8, elementwise_affine=False).double()
    inputs = [x, *layer.parameters()]
    gradients, expected = (
        torch.autograd.grad(y.square().sum(), inputs)
        for y in (layer(x, GRID)[0], spelled_out.attention(layer, x, GRID)[0])
    )
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-8)


def test_dropout_acts_on_the_output_in_training_only() -> None:
    layer, x = layer_and_input(True, drop_rate=0.5)
    assert (layer(x, GRID)[0] == 0).float().mean() > 0.3
    layer.eval()
    assert not (layer(x, GRID)[0] == 0).any()


GOOD: dict[str, Any] = {"dim": 12, "dim_out": 24, "input_size": GRID, "num_heads": 3}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim is 0, a positive int"),
        ({"dim_out": 25}, ValueError, "dim_out is 25, a multiple of num_heads 3"),
        ({"dim": 13, "pool_first": True}, ValueError, "dim is 13, a multiple of num_heads 3"),
        ({"num_heads": 0}, ValueError, "num_heads is 0, a positive int"),
        ({"num_heads": 1.5}, TypeError, "num_heads is 1.5, a positive int"),
        ({"drop_rate": -0.1}, ValueError, "drop_rate is -0.1, a probability"),
        ({"drop_rate": float("nan")}, ValueError, "drop_rate is nan, a probability"),
        ({"kernel_q": (3, 0, 3)}, ValueError, r"kernel_q is \(3, 0, 3\), three positive ints"),
        ({"kernel_kv": (3, 3)}, ValueError, r"kernel_kv is \(3, 3\), three positive ints"),
        ({"kernel_kv": None}, TypeError, "kernel_kv is None, three positive ints"),
        ({"kernel_q": (3, 3, 3), "stride_q": (1, -2, 2)}, ValueError, r"stride_q is \(1, -2, 2\), three positive ints"),
        ({"kernel_q": (3, 3, 3), "stride_q": ()}, ValueError, r"stride_q is \(\), three positive ints"),
        ({"kernel_q": (), "stride_q": (1, 2, 2)}, ValueError, r"kernel_q is \(\), three positive ints"),
        (
            {"kernel_kv": (1, 1, 1), "stride_kv": (1, 0, 1)},
            ValueError,
            r"stride_kv is \(1, 0, 1\), three positive ints",
        ),
        ({"mode": "median"}, ValueError, "mode is 'median', one of 'conv', 'conv_unshared', 'avg', 'max'"),
        ({"mode": "conv_unshared"}, ValueError, "'conv_unshared' but pool_first is False"),
        ({**POOLED, "norm_layer": nn.BatchNorm1d}, TypeError, "norm_layer makes a BatchNorm1d, a LayerNorm"),
        ({**POOLED, "norm_layer": nn.RMSNorm}, TypeError, "norm_layer makes a RMSNorm, a LayerNorm"),
        ({**POOLED, "norm_layer": partial(nn.LayerNorm, eps=float("inf"))}, ValueError, "norm_layer has eps inf"),
        ({**POOLED, "norm_layer": partial(nn.LayerNorm, eps=float("nan"))}, ValueError, "norm_layer has eps nan"),
        ({**POOLED, "norm_layer": lambda _: nn.LayerNorm(5)}, ValueError, r"norm_layer normalises \(5,\), \(8,\)"),
        ({"rel_pos_index": "timm"}, ValueError, "rel_pos_index is 'timm', one of 'slowfast', 'torchvision'"),
        ({"residual": "none"}, ValueError, "residual is 'none', one of 'no_cls', 'all'"),
        ({**REL_POS, "input_size": (8, 14)}, ValueError, r"input_size is \(8, 14\), three positive ints"),
        ({**REL_POS, "input_size": 14}, TypeError, "input_size is 14, three positive ints"),
    ],
)
def test_a_bad_argument_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    MultiHeadPoolingAttention(**GOOD)
    with pytest.raises(error, match=f"^MultiHeadPoolingAttention: .*{message}"):
        MultiHeadPoolingAttention(**{**GOOD, **change})
