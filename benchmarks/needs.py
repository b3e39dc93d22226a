"""How much memory a case takes, before any of it is allocated: an estimate, from the shapes."""

from __future__ import annotations

from cases import Case

from mvit_kernels import models
from mvit_kernels.models import LayerShape

EXACT = 8
"""Bytes of a number in the float64 check, which takes the most."""
SCORES = {False: 4, True: 7}
"""Matrices of the scores' size that eager holds at once, without and with gradients: scores, bias, softmax, theirs."""
TOKENS = {False: 12, True: 24}
"""Tensors of the size of a block's input."""


def needed_bytes(case: Case, batch: int) -> float:
    """What eager takes in float64, and what all implementations' weights take beside it."""
    gradients = case.mode != "forward"
    if case.axis == "keys":
        return batch * EXACT * SCORES[gradients] * 6272 * case.value
    batch = case.value if case.axis == "batch" else batch
    shapes = models.layer_shapes(case.model, **case.sizes)
    if case.block >= 0:
        return batch * _block(shapes[case.block], gradients)
    sizes = [batch * _block(shape, gradients) for shape in shapes]
    weights = sum(16 * s.dim * s.dim_out for s in shapes) * EXACT * 3
    return (sum(sizes) if gradients else max(sizes)) + weights


def _block(s: LayerShape, gradients: bool) -> float:
    tokens = s.num_tokens * max(s.dim, s.att_dim)
    return EXACT * (SCORES[gradients] * s.scores + TOKENS[gradients] * tokens)
