"""Choosing launches: the arithmetic of blocks, the tables, and tuning with a fake timer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvit_kernels.triton_kernels import blocks, launch, launch_table, tuned, tuning
from mvit_kernels.triton_kernels.launch import Launch

ROW = ("sm90", "forward", "half", 96, 393, 64, 64, 4, 3)


@pytest.mark.parametrize(
    ("dim", "parts"), [(96, (64, 32)), (72, (64, 16)), (64, (64, 0)), (48, (32, 16)), (80, (64, 16)), (128, (128, 0))]
)
def test_published_head_dims_are_not_padded_to_a_power_of_two(dim: int, parts: tuple[int, int]) -> None:
    assert blocks.split(dim) == parts


@given(n=st.integers(1, 1024))
def test_parts_hold_what_they_split(n: int) -> None:
    first, second = blocks.split(n)
    assert first + second >= n and first >= 16 and (second == 0 or 16 <= second < first)


@given(keys=st.integers(1, 10_000), block=st.sampled_from([16, 32, 64, 128]))
def test_tiles_cover_the_keys_and_pad_to_the_next_multiple_of_16(keys: int, block: int) -> None:
    padded = blocks.padded_keys(keys, block)
    assert keys <= padded < keys + 16 and padded % 16 == 0
    assert keys % block <= blocks.one_tail(keys, block) <= block
    tail = blocks.key_tail(keys, block)
    assert blocks.key_tiles(keys, block) == keys // block + sum(tail >> bit & 1 for bit in range(8))


@pytest.mark.parametrize(("keys", "padded"), [(49, 64), (197, 208), (393, 400), (785, 800), (1569, 1584), (2001, 2016)])
def test_published_key_counts(keys: int, padded: int) -> None:
    assert blocks.padded_keys(keys, 64) == padded


@pytest.mark.parametrize("arch", ["sm80", "sm90", "sm100", "sm120", "gfx9"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("keys", [49, 196, 197, 393, 785, 1569, 2001, 3137, 8001])
def test_every_kernel_pads_published_key_counts_to_the_next_multiple_of_16(arch, dtype, keys: int, table: Path) -> None:
    needed = -(-keys // 16) * 16
    for head_dim in (64, 72, 96):
        block = {k: launch.matrix_kernel(k, arch, dtype, head_dim, keys).block_n for k in tuning.KERNELS}
        assert blocks.padded_keys(keys, block["forward"]) == needed
        assert blocks.padded_keys(keys, block["grad_kv"]) == needed
        assert keys // block["grad_q"] * block["grad_q"] + blocks.one_tail(keys, block["grad_q"]) == needed


@given(n=st.integers(0, 2**31 - 1), d=st.integers(1, 2**31 - 1))
def test_division_by_a_product_is_exact(n: int, d: int) -> None:
    magic, shift = blocks.divisor(d)
    assert -(2**31) <= magic < 2**31 and 0 <= shift < 32
    assert 2 * n * (magic + 2**32) >> (32 + shift) == n // d


def test_padding_of_tensor_core_work_at_393_keys_and_head_dim_96_is_at_most_a_tenth() -> None:
    choice = launch.matrix_kernel("forward", "sm90", torch.float16, 96, 393)
    grid = (8, 7, 7)
    useful = 393 * (2 * 96 + sum(grid))
    done = blocks.padded_keys(393, choice.block_n) * (2 * sum(blocks.split(96)) + sum(blocks.split(sum(grid))))
    assert 1 - useful / done <= 0.10


@pytest.mark.parametrize("arch", ["sm80", "sm86", "sm90", "sm100", "sm120", "gfx9", "any"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_architecture_has_a_launch_for_every_head_dim(arch: str, dtype: torch.dtype, table: Path) -> None:
    for kernel in tuning.KERNELS:
        for dim in (1, 48, 64, 72, 80, 96, 128):
            assert launch.matrix_kernel(kernel, arch, dtype, dim, 393).warps in (4, 8)


def test_the_launch_table_is_valid_data() -> None:
    data = {"version": launch_table.VERSION, "rows": [list(row) for row in launch_table.ROWS]}
    assert tuned.parse(json.loads(json.dumps(data))) == launch_table.ROWS


def fake_timer(fastest: Launch, broken: int | None = None):
    def seconds(key: tuning.Key, choice: Launch) -> float:
        if choice.stages == broken:
            raise RuntimeError("out of resource: shared memory\nsecond line")
        return 1e-6 if choice == fastest else 1e-5

    return seconds


def test_the_fastest_candidate_wins_and_those_that_fail_are_named() -> None:
    key = tuning.Key("sm90", "forward", "half", 96, 393)
    fastest = Launch(64, 64, 4, 2)
    result = tuning.tune(key, fake_timer(fastest, broken=3))
    assert result is not None and result.launch == fastest and result.seconds == 1e-6
    assert result.failed and all("out of resource: shared memory" in text for text in result.failed)
    assert tuning.tune(key, lambda key, choice: fake_timer(fastest, choice.stages)(key, choice)) is None


def test_a_written_table_is_used_and_others_can_not_read_it(table: Path) -> None:
    assert launch.matrix_kernel("forward", "sm90", torch.float16, 96, 393).stages != 3
    assert tuned.write([ROW]) == table
    assert launch.matrix_kernel("forward", "sm90", torch.float16, 96, 393) == Launch(64, 64, 4, 3)
    assert launch.matrix_kernel("forward", "sm80", torch.float16, 96, 393).stages != 3
    assert launch.matrix_kernel("forward", "sm90", torch.float16, 96, 785).stages != 3
    assert table.stat().st_mode & 0o077 == 0 and table.parent.stat().st_mode & 0o077 == 0
    assert os.listdir(table.parent) == [table.name]


def test_tuning_again_replaces_the_row_and_keeps_the_others(table: Path) -> None:
    other = ("sm80", *ROW[1:])
    tuned.write([ROW, other])
    again = (*ROW[:5], 32, 32, 4, 2)
    tuned.write([again])
    assert tuned.rows() == (again, other)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "Expecting value"),
        ("[]", "an object with"),
        ('{"version": 0, "rows": []}', "version 0"),
        ('{"version": 1, "rows": [["sm90"]]}', "row"),
        (json.dumps({"version": 1, "rows": [[*ROW[:5], 48, 64, 4, 3]]}), "blocks of 16 to 128"),
        (json.dumps({"version": 1, "rows": [[*ROW[:5], 64, True, 4, 3]]}), "are right"),
    ],
)
def test_a_broken_table_is_ignored_with_a_warning(content: str, why: str, table: Path) -> None:
    expected = launch.matrix_kernel("forward", "sm90", torch.float16, 96, 393)
    table.parent.mkdir()
    table.write_text(content)
    table.chmod(0o600)
    tuned.rows.cache_clear()
    with pytest.warns(UserWarning, match=f"is ignored: .*{why}"):
        assert launch.matrix_kernel("forward", "sm90", torch.float16, 96, 393) == expected


def test_a_table_that_others_can_write_is_ignored_with_a_warning(table: Path) -> None:
    tuned.write([ROW])
    table.chmod(0o666)
    tuned.rows.cache_clear()
    with pytest.warns(UserWarning, match="others than its user can write it"):
        assert tuned.rows() == ()
