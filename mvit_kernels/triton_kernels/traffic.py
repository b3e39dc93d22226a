"""A model of the bytes that one layer moves between memory and the GPU's caches: formulas on shapes, nothing measured.

Counted is what comes from or goes to device memory when every tensor is larger than the L2 cache: each tensor that an
op reads or writes, once per op that does. Within one kernel a second read of the same bytes (the halo of a pooling
tile, the k and v of the next query tile) is taken to hit L1 or L2 and is not counted; see :func:`pool_loads` and
:func:`pool_fetches`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..models.shapes import LayerShape
from ..problem import Pool, tokens, touched_grid
from .blocks import MIN_DOT, ceil_div


@dataclass(frozen=True)
class Bytes:
    """Of one sample: the least a fused kernel can move, what this one does, and what the alternatives do."""

    must: int
    does: int
    eager: int
    sdpa: int
    flex: int


def pooling(layer: LayerShape, element: int) -> Bytes:
    """q, k and v from the fused projection to the pooled, normalised tokens.

    must    touched tokens read once + outputs written once
    does    as must, + the (taps, channels) float32 copy of each weight, written and read
    eager   contiguous copy (2), conv3d or pool (1 + out), cat with cls (2 out), LayerNorm (2 out)
    """
    width = layer.heads * layer.head_dim * element
    must = does = eager = 0
    for pool in (layer.pool_q, layer.pool_kv, layer.pool_kv):
        if pool is None:
            continue
        out = (layer.has_cls + tokens(pool.out_grid(layer.grid))) * width
        read = (layer.has_cls + tokens(touched_grid(pool, layer.grid).thw)) * width
        taps = pool.kernel[0] * pool.kernel[1] * pool.kernel[2]
        must += read + out
        does += read + out + (3 * 4 * taps * layer.head_dim if pool.mode == "conv" else 0)
        eager += 3 * layer.num_tokens * width + out + 2 * out + 2 * out
    return Bytes(must, does, eager, eager, eager)


def attention(layer: LayerShape, element: int) -> Bytes:
    """Relative position, scores, softmax, product with v, residual, merged heads; forward.

    must    q, k, v read, out and the log-sum-exp written; rel-pos rows not counted, as they could be made on the fly
    does    + the rows written and read, + q read again by decomposed_rel_pos
    eager   scores written and read by: scale and product, one addition per rel-pos axis, softmax, product with v;
            q scaled, out, residual, transposed copy
    sdpa    with a mask: the bias written once per axis and read by the kernel; q, k, v, out, residual, copy
    flex    FlexAttention with score_mod: as sdpa, but the rows in the place of the bias
    """
    heads, dim = layer.heads, layer.head_dim
    q, kv = layer.num_q * heads * dim * element, 2 * layer.num_kv * heads * dim * element
    lse = layer.num_q * heads * 4
    axes = sum(rows > 0 for rows in layer.table_rows)
    rows = layer.num_q * heads * sum(layer.grid_kv) * 4 if axes else 0
    scores = layer.scores * element
    residual = 3 * q if layer.residual != "none" else 0
    merge = 2 * q
    must = 2 * q + kv + lse
    does = must + (2 * rows + q if axes else 0)
    eager = 3 * q + kv // 2 + scores * (1 + 2 * axes + 2 + 1) + kv // 2 + q + residual + merge + 2 * q * axes
    bias = scores * (1 + 2 * max(axes - 1, 0) + 1) if axes else 0
    sdpa = 2 * q + kv + lse + bias + residual + merge + q * axes
    flex = 2 * q + kv + lse + residual + merge + (2 * rows + q * axes if axes else 0)
    return Bytes(must, does, eager, sdpa, flex)


def pool_loads(pool: Pool, layer: LayerShape) -> float:
    """Times the pooling kernel loads a touched token, all but the first from L1 or L2: taps * outputs / touched."""
    taps = pool.kernel[0] * pool.kernel[1] * pool.kernel[2]
    return taps * tokens(pool.out_grid(layer.grid)) / tokens(touched_grid(pool, layer.grid).thw)


def pool_fetches(layer: LayerShape, pool: Pool, rows: int, capacity: int) -> int:
    """Tokens of one head that the pooling kernel fetches from memory, each as often as the cache had dropped it.

    Walks the kernel's tiles of `rows` outputs in the order of its programs, past a cache of `capacity` tokens that
    drops the one not used for longest; outputs go through it too. Without the cls token.
    """
    num_t, num_h, num_w = layer.grid
    _, out_h, out_w = pool.out_grid(layer.grid)
    outputs = tokens(pool.out_grid(layer.grid))
    cache: OrderedDict[int, None] = OrderedDict()
    fetched = 0
    for start in range(0, outputs, rows):
        tile = range(start, min(start + rows, outputs))
        read = {
            (t * num_h + h) * num_w + w
            for o in tile
            for t in _window(o // (out_h * out_w), pool, 0, num_t)
            for h in _window(o // out_w % out_h, pool, 1, num_h)
            for w in _window(o % out_w, pool, 2, num_w)
        }
        for key in (*sorted(read), *(-1 - o for o in tile)):
            if key in cache:
                cache.move_to_end(key)
                continue
            fetched += key >= 0
            cache[key] = None
            if len(cache) > capacity:
                cache.popitem(last=False)
    return fetched


def _window(o: int, pool: Pool, axis: int, extent: int) -> range:
    first = o * pool.stride[axis] - pool.padding[axis]
    return range(max(first, 0), min(first + pool.kernel[axis], extent))


@dataclass(frozen=True)
class Fusion:
    """Making the rel-pos rows in the attention kernel instead of by a launch of their own; per query, forward."""

    flop: int
    """Added: one product per coordinate that a query tile meets, with its table padded to 16 rows."""
    saved: int
    """Bytes not moved: the row written and read, q read again."""
    attention: int
    """FLOP of the query's attention, for comparison."""


def fused_rel_pos(layer: LayerShape, element: int, block_m: int) -> Fusion:
    """What :class:`Fusion` says, for query tiles of `block_m`.

    Queries of one tile need tables of different rows. A tensor core multiplies a whole tile with one table, so each
    coordinate that occurs in the tile costs a product of which only the queries at that coordinate keep their part.
    """
    num_t, num_h, num_w = layer.grid_q
    queries = num_t * num_h * num_w
    products = 0
    for start in range(0, queries, block_m):
        tile = range(start, min(start + block_m, queries))
        met = (
            {i // (num_h * num_w) for i in tile},
            {i // num_w % num_h for i in tile},
            {i % num_w for i in tile},
        )
        products += sum(
            len(coordinates) * ceil_div(keys, MIN_DOT) * MIN_DOT
            for coordinates, keys, rows in zip(met, layer.grid_kv, layer.table_rows, strict=True)
            if rows
        )
    entries, dim = sum(layer.grid_kv), layer.head_dim
    return Fusion(
        flop=2 * dim * products * block_m // queries - 2 * dim * entries,
        saved=2 * 4 * entries + dim * element,
        attention=2 * layer.num_kv * (2 * dim + entries),
    )


HEADER = ("block", "N", "Nq", "Nk", "op", "must", "does", "eager", "SDPA + mask", "FlexAttention")


def table(layers: Iterable[LayerShape], element: int = 2) -> Iterator[tuple[str, ...]]:
    """Rows under HEADER, megabytes of one sample."""
    for layer in layers:
        sizes = (layer.block, layer.num_tokens, layer.num_q, layer.num_kv)
        for op, count in (("pool", pooling), ("attention", attention)):
            found = count(layer, element)
            moved = (found.must, found.does, found.eager, found.sdpa, found.flex)
            if found.must:
                yield (*map(str, sizes), op, *(f"{n / 1e6:.2f}" for n in moved))
