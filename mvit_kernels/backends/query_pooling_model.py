"""When pooling q inside the CUDA attention kernel is taken to pay: a model of bytes and blocks, not a measurement."""

from __future__ import annotations

from ..problem import PooledQueryProblem

STRIP = 4
"""Outputs along w that a thread of the kernel makes together (csrc/common/pool_tiles.h)."""

CACHE = 4
"""Bytes that a cache serves in the time of one through memory, about."""


def queries_of_block(head_dim: int) -> int:
    """Queries that one block of the kernel makes and attends from (csrc/common/attention_tiles.h)."""
    return 128 if head_dim <= 96 else 64


def bytes_saved(problem: PooledQueryProblem) -> int:
    """Of one query: what the ops one after the other write to memory and read again.

    Pooled q is written by the pooling and read by the attention and, with relative position, by that too; a row of
    relative position is written and read as float32.
    """
    attention = problem.attention
    passes = 3 if attention.rel_pos else 2
    return passes * attention.head_dim * problem.dtype.itemsize + 2 * 4 * attention.rel_pos_entries


def bytes_read_again(problem: PooledQueryProblem) -> int:
    """Of one query: what the kernel's strips read more than once, which the pooling's own tiles read about once."""
    pool = problem.pool.pool
    (kt, kh, kw), (_, _, sw) = pool.kernel, pool.stride
    under_strip = kt * kh * min(STRIP * kw, (STRIP - 1) * sw + kw) / STRIP
    needed = 1
    for k, s in zip(pool.kernel, pool.stride, strict=True):
        needed *= min(k, s)
    return int((under_strip - needed) * problem.head_dim * problem.dtype.itemsize)


def reason_to_pool_before(problem: PooledQueryProblem, multiprocessors: int) -> str | None:
    """Why q is better pooled by an op of its own; None where the attention kernel should do it.

    Two things speak against it. A block pools before it attends and takes all keys, so with fewer than two blocks for
    each multiprocessor nothing hides the one behind the other, and keys can't be split among blocks, as the separate op
    splits them there. And its strips read tokens again that tiles read once: from a cache, taken as a quarter of a byte
    through memory. What is saved must be more. Instructions are not in the model: the kernel's pooling has more of them
    than the separate one, and the tensor cores of the other block run meanwhile.
    """
    attention = problem.attention
    blocks = attention.batch * attention.heads * -(-attention.num_q // queries_of_block(attention.head_dim))
    if blocks < 2 * multiprocessors:
        # Not how many there are: a text that names a symbolic batch would make torch.compile compile for each.
        return f"fewer than two blocks of queries for each of {multiprocessors} multiprocessors (model)"
    saved, again = bytes_saved(problem), bytes_read_again(problem)
    if saved * CACHE <= again:
        return f"it saves {saved} bytes a query and reads {again} again from a cache, 1 to {CACHE} (model)"
    return None
