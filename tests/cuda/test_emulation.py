"""The emulation of csrc/cuda/primitives: each primitive against its definition, and planted bugs that it must catch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

SEEDS = [0, 1, 2, 3, 17]
"""Seeds 0, 1 and 2 differ in how long a warp runs before another does."""


def words(x: torch.Tensor) -> np.ndarray:
    """Neighbouring 16-bit numbers of the last dim, in one 32-bit word each."""
    return x.contiguous().view(torch.int16).numpy().view(np.uint32)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mma_multiplies_fragments_as_the_ptx_manual_lays_them_out(emulation, dtype, seed) -> None:
    a, b, d = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    a_words, b_words = words(a), words(b.T)
    a_lanes, b_lanes, d_lanes = [], [], []
    for lane in range(32):
        g, c = lane // 4, lane % 4
        a_lanes += [a_words[g, c], a_words[g + 8, c], a_words[g, c + 4], a_words[g + 8, c + 4]]
        b_lanes += [b_words[g, c], b_words[g, c + 4]]
        d_lanes += [d[g, 2 * c], d[g, 2 * c + 1], d[g + 8, 2 * c], d[g + 8, 2 * c + 1]]
    multiply = emulation.mma_f16 if dtype == torch.float16 else emulation.mma_bf16
    out = torch.tensor(
        multiply([int(w) for w in a_lanes], [int(w) for w in b_lanes], [float(x) for x in d_lanes], seed)
    )
    exact = d.double() + a.double() @ b.double()
    for lane in range(32):
        g, c = lane // 4, 2 * (lane % 4)
        expected = torch.stack([exact[g, c], exact[g, c + 1], exact[g + 8, c], exact[g + 8, c + 1]]).float()
        torch.testing.assert_close(out[4 * lane : 4 * lane + 4], expected, rtol=3e-7, atol=3e-7)


def test_tf32_mma_drops_the_lower_13_bits(emulation) -> None:
    a, b = torch.randn(16, 8), torch.randn(8, 8)
    a_bits, b_bits = a.numpy().view(np.uint32), b.numpy().view(np.uint32)
    a_lanes, b_lanes = [], []
    for lane in range(32):
        g, c = lane // 4, lane % 4
        a_lanes += [a_bits[g, c], a_bits[g + 8, c], a_bits[g, c + 4], a_bits[g + 8, c + 4]]
        b_lanes += [b_bits[c, g], b_bits[c + 4, g]]
    out = torch.tensor(emulation.mma_tf32([int(w) for w in a_lanes], [int(w) for w in b_lanes], [0.0] * 128, 1))
    kept = [torch.from_numpy((bits & 0xFFFFE000).view(np.float32)).double() for bits in (a_bits, b_bits)]
    exact = (kept[0] @ kept[1]).float()
    expected = [exact[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2].item() for lane in range(32) for i in range(4)]
    torch.testing.assert_close(out, torch.tensor(expected), rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_hands_each_lane_its_pairs(emulation, transposed, seed) -> None:
    numbers = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    rows = [int(w) for w in words(numbers.view(32, 8)).reshape(-1)]
    out = emulation.ldmatrix(rows, transposed, seed)
    for lane in range(32):
        g, c = lane // 4, 2 * (lane % 4)
        for i in range(4):
            matrix = numbers[i].T if transposed else numbers[i]
            assert out[4 * lane + i] == int(matrix[g, c]) | int(matrix[g, c + 1]) << 16


@pytest.mark.parametrize("mask", [1, 2, 16, 31])
def test_shuffle_exchanges_lanes_of_each_warp(emulation, mask) -> None:
    values = [float(i) for i in range(96)]
    assert emulation.shuffle_xor(values, mask, 5) == [float(i // 32 * 32 + (i % 32 ^ mask)) for i in range(96)]


def test_any_is_of_one_warp(emulation) -> None:
    values = [i == 40 for i in range(96)]
    assert emulation.any(values, 0) == [32 <= i < 64 for i in range(96)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_numbers_round_as_the_hardware_does(emulation, dtype) -> None:
    pack, unpack = (
        getattr(emulation, f"{name}_{'f16' if dtype == torch.float16 else 'bf16'}") for name in ("pack", "unpack")
    )
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (20000,), generator=generator).to(torch.int32)
    special = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, 65504, 65519.99, 65520, 2**-14, 2**-24, 2**-25, 3 * 2**-25]
    )
    halfway = 1 + (2 * torch.arange(64) + 1) * 2.0**-12
    for x in torch.cat((bits.view(torch.float32), special, halfway)).tolist():
        expected = torch.tensor(x).to(dtype)
        low, high = unpack(pack(x, 1.5))
        assert high == 1.5
        assert (
            torch.tensor(low).isnan()
            if expected.isnan()
            else (low, str(low)) == (expected.item(), str(expected.item()))
        )


def test_multiply_add_rounds_once(emulation) -> None:
    assert emulation.multiply_add(1 + 2**-12, 1 - 2**-12, -1.0) == -(2**-24)


@pytest.mark.parametrize("dim", [16, 48, 64, 80, 96, 112, 128])
def test_swizzled_tile_has_no_bank_conflicts_and_a_place_for_each_chunk(emulation, dim) -> None:
    assert emulation.tile_layout(dim) == (1, True)


def product(emulation, bug: str, seed: int) -> float:
    """Largest error of the tile product with a planted bug; 29 of 32 rows are valid."""
    x, y = (torch.randn(33, 96, generator=torch.Generator().manual_seed(s)).bfloat16() for s in (0, 1))
    out = torch.full((32, 32), torch.nan)
    emulation.product(x.data_ptr(), y.data_ptr(), out.data_ptr(), 29, emulation.Bug.__members__[bug], seed)
    exact = x[:32].double() * (torch.arange(32) < 29)[:, None] @ y[:32].double().T
    return float((out.double() - exact).abs().max())


@pytest.mark.parametrize("seed", range(12))
def test_tile_product_without_a_bug_is_right_in_every_order(emulation, seed) -> None:
    assert product(emulation, "none", seed) < 1e-4


@pytest.mark.parametrize("bug", ["wrong_swizzle", "tail"])
def test_wrong_address_gives_wrong_numbers(emulation, bug) -> None:
    assert not product(emulation, bug, 0) < 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("bug", "message"),
    [
        ("no_barrier", "nobody has written|no barrier between|under way"),
        ("no_wait", "under way"),
        ("no_warp_barrier", "race: .* no barrier between"),
        ("overwrite", "race: .* no barrier between"),
        ("lost_lane", "divergence: .* other lanes of the warp"),
        ("lost_thread", "divergence: waits for ever in sync_block .* thread 5 is at its end"),
        ("two_barriers", "divergence: sync_block .* another thread waits in sync_block"),
        ("misaligned", "cp.async of 16 bytes .* misaligned"),
        ("out_of_range", "cp.async of 16 bytes at .* shared memory of 12288 bytes"),
    ],
)
def test_planted_bug_is_an_error_in_every_order(emulation, bug, message, seed) -> None:
    with pytest.raises(emulation.Error, match=message):
        product(emulation, bug, seed)


def test_an_error_leaves_the_emulation_usable(emulation) -> None:
    with pytest.raises(emulation.Error):
        product(emulation, "lost_thread", 0)
    assert product(emulation, "none", 0) < 1e-4
