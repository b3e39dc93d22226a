"""mhpa.forward against the layer as the reference spells it out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from mvit_kernels import mhpa, reference
from mvit_kernels.description import MHPA, Fused, PoolNorm, RelPos, Separate
from mvit_kernels.problem import Grid, Pool
from mvit_kernels.rel_pos_tables import gather_table, slowfast_index, torchvision_index

DIM, HEADS, HEAD_DIM = 24, 3, 12
WIDTH = HEADS * HEAD_DIM


def make_pool(kernel: Grid, stride: Grid, mode: str = "conv", channels: int = HEAD_DIM) -> PoolNorm:
    pool = Pool(mode, kernel, stride, tuple(k // 2 for k in kernel))
    if mode != "conv":
        return PoolNorm(pool)
    return PoolNorm(pool, torch.randn(channels, 1, *kernel), torch.randn(channels), torch.randn(channels), 1e-6)


def make_layer(q: PoolNorm | None, kv: PoolNorm | None, **changes) -> MHPA:
    v = None if kv is None else dataclasses.replace(kv, weight=None if kv.weight is None else kv.weight.flip(0))
    options = {
        "heads": HEADS,
        "scale": HEAD_DIM**-0.5,
        "has_cls": True,
        "qkv": Fused(nn.Linear(DIM, 3 * WIDTH)),
        "out": nn.Linear(WIDTH, WIDTH),
        "pool_q": q,
        "pool_k": kv,
        "pool_v": v,
    }
    return MHPA(**{**options, **changes})


def rel_pos(grid: Grid, **changes) -> RelPos:
    tables = {axis: torch.randn(2 * n - 1, HEAD_DIM) for axis, n in zip("thw", grid, strict=True)}
    return RelPos(**{**tables, "index": slowfast_index, **changes})


K3 = (3, 3, 3)
THW = (3, 9, 11)


def separate() -> Separate:
    return Separate(nn.Linear(DIM, WIDTH, bias=False), nn.Linear(DIM, WIDTH), nn.Linear(DIM, WIDTH))


LAYERS = {
    "touched k/v, q not pooled": lambda: make_layer(None, make_pool(K3, (1, 8, 8))),
    "touched k/v, separate": lambda: make_layer(make_pool(K3, (1, 2, 2)), make_pool(K3, (1, 4, 4)), qkv=separate()),
    "touched over time": lambda: make_layer(make_pool(K3, (1, 2, 2)), make_pool((1, 1, 1), (2, 3, 2))),
    "all touched": lambda: make_layer(make_pool(K3, (1, 2, 2)), make_pool(K3, (1, 2, 2))),
    "no bias": lambda: make_layer(None, make_pool(K3, (1, 8, 8)), qkv=Fused(nn.Linear(DIM, 3 * WIDTH, bias=False))),
    "no cls": lambda: make_layer(make_pool(K3, (1, 1, 1)), make_pool(K3, (1, 4, 4)), has_cls=False, residual="all"),
    "rel pos": lambda: make_layer(
        make_pool(K3, (1, 2, 2)), make_pool(K3, (1, 4, 4)), rel_pos=rel_pos(THW), residual="no_cls"
    ),
    "rel pos, other size and formula": lambda: make_layer(
        make_pool(K3, (1, 1, 1)), make_pool(K3, (1, 4, 4)), rel_pos=rel_pos((2, 5, 4), index=torchvision_index)
    ),
    "rel pos in space only": lambda: make_layer(None, None, rel_pos=rel_pos(THW, t=None)),
    "max": lambda: make_layer(make_pool(K3, (1, 2, 2), "max"), make_pool(K3, (1, 4, 4), "max")),
    "avg": lambda: make_layer(make_pool(K3, (1, 2, 2), "avg"), make_pool(K3, (1, 4, 4), "avg")),
    "q pooled alone": lambda: make_layer(make_pool(K3, (1, 2, 2)), None),
    "k and v pooled apart": lambda: make_layer(None, make_pool(K3, (1, 4, 4)), pool_v=make_pool((1, 5, 5), (1, 4, 4))),
    "not pooled": lambda: make_layer(None, None),
    "pool first": lambda: make_layer(
        make_pool(K3, (1, 2, 2), channels=DIM // HEADS),
        make_pool(K3, (1, 4, 4), channels=DIM // HEADS),
        pool_first=True,
        pool_heads=HEADS,
        qkv=separate(),
    ),
    "pool first, per channel, fused": lambda: make_layer(
        make_pool(K3, (1, 2, 2), channels=DIM),
        make_pool(K3, (1, 4, 4), channels=DIM),
        pool_first=True,
        rel_pos=rel_pos(THW),
    ),
}


@pytest.fixture(autouse=True)
def float64() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tokens(layer: MHPA, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, int(layer.has_cls) + THW[0] * THW[1] * THW[2], DIM)


@pytest.mark.parametrize("name", LAYERS)
def test_forward_equals_the_reference_layer(name: str, backend) -> None:
    layer = LAYERS[name]()
    x = tokens(layer)
    out, grid = mhpa.forward(layer, x, THW)
    expected, expected_grid = reference.multi_head_pooling_attention(layer, x, THW)
    assert tuple(grid) == tuple(expected_grid)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)


def test_touched_tokens_are_gathered_only_where_they_save_work() -> None:
    assert LAYERS["touched k/v, separate"]().uses_touched_tokens
    assert not LAYERS["all touched"]().uses_touched_tokens
    assert not LAYERS["k and v pooled apart"]().uses_touched_tokens


def test_grid_may_be_a_list_a_size_or_hold_tensors(backend) -> None:
    layer = LAYERS["rel pos"]()
    x = tokens(layer)
    expected, _ = mhpa.forward(layer, x, THW)
    for thw in (list(THW), torch.Size(THW), [torch.tensor(3), 9, 11]):
        out, grid = mhpa.forward(layer, x, thw)
        assert torch.equal(out, expected) and all(isinstance(n, int) for n in grid)


def test_grid_is_not_looked_at_without_pooling(backend) -> None:
    layer = LAYERS["not pooled"]()
    out, grid = mhpa.forward(layer, torch.randn(1, 17, DIM), (4, 14, 14))
    assert out.shape == (1, 17, WIDTH) and grid == (4, 14, 14)


@pytest.mark.parametrize("batch", [0, 3])
def test_any_batch(batch: int, backend) -> None:
    layer = LAYERS["rel pos"]()
    out, _ = mhpa.forward(layer, tokens(layer, batch), THW)
    expected, _ = reference.multi_head_pooling_attention(layer, tokens(layer, batch), THW)
    assert out.shape == expected.shape


@pytest.mark.parametrize(
    ("x", "thw", "text"),
    [
        (torch.zeros(298, DIM), THW, "mhpa: x has shape (298, 24)"),
        (torch.zeros(1, 297, DIM), THW, "mhpa: thw (3, 9, 11) has 297 tokens (+1 cls), but x has 297 tokens in dim 1"),
        (torch.zeros(1, 298, DIM), (3, 9), "mhpa: thw is (3, 9)"),
        (torch.zeros(1, 298, DIM), None, "mhpa: thw is None"),
    ],
)
def test_bad_input_is_named(x, thw, text: str) -> None:
    with pytest.raises(ValueError, match=r"^mhpa: ") as caught:
        mhpa.forward(LAYERS["rel pos"](), x, thw)
    assert text in str(caught.value)


def test_index_formulas_keep_their_libraries_rounding() -> None:
    """(78, 10) is a pair of MViTv2-L at 312 px: the two float32 formulas disagree in 103 of 780 entries."""
    torch.set_default_dtype(torch.float32)
    a, b = (formula(78, 10, torch.device("cpu")) for formula in (slowfast_index, torchvision_index))
    assert int((a != b).sum()) == 103
    for pair in ((56, 7), (14, 14), (7, 28)):
        assert torch.equal(*(formula(*pair, torch.device("cpu")) for formula in (slowfast_index, torchvision_index)))


def test_a_table_of_another_length_is_interpolated() -> None:
    table = torch.arange(5.0)[:, None].expand(5, 3)
    gathered = gather_table(table, 2, 2, slowfast_index)
    resized = nn.functional.interpolate(table.T[None], size=3, mode="linear")[0].T
    assert torch.equal(gathered, resized[torch.tensor([[1, 0], [2, 1]])])
