"""Arithmetic that launchers, launch tables and the traffic model share. Pure Python: no triton, no torch, no driver."""

from __future__ import annotations

MIN_DOT = 16
"""The least extent of a matrix product on a tensor core."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


def divisor(d: int) -> tuple[int, int]:
    """(magic, shift), so that n // d == 2 * n * (magic + 2^32) >> (32 + shift) for every n from 0 to 2^31 - 1.

    `primitives.divide` has the multiplication. The magic number is given as the int32 with its bits.
    """
    shift = (d - 1).bit_length()
    return ceil_div(1 << (31 + shift), d) - (1 << 32), shift


def split(n: int) -> tuple[int, int]:
    """Two powers of two, the second may be 0, that together hold `n` with little padding.

    Triton's tensors have power-of-two extents; 96 runs as 64 + 32, 72 and 80 as 64 + 16, 48 as 32 + 16, not as 128 and
    64.
    """
    whole = power_of_two(max(n, MIN_DOT))
    half = whole // 2
    if whole == n or half < MIN_DOT:
        return whole, 0
    rest = power_of_two(max(n - half, MIN_DOT))
    return (whole, 0) if rest == half else (half, rest)


def channel_block(channels: int) -> int:
    """Channels of one program where channels are independent: the widest block that pads no more than an eighth."""
    for block in (128, 64, 32, 16):
        if ceil_div(channels, block) * block <= channels * 9 // 8:
            return block
    return power_of_two(min(channels, 16))


def key_tail(keys: int, block: int) -> int:
    """Keys behind the last whole tile, rounded up to a multiple of 16: the widths of the narrow tail tiles, as bits."""
    return min(ceil_div(keys % block, MIN_DOT) * MIN_DOT, block)


def key_tiles(keys: int, block: int) -> int:
    """Tiles of `keys`: the whole ones, and one for each width of `key_tail`."""
    return keys // block + key_tail(keys, block).bit_count()


def one_tail(keys: int, block: int) -> int:
    """Width of a single tail tile: a power of two of at least 16, 0 where no keys are left."""
    return power_of_two(max(keys % block, MIN_DOT)) if keys % block else 0


def padded_keys(keys: int, block: int) -> int:
    """Keys the forward's tiles compute: `keys` rounded up to the next multiple of 16."""
    return keys // block * block + key_tail(keys, block)


def stride_unit(*strides: int) -> int:
    """A power of two up to 8 that divides every stride: a factor the compiler is told, for 16-byte accesses.

    Triton itself looks for a factor of 16 alone, which the rows of head dim 72 do not have.
    """
    for unit in (8, 4, 2):
        if all(stride % unit == 0 for stride in strides):
            return unit
    return 1
