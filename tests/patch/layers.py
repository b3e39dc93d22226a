"""Every attention layer the adapters know, with its features: what the tests run and docs/supported_models.md lists."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from .standins import detectron2, openmmlab, pytorchvideo, slowfast

KERNELS, HOST_POOLING = "kernels", "host pooling"


@dataclass(frozen=True)
class Layer:
    """One layer of one library.

    Attributes:
        library, feature: for the table.
        host: module path and name of the class.
        arguments: its constructor's.
        shape: of the input; further inputs follow in `inputs`.
        outcome: KERNELS, HOST_POOLING, or a part of the reason for which it is left alone.
        standin: the class that stands in for the library's, or None where the library is on the package index.
        runs: its own forward works.
        real: the library's own class takes the same arguments.
    """

    library: str
    feature: str
    host: tuple[str, str]
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    inputs: tuple[Any, ...] = ()
    outcome: str = KERNELS
    standin: type[nn.Module] | None = None
    runs: bool = True
    real: bool = True
    make: Callable[..., nn.Module] = field(default=lambda cls, **arguments: cls(**arguments))

    @property
    def name(self) -> str:
        return f"{self.library}: {self.feature}"

    @property
    def replaced(self) -> bool:
        return self.outcome in (KERNELS, HOST_POOLING)

    @contextmanager
    def built(self, own: bool) -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
        """The layer and its inputs; `own` for the library's own class, skipped where it can't be imported."""
        path, name = self.host
        with ExitStack() as stack:
            if own:
                cls = imported(path, name)
            else:
                assert self.standin is not None
                cls = type(name, (self.standin,), {"__module__": path, "__qualname__": name})
                stack.enter_context(placed(path, name, cls))
            torch.manual_seed(0)
            layer = self.make(cls, **self.arguments)
            generator = torch.Generator().manual_seed(0)
            for name, parameter in layer.named_parameters():
                # Away from initial zeros and ones, so that each of them matters.
                scale = 0.3 if parameter.dim() == 1 or "rel_pos" in name else 0.05
                parameter.data += scale * torch.randn(parameter.shape, generator=generator)
            yield layer, (torch.randn(self.shape, generator=generator), *self.inputs)


@contextmanager
def placed(path: str, name: str, cls: type) -> Iterator[None]:
    """`cls` can be imported from `path`, as pickle does; an installed library's own modules come back afterwards."""
    names = [path]
    if not importable(path.partition(".")[0]):
        names += [path.rsplit(".", i)[0] for i in range(1, path.count(".") + 1)]
    else:
        replace_broken_packages(path)
    before = {module: sys.modules.pop(module, None) for module in names}
    for module in names:
        sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[path], name, cls)
    try:
        yield
    finally:
        for module, original in before.items():
            del sys.modules[module]
            if original is not None:
                sys.modules[module] = original


BROKEN_PACKAGES = {"mmaction.models", "mmaction.models.backbones"}
"""Packages that can't be imported whole: a release left a file out, and asks for functions that transformers dropped.
Our layer's module asks for neither."""


def importable(package: str) -> bool:
    try:
        importlib.import_module(package)
    except Exception:  # not there, or not fit for what else is installed
        return False
    return True


def imported(path: str, name: str) -> type[nn.Module]:
    try:
        replace_broken_packages(path)
        return getattr(importlib.import_module(path), name)
    except Exception as error:  # a half-installed library may raise anything
        pytest.skip(f"{path} can't be imported: {type(error).__name__}: {error}")


def replace_broken_packages(path: str) -> None:
    """The packages of the module `path` that are broken become empty ones in the same folders."""
    for package in sorted(BROKEN_PACKAGES):
        if path.startswith(f"{package}.") and package not in sys.modules:
            parent, _, last = package.rpartition(".")
            empty = types.ModuleType(package)
            empty.__path__ = [f"{folder}/{last}" for folder in importlib.import_module(parent).__path__]
            sys.modules[package] = empty


def pooled(dims: int, stride_q: int, stride_kv: int, kernel: int = 3) -> dict[str, Any]:
    """Constructor arguments that most libraries share."""
    front = (1,) * (dims - 2)
    return {
        "kernel_q": (kernel,) * dims,
        "kernel_kv": (kernel,) * dims,
        "stride_q": (*front, stride_q, stride_q),
        "stride_kv": (*front, stride_kv, stride_kv),
    }


def _slowfast() -> Iterator[Layer]:
    host = ("slowfast.models.attention", "MultiScaleAttention")
    base = {"dim": 16, "dim_out": 24, "input_size": (3, 8, 8), "num_heads": 2, "qkv_bias": True}
    v2 = {"rel_pos_spatial": True, "rel_pos_temporal": True, "residual_pooling": True}
    grid, tokens = [3, 8, 6], 3 * 8 * 6

    def layer(feature: str, cls: bool = True, thw: Any = grid, tokens: int = tokens, **arguments: Any) -> Layer:
        arguments = {**base, "has_cls_embed": cls, **arguments}
        shape = (2, tokens + cls, 16)
        return Layer("SlowFast", feature, host, arguments, shape, (thw,), standin=slowfast.MultiScaleAttention)

    yield layer("v1", **pooled(3, 1, 4) | {"kernel_q": [], "stride_q": []})
    yield layer("v2", **pooled(3, 2, 4), **v2)
    yield layer("v2 without cls token (MaskFeat, Rev-MViT)", False, **pooled(3, 2, 2), **v2)
    yield layer("separate qkv, no qkv bias", separate_qkv=True, **pooled(3, 1, 2), **v2 | {"qkv_bias": False})
    yield layer("relative position over space alone", **pooled(3, 1, 2), rel_pos_spatial=True)
    yield layer("relative position over time alone", **pooled(3, 1, 2), rel_pos_temporal=True)
    yield layer("odd grid, resized tables", thw=[3, 9, 7], tokens=189, **pooled(3, 2, 4), **v2)
    yield layer("grid of 0-dim tensors", thw=[torch.tensor(3), 8, 6], **pooled(3, 2, 4))
    yield layer("kernels 1x5x5, dropout", **pooled(3, 1, 4, 5) | {"kernel_kv": (1, 5, 5)}, drop_rate=0.3)
    yield layer("average pooling", mode="avg", **pooled(3, 2, 2))
    yield layer("max pooling", mode="max", **pooled(3, 2, 2))
    yield layer("pool first", pool_first=True, **pooled(3, 2, 4), **v2)
    yield layer("pool first, unshared convolution", pool_first=True, mode="conv_unshared", **pooled(3, 2, 4), **v2)
    yield layer("no pooling, tokens that do not match the grid (MAE)", thw=[4, 14, 14], tokens=20)


def _mvit() -> Iterator[Layer]:
    host = ("mvit.models.attention", "MultiScaleAttention")
    base = {"dim": 16, "dim_out": 24, "input_size": (8, 8), "num_heads": 2, "qkv_bias": True}

    def layer(feature: str, cls: bool = False, standin: type = slowfast.ImageMultiScaleAttention, **more: Any) -> Layer:
        outcome, arguments = more.pop("outcome", KERNELS), {**base, **pooled(2, 2, 4), "has_cls_embed": cls, **more}
        own = standin is slowfast.ImageMultiScaleAttention
        shape, inputs = (2, 64 + cls, 16), ([8, 8],)
        return Layer("mvit", feature, host, arguments, shape, inputs, outcome, standin, real=own)

    yield layer("v2", rel_pos_spatial=True)
    yield layer("v2 with cls token", True, rel_pos_spatial=True)
    yield layer("v1", True, residual_pooling=False)
    yield layer("average pooling", mode="avg")
    yield layer("pool first, unshared convolution", True, pool_first=True, mode="conv_unshared")
    old = slowfast.OldImageMultiScaleAttention
    yield layer("before August 2022, cls token", True, old, outcome="its forward gives other results")


def _memvit() -> Iterator[Layer]:
    host = ("memvit.models.attention", "MultiScaleAttention")
    base = {"dim": 16, "dim_out": 24, "input_size": (3, 8, 8), "num_heads": 2, **pooled(3, 2, 4)}

    def layer(feature: str, outcome: str = KERNELS, **more: Any) -> Layer:
        standin, shape = slowfast.MemoryMultiScaleAttention, (2, 3 * 64 + 1, 16)
        return Layer("MeMViT", feature, host, {**base, **more}, shape, ([3, 8, 8],), outcome, standin, real=False)

    yield layer("without memory, pool first", rel_pos=True, conv_q=1)
    yield layer("without memory, project first", pool_first=False, rel_pos=True)
    yield layer("with memory", "attends to its memory", use_online_memory=True)
    yield layer("causal", "is causal", causal=True)
    yield layer("box attention", "between boxes", is_box_attn=True)
    yield layer("compressed memory", "compresses memory", online_compress=True)
    yield layer("convolved residual", "convolves the residual", conv_q=2)
    yield layer("attention dropout", "drops attention weights", drop_attn_rate=0.1)


def _pytorchvideo() -> Iterator[Layer]:
    host = ("pytorchvideo.layers.attention", "MultiScaleAttention")
    shape, inputs = (2, 3 * 8 * 6 + 1, 16), ([3, 8, 6],)

    def layer(feature: str, outcome: str = KERNELS, **more: Any) -> Layer:
        arguments = {"dim": 16, "dim_out": 24, "num_heads": 2, **pooled(3, 2, 4), **more}
        standin = pytorchvideo.MultiScaleAttention
        return Layer("PyTorchVideo since 0.1", feature, host, arguments, shape, inputs, outcome, standin, real=False)

    yield layer("v1 with residual")
    yield layer("fused qkv, no residual", separate_qkv=False, residual_pool=False)
    yield layer("pool first", pool_first=True)
    yield layer("average pooling", pool_mode="avg")
    yield layer("no projection bias, dropout", bias_on=False, dropout_rate=0.3)
    yield layer("dense convolution", HOST_POOLING, depthwise_conv=False)
    yield layer("BatchNorm and GELU before the pooling", HOST_POOLING, norm_layer=nn.BatchNorm3d)
    for feature, outcome, more in (
        ("v1", KERNELS, {}),
        ("pool first", KERNELS, {"pool_first": True}),
        ("max pooling", KERNELS, {"pool_mode": "max"}),
        ("norm other than LayerNorm", HOST_POOLING, {"norm_layer": nn.Identity}),
    ):
        arguments = {"dim": 16, "num_heads": 2, **pooled(3, 2, 4), **more}
        yield Layer("PyTorchVideo 0.1", feature, host, arguments, shape, inputs, outcome)


def _timm() -> Iterator[Layer]:
    host = ("timm.models.mvitv2", "MultiScaleAttention")
    base = {"dim": 16, "dim_out": 24, "feat_size": (8, 8), "num_heads": 2, **pooled(2, 2, 4)}

    def layer(feature: str, cls: bool = False, outcome: str = KERNELS, runs: bool = True, **more: Any) -> Layer:
        arguments = {**base, "has_cls_token": cls, **more}
        return Layer("timm", feature, host, arguments, (2, 64 + cls, 16), ([8, 8],), outcome, runs=runs)

    yield layer("MViTv2")
    yield layer("MViTv2 with cls token", True)
    yield layer("MViTv2, no relative position, no residual", rel_pos_type="none", residual_pooling=False)
    yield layer("average pooling", True, mode="avg")
    yield layer("max pooling", mode="max")
    yield layer("unshared convolution", outcome="conv_unshared fails", runs=False, mode="conv_unshared")
    first = (host[0], "MultiScaleAttentionPoolFirst")
    yield Layer("timm", "pool first", first, base, (2, 65, 16), ([8, 8],), "never transposed", runs=False)
    sam = ("timm.models.vision_transformer_sam", "Attention")
    rel = {"dim": 24, "num_heads": 2, "use_rel_pos": True, "input_size": (6, 6)}
    yield Layer("timm", "SAM", sam, rel, (2, 6, 6, 24))
    yield Layer("timm", "SAM, another size", sam, rel, (2, 5, 7, 24))
    dropped = {**rel, "attn_drop": 0.1}
    yield Layer("timm", "SAM with attention dropout", sam, dropped, (2, 6, 6, 24), (), "drops attention weights")
    yield Layer("timm", "SAM with q and k norm", sam, {**rel, "qk_norm": True}, (2, 6, 6, 24), (), "q_norm is")
    plain = {"dim": 24, "num_heads": 2}
    yield Layer("timm", "SAM without relative position", sam, plain, (2, 6, 6, 24), (), "neither pools nor")
    hiera = ("timm.models.hiera", "MaskUnitAttention")
    units = {"dim": 16, "dim_out": 24, "heads": 2, "q_stride": 4, "window_size": 4, "use_mask_unit_attn": True}
    yield Layer("timm", "Hiera, mask units", hiera, units, (2, 48, 16))
    yield Layer("timm", "Hiera, global", hiera, {**units, "use_mask_unit_attn": False}, (2, 48, 16))
    yield Layer(
        "timm", "Hiera without q pooling", hiera, {**units, "q_stride": 1}, (2, 48, 16), (), "neither pools nor"
    )
    sam2 = ("timm.models.hieradet_sam2", "MultiScaleAttention")
    heads = {"dim": 16, "dim_out": 24, "num_heads": 2}
    yield Layer("timm", "SAM 2", sam2, {**heads, "q_pool": nn.MaxPool2d(2, 2)}, (2, 6, 8, 16))
    yield Layer("timm", "SAM 2 without q pooling", sam2, heads, (2, 6, 8, 16), (), "neither pools nor")


def _openmmlab() -> Iterator[Layer]:
    video = ("mmaction.models.backbones.mvit", "MultiScaleAttention")
    base = {"in_dims": 16, "out_dims": 24, "num_heads": 2, "input_size": (3, 8, 8)}
    strides = {"stride_q": (1, 2, 2), "stride_kv": (1, 4, 4)}
    for feature, cls, more in (
        ("v2", True, {}),
        ("v2 without cls token", False, {"with_cls_token": False}),
        ("no relative position, no residual", True, {"rel_pos_embed": False, "residual_pooling": False}),
    ):
        arguments, shape = {**base, **strides, **more}, (2, 3 * 8 * 6 + cls, 16)
        yield Layer("mmaction2", feature, video, arguments, shape, ((3, 8, 6),), standin=openmmlab.MultiScaleAttention)
    image = ("mmpretrain.models.backbones.mvit", "MultiScaleAttention")
    base = {**base, "input_size": (8, 8), "stride_q": 2, "stride_kv": 4}
    for feature, more in (("v2", {"rel_pos_spatial": True}), ("no residual", {"residual_pooling": False})):
        standin = openmmlab.ImageMultiScaleAttention
        yield Layer("mmpretrain", feature, image, {**base, **more}, (2, 63, 16), ((9, 7),), standin=standin)


def _detectron2() -> Iterator[Layer]:
    host = ("detectron2.modeling.backbone.mvit", "MultiScaleAttention")
    base = {"dim": 16, "dim_out": 24, "num_heads": 2, "use_rel_pos": True, "input_size": (4, 4)}

    def layer(feature: str, **more: Any) -> Layer:
        standin = detectron2.MultiScaleAttention
        return Layer("detectron2", feature, host, {**base, **more}, (2, 9, 11, 16), standin=standin)

    yield layer("MViTv2, global, resized tables", stride_q=1, stride_kv=2)
    yield layer("MViTv2, padded windows", stride_q=1, stride_kv=2, window_size=4)
    yield layer("MViTv2, padded windows, strided q", stride_q=2, stride_kv=1, window_size=4)
    yield layer(
        "MViTv2, windows, no residual, no relative position", window_size=4, residual_pooling=False, use_rel_pos=False
    )
    vit, attention = ("detectron2.modeling.backbone.vit", "Attention"), detectron2.Attention
    rel = {"dim": 24, "num_heads": 2, "use_rel_pos": True, "input_size": (6, 6)}
    yield Layer("detectron2", "ViTDet", vit, rel, (2, 6, 6, 24), standin=attention)
    yield Layer("detectron2", "ViTDet, another size", vit, rel, (2, 5, 7, 24), standin=attention)
    yield Layer(
        "detectron2",
        "ViTDet without relative position",
        vit,
        {"dim": 24, "num_heads": 2},
        (2, 5, 7, 24),
        standin=attention,
    )
    sam = ("segment_anything.modeling.image_encoder", "Attention")
    yield Layer("segment_anything", "SAM", sam, rel, (2, 6, 6, 24), standin=attention)


def _transformers() -> Iterator[Layer]:
    def make_sam(cls: Any, **config: Any) -> nn.Module:
        from transformers import SamVisionConfig

        return cls(SamVisionConfig(hidden_size=24, num_attention_heads=2, **config), window_size=6)

    def make_sam2(cls: Any, **arguments: Any) -> nn.Module:
        from transformers import Sam2HieraDetConfig

        return cls(Sam2HieraDetConfig(attn_implementation="sdpa"), 16, 24, 2, **arguments)

    sam, shape = "transformers.models.sam.modeling_sam", (2, 6, 6, 24)
    sdpa, eager = (sam, "SamVisionSdpaAttention"), (sam, "SamVisionAttention")
    yield Layer("transformers", "SAM", sdpa, {}, shape, make=make_sam)
    yield Layer("transformers", "SAM, another size", sdpa, {}, (2, 5, 7, 24), make=make_sam)
    yield Layer(
        "transformers", "SAM, eager attention", eager, {}, shape, (), "returns attention weights", make=make_sam
    )
    hiera = ("transformers.models.hiera.modeling_hiera", "HieraMaskUnitAttention")
    units = {"hidden_size": 16, "hidden_size_output": 24, "num_heads": 2, "window_size": 4, "use_mask_unit_attn": True}
    yield Layer("transformers", "Hiera, mask units", hiera, {**units, "query_stride": 4}, (2, 48, 16))
    whole = {**units, "query_stride": 4, "use_mask_unit_attn": False}
    yield Layer("transformers", "Hiera, global", hiera, whole, (2, 48, 16))
    yield Layer("transformers", "Hiera without q pooling", hiera, units, (2, 48, 16))
    sam2, shape = ("transformers.models.sam2.modeling_sam2", "Sam2MultiScaleAttention"), (2, 6, 8, 16)
    yield Layer("transformers", "SAM 2", sam2, {"query_stride": (2, 2)}, shape, make=make_sam2)
    yield Layer("transformers", "SAM 2 without q pooling", sam2, {}, shape, (), "neither pools nor", make=make_sam2)


LAYERS = [
    *_slowfast(),
    *_mvit(),
    *_memvit(),
    *_pytorchvideo(),
    *_timm(),
    *_openmmlab(),
    *_detectron2(),
    *_transformers(),
]
