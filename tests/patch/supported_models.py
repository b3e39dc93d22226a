"""docs/supported_models.md, made from the layers that the tests run: python -m tests.patch.supported_models"""

from __future__ import annotations

from pathlib import Path

from .layers import HOST_POOLING, KERNELS, LAYERS, Layer

PATH = Path(__file__).parents[2] / "docs" / "supported_models.md"

HEAD = """# Supported models

What `mvit_kernels.accelerate` does with each attention layer it knows. This table is generated from the layers that
`tests/patch/test_layers.py` runs (`python -m tests.patch.supported_models`); torchvision's layers have tests of their
own (`tests/patch/test_torchvision.py`).

- *kernels*: replaced. Outputs and every gradient are tested against the host in float32 and float64, outputs in
  bfloat16 and float16.
- *host pooling*: the library pools, the attention is fused; the report says so.
- *left alone*: keeps its own forward; the report gives the reason.

Tested on *own class*: the library's own code, skipped where it is not installed. *Stand-in*: a layer written for the
tests with the library's attributes and arithmetic. Whatever the table says, a layer is replaced only after its own
forward and its description agreed on random float64 input (`mvit_kernels/patch/proof.py`). SlowFast's layer inside
reversible blocks (Rev-MViT): `tests/patch/test_reversible.py`.

| library | layer | result | tested on |
|---|---|---|---|
"""


def row(layer: Layer) -> str:
    result = layer.outcome if layer.outcome in (KERNELS, HOST_POOLING) else f"left alone: {layer.outcome}"
    tested = " and ".join(["stand-in"] * (layer.standin is not None) + ["own class"] * layer.real)
    return f"| {layer.library} | {layer.feature} | {result} | {tested} |\n"


def text() -> str:
    return HEAD + "".join(map(row, LAYERS))


if __name__ == "__main__":
    PATH.write_text(text())
