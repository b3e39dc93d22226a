"""The numerics rule of docs/numerics.md, and inputs that catch a kernel reading or writing where it should not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

FACTOR = {"forward": 2.0, "gradient": 3.0}
FLOAT32_OF_SCALE = 1e-5
FLOAT64_OF_SCALE = 1e-12


def assert_within_rule(
    kernel: Tensor, eager: Tensor, oracle: Tensor, kind: str = "forward", dtype: torch.dtype | None = None
) -> None:
    """`kernel` is as close to the float64 `oracle` as `eager`, the reference in the tested dtype, is.

    `dtype` is the problem's where the result's differs (float32 rows of a bfloat16 problem).

    max |k - oracle| <= c * max |eager - oracle| + 2 * noise, noise the rounding of (oracle + 0.3) - 0.3 in the dtype;
    rms(k - oracle) <= 1.5 * rms(eager - oracle) + eps * rms(oracle); in float32 and float64 also a part of the scale.
    """
    assert kernel.shape == oracle.shape, f"shape {tuple(kernel.shape)}, expected {tuple(oracle.shape)}"
    assert kernel.dtype == eager.dtype, f"dtype {kernel.dtype}, expected {eager.dtype}"
    assert oracle.dtype == torch.float64
    dtype = dtype or kernel.dtype
    if oracle.numel() == 0:
        return
    assert torch.equal(kernel.isnan(), oracle.isnan()), "NaN in other places than the oracle has it"
    if dtype == torch.float64:
        error, scale = float((kernel - oracle).abs().max()), float(oracle.abs().max())
        assert error <= FLOAT64_OF_SCALE * scale, f"float64 error {error:.3e} at scale {scale:.3e}"
        return
    noise = float(((oracle.to(dtype) + 0.3 - 0.3).double() - oracle).abs().max())
    k_error, e_error = kernel.double() - oracle, eager.double() - oracle
    k_max, bound = float(k_error.abs().max()), FACTOR[kind] * float(e_error.abs().max()) + 2 * noise
    assert k_max <= bound, f"max error {k_max:.3e}, bound {bound:.3e}"
    k_rms, rms_bound = _rms(k_error), 1.5 * _rms(e_error) + torch.finfo(dtype).eps * _rms(oracle)
    assert k_rms <= rms_bound, f"rms error {k_rms:.3e}, bound {rms_bound:.3e}"
    if dtype == torch.float32:
        scale = float(oracle.abs().max())
        assert k_max <= FLOAT32_OF_SCALE * scale, f"max error {k_max:.3e} at scale {scale:.3e}"


FEW = 64
"""Numbers whose rms error is a matter of luck."""


def assert_gradients_within_rule(results: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
    """The rule for the gradients of one layer or model: (kernel, eager, oracle) of each.

    Those of few numbers are judged together, each in units of its own rms.
    """
    few = []
    for kernel, eager, oracle in results:
        if 0 < oracle.numel() < FEW and bool(oracle.any()):
            scale = float(_rms(oracle))
            few.append([(tensor.double() / scale).flatten() for tensor in (kernel, eager, oracle)])
            dtype = kernel.dtype
        else:
            assert_within_rule(kernel, eager, oracle, "gradient")
    if few:
        kernel, eager, oracle = (torch.cat(tensors) for tensors in zip(*few, strict=True))
        assert_within_rule(kernel, eager, oracle, "gradient", dtype)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


class Guarded:
    """Random tensors inside NaN-filled buffers: offset, strided like slices of a fused projection, unit last stride."""

    margin = 67
    """Elements before and after each tensor: odd, so that nothing is aligned."""

    def __init__(self, seed: int = 0, device: str = "cpu") -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """(B, H, N, D) as a slice of a (B, N, 3, H, D) buffer with a margin, or any other shape with a margin."""
        values = (scale * torch.randn(*shape, generator=self.generator, dtype=torch.float64)).to(dtype)
        if len(shape) == 4:
            batch, heads, tokens, dim = shape
            buffer = torch.full(
                (batch * tokens * 3 * heads * dim + 2 * self.margin,), torch.nan, dtype=dtype, device=self.device
            )
            fused = buffer[self.margin : buffer.numel() - self.margin].view(batch, tokens, 3, heads, dim)
            view = fused[:, :, 1].transpose(1, 2)
        else:
            buffer = torch.full((values.numel() + 2 * self.margin,), torch.nan, dtype=dtype, device=self.device)
            view = buffer[self.margin : self.margin + values.numel()].view(shape)
        view.copy_(values)
        self.buffers.append((buffer, buffer.clone()))
        return view

    def assert_untouched(self) -> None:
        for buffer, before in self.buffers:
            assert torch.equal(torch.nan_to_num(buffer, nan=7.25), torch.nan_to_num(before, nan=7.25)), (
                "an input changed"
            )


def double(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same rounded values in float64."""
    return [None if t is None else t.double() for t in tensors]
