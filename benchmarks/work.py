"""How many multiply-adds and bytes a computation needs at least: a model, from the shapes.

Counted are the products of projections, poolings, relative position and attention; not exponentials, norms and the
like. k and v are counted for the tokens that their pooling reads. Bytes: every input read once, every output written
once; in the backward also the gradients. What an implementation does beyond it lowers its share of the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from subject import Work

from mvit_kernels import models
from mvit_kernels.models import LayerShape
from mvit_kernels.problem import Pool, tokens, touched_grid

Counted = Callable[[int], Work]
"""Bytes of an element -> the work."""


def total(parts: Iterable[Work]) -> Work:
    columns = zip(*((w.forward, w.backward, w.forward_bytes, w.backward_bytes) for w in parts), strict=True)
    return Work(*map(sum, columns))


def attention(scores: float, num_q: int, num_kv: int, heads: int, head_dim: int, columns: int, batch: int) -> Counted:
    """Two products a score forward, five backward (one is made again); `columns` of the relative-position rows."""
    read = heads * (num_q + 2 * num_kv) * head_dim
    out = heads * num_q * head_dim
    rows = 4 * heads * num_q * columns

    def counted(element: int) -> Work:
        forward_bytes = (read + out) * element + rows
        return Work(
            2.0 * batch * scores * head_dim,
            5.0 * batch * scores * head_dim,
            batch * forward_bytes,
            batch * ((2 * read + out) * element + 2 * rows),
        )

    return counted


def pooling(pools: Sequence[Pool], s: LayerShape, batch: int) -> Counted:
    """A multiply-add per tap, output and channel; twice as many backward. No products in average and maximum."""
    channels = s.heads * s.head_dim
    products = sum(tokens(p.kernel) * tokens(p.out_grid(s.grid)) * channels for p in pools if p.mode == "conv")
    read = sum((s.has_cls + tokens(touched_grid(p, s.grid).thw)) * channels for p in pools)
    written = sum((s.has_cls + tokens(p.out_grid(s.grid))) * channels for p in pools)

    def counted(element: int) -> Work:
        moved = batch * element * (read + written)
        return Work(batch * products, 2.0 * batch * products, moved, moved + batch * element * read)

    return counted


def rel_pos(s: LayerShape, batch: int) -> Counted:
    columns = sum(keys for keys, rows in zip(s.grid_kv, s.table_rows, strict=True) if rows)
    products = float(batch * s.num_q * s.att_dim * columns)
    q, rows = batch * s.num_q * s.att_dim, 4 * batch * s.heads * s.num_q * sum(s.grid_kv)
    return lambda element: Work(products, 2 * products, q * element + rows, 2 * q * element + rows)


def linear(rows: int, inside: int, outside: int, residual: bool) -> Counted:
    products = float(rows * inside * outside)
    read = rows * inside + inside * outside + residual * rows * outside

    def counted(element: int) -> Work:
        written = rows * outside
        return Work(products, 2 * products, (read + written) * element, (2 * read + written) * element)

    return counted


def elementwise(numbers: int) -> Counted:
    """Read once, written once."""
    return lambda element: Work(0.0, 0.0, 2 * numbers * element, 3 * numbers * element)


def layer(s: LayerShape, batch: int, element: int) -> Work:
    """Projections, poolings, relative position, attention, projection; bytes of x, output and weights alone."""
    pools = [pool for pool in (s.pool_q, s.pool_kv, s.pool_kv) if pool is not None]
    kv_tokens = s.num_tokens
    if s.pool_kv is not None and s.pool_kv.skips_tokens:
        kv_tokens = s.has_cls + tokens(touched_grid(s.pool_kv, s.grid).thw)
    parts = [
        linear(batch * (s.num_tokens + 2 * kv_tokens), s.dim, s.att_dim, False)(element),
        attention(s.scores, s.num_q, s.num_kv, s.heads, s.head_dim, 0, batch)(element),
        linear(batch * s.num_q, s.att_dim, s.att_dim, False)(element),
    ]
    if pools:
        parts.append(pooling(pools, s, batch)(element))
    if any(s.table_rows):
        parts.append(rel_pos(s, batch)(element))
    products = total(parts)
    weights = 3 * s.dim * s.att_dim + s.att_dim * s.att_dim
    inputs, outputs = batch * s.num_tokens * s.dim, batch * s.num_q * s.att_dim
    return _moving(products, inputs + weights, outputs, element)


def block(s: LayerShape, batch: int, element: int) -> Work:
    """The layer, the MLP, and the projection of a skip path where channels change."""
    rows = batch * s.num_q
    parts = [
        layer(s, batch, element),
        linear(rows, s.att_dim, 4 * s.att_dim, False)(element),
        linear(rows, 4 * s.att_dim, s.dim_out, False)(element),
    ]
    if s.dim != s.dim_out:
        parts.append(
            linear(batch * (s.num_tokens if s.att_dim != s.dim else s.num_q), s.dim, s.dim_out, False)(element)
        )
    weights = 4 * s.att_dim * (s.att_dim + s.dim_out) + 3 * s.dim * s.att_dim + s.att_dim**2
    return _moving(total(parts), batch * s.num_tokens * s.dim + weights, rows * s.dim_out, element)


def model(name: str, batch: int, element: int) -> Work:
    """Its blocks and its patch embedding; bytes of the blocks' inputs, outputs and weights."""
    config, shapes = models.model_config(name), models.layer_shapes(name)
    patches = batch * tokens(shapes[0].grid)
    inside = config.input_channels
    for size in config.patch_kernel:
        inside *= size
    return total([linear(patches, inside, shapes[0].dim, False)(element), *(block(s, batch, element) for s in shapes)])


def _moving(products: Work, read: int, written: int, element: int) -> Work:
    """The products, with the bytes of one fused computation in the place of those of its parts."""
    return Work(products.forward, products.backward, (read + written) * element, (2 * read + written) * element)
