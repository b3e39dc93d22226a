"""Checkpoints among the libraries: round trips of every pair, real models with equal outputs, what is listed."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvit_kernels import models
from mvit_kernels.models import MViTConfig, convert_state_dict, translate_state_dict
from tests.patch.layers import imported

LIBRARIES = (
    "mvit_kernels",
    "slowfast",
    "mvit",
    "torchvision",
    "pytorchvideo",
    "timm",
    "mmaction2",
    "mmpretrain",
    "detectron2",
)
OF_SCALE = 1e-10

IMAGE = MViTConfig(
    num_frames=1,
    crop_size=64,
    num_classes=7,
    patch_kernel=(7, 7),
    patch_stride=(4, 4),
    patch_padding=(3, 3),
    embed_dim=16,
    depth=4,
    dim_mul=((1, 2.0), (3, 2.0)),
    head_mul=((1, 2.0), (3, 2.0)),
    pool_q_stride=((0, 1, 1, 1), (1, 1, 2, 2), (2, 1, 1, 1), (3, 1, 2, 2)),
    pool_kv_stride_adaptive=(1, 4, 4),
    pool_kvq_kernel=(1, 3, 3),
    dim_mul_in_att=True,
    use_abs_pos=True,
    rel_pos_spatial=True,
    residual_pooling=True,
)
VIDEO = replace(
    IMAGE,
    num_frames=8,
    patch_kernel=(3, 7, 7),
    patch_stride=(2, 4, 4),
    patch_padding=(1, 3, 3),
    pool_kvq_kernel=(3, 3, 3),
    rel_pos_temporal=True,
    sep_pos_embed=True,
)
CONFIGS = {
    "image": IMAGE,
    "image, width grows in the MLP": replace(IMAGE, dim_mul_in_att=False, cls_embed_on=False, use_abs_pos=False),
    "image, separate": replace(IMAGE, separate_qkv=True, qkv_bias=False),
    "video": VIDEO,
    "video, separate": replace(VIDEO, separate_qkv=True, dim_mul_in_att=False, rel_pos_temporal=False),
}


def weights(config: MViTConfig) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(tensor) for name, tensor in models.MViT(config).state_dict().items()}


def randomised(model: nn.Module) -> nn.Module:
    """Float64 weights with which position, norms and biases matter."""
    torch.manual_seed(1)
    model.double().eval()  # OpenMMLab's eval returns nothing
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or "pos" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "qkv" in name or ".attn.q." in name or ".attn.k." in name:
                parameter.mul_(4.0)
    return model


def assert_same(converted: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert converted.keys() == expected.keys()
    for key, tensor in expected.items():
        assert converted[key].shape == tensor.shape, key
        assert torch.equal(converted[key], tensor), key


@pytest.mark.parametrize(("first", "second"), list(product(LIBRARIES, repeat=2)))
@pytest.mark.parametrize("config", CONFIGS)
def test_round_trip_loses_nothing_that_is_not_listed(config: str, first: str, second: str) -> None:
    ours = translate_state_dict(weights(CONFIGS[config]), from_="mvit_kernels", to=first)
    there = translate_state_dict(ours.state_dict, from_=first, to=second)
    back = translate_state_dict(there.state_dict, from_=second, to=first, like=ours.state_dict)
    assert there.unknown == back.unknown == back.homeless == [] and back.misfits == {}
    lost = {*there.homeless, *there.misfits}
    assert {*back.state_dict} == {*ours.state_dict} - lost
    assert_same(back.state_dict, {key: ours.state_dict[key] for key in back.state_dict})
    assert {*back.missing_target, *back.missing_source} or not lost


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_homeless_is_what_the_library_has_not(library: str) -> None:
    """Against the facts of each library, for the richest configuration."""
    converted = translate_state_dict(weights(VIDEO), from_="slowfast", to=library)
    positions = {"pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"}
    tables = {f"blocks.{i}.attn.rel_pos_{x}" for i in range(4) for x in "hwt"}
    temporal = {name for name in tables if name.endswith("t")}
    head = {"head.projection.weight", "head.projection.bias"}
    homeless: dict[str, set[str]] = {
        "mvit": positions | temporal,
        "pytorchvideo": tables,
        "timm": positions | temporal,
        "mmaction2": positions,
        "mmpretrain": positions | temporal | {"cls_token"},
        "detectron2": positions | temporal | head | {"cls_token"},
    }
    assert {*converted.homeless} == homeless.get(library, set())
    kernels = {f"blocks.{i}.attn.pool_{x}.weight" for i in range(4) for x in "qkv"} | {"patch_embed.proj.weight"}
    flat = library in ("mvit", "timm", "mmpretrain", "detectron2")
    assert {*converted.misfits} == (kernels if flat else set())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mvitv2_tiny", {}),
        ("mvitv2_small_cls", {"residual": "all"}),
        ("mvitv2_large", {}),
    ],
)
def test_timm_loads_and_computes_the_same(name: str, options: dict[str, Any]) -> None:
    """Few blocks of the published configurations; `mvitv2_large` is the one whose width grows in the MLP."""
    pytest.importorskip("timm")
    from timm.models.mvitv2 import MultiScaleVit, model_cfgs

    depths = (1, 2, 2, 1)
    cfg = replace(model_cfgs[name], depths=depths, embed_dim=(16, 32, 64, 128), num_heads=(1, 2, 4, 8))
    theirs = randomised(MultiScaleVit(cfg, img_size=(64, 64), num_classes=7))
    config = replace(
        IMAGE,
        depth=6,
        dim_mul=((1, 2.0), (3, 2.0), (5, 2.0)),
        head_mul=((1, 2.0), (3, 2.0), (5, 2.0)),
        pool_q_stride=tuple((i, 1, s, s) for i, s in enumerate((1, 2, 1, 2, 1, 2))),
        dim_mul_in_att=cfg.expand_attn,
        cls_embed_on=cfg.use_cls_token,
        use_abs_pos=cfg.use_abs_pos,
        **options,
    )
    ours = models.MViT(config).double().eval()
    ours.load_state_dict(convert_state_dict(theirs.state_dict(), from_="timm", to="mvit_kernels"))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert_equal_outputs(ours, theirs, x)
    back = convert_state_dict(ours.state_dict(), from_="mvit_kernels", to="timm")
    assert_same(back, theirs.state_dict())


@pytest.mark.parametrize("sep_pos_embed", [True, False])
def test_pytorchvideo_loads_and_computes_the_same(sep_pos_embed: bool) -> None:
    pytest.importorskip("pytorchvideo")
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    config = replace(
        VIDEO,
        dim_mul_in_att=False,
        rel_pos_spatial=False,
        rel_pos_temporal=False,
        residual_pooling=False,
        sep_pos_embed=sep_pos_embed,
    )
    theirs = randomised(
        create_multiscale_vision_transformers(
            spatial_size=64,
            temporal_size=8,
            depth=4,
            patch_embed_dim=16,
            embed_dim_mul=[[1, 2.0], [3, 2.0]],
            atten_head_mul=[[1, 2.0], [3, 2.0]],
            pool_q_stride_size=[list(row) for row in config.pool_q_stride],
            pool_kv_stride_adaptive=[1, 4, 4],
            pool_kvq_kernel=[3, 3, 3],
            sep_pos_embed=sep_pos_embed,
            head_num_classes=7,
        )
    )
    for name, norm in theirs.named_modules():
        if ".attn.norm_" in name:
            norm.eps = 1e-6  # version 0.1.5 pools with PyTorch's default, later ones with this; no part of the weights
    x = torch.randn(2, 3, 8, 64, 64, dtype=torch.float64)
    for separate in (True, False):
        ours = models.MViT(replace(config, separate_qkv=separate)).double().eval()
        ours.load_state_dict(convert_state_dict(theirs.state_dict(), from_="pytorchvideo", to="slowfast", like=ours))
        assert_equal_outputs(ours, theirs, x)
        back = convert_state_dict(ours.state_dict(), from_="slowfast", to="pytorchvideo", like=theirs)
        assert_same(back, theirs.state_dict())


def test_torchvision_loads_and_computes_the_same() -> None:
    video = pytest.importorskip("torchvision.models.video")
    from torchvision.models.video.mvit import MSBlockConfig

    config = replace(VIDEO, use_abs_pos=False, rel_pos_index="torchvision")
    blocks = [
        MSBlockConfig(b.num_heads, b.dim, b.dim_out, *map(list, (b.kernel_q, b.kernel_kv, b.stride_q, b.stride_kv)))
        for b in config.blocks()
    ]
    theirs = video.MViT(
        spatial_size=(64, 64),
        temporal_size=8,
        block_setting=blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=7,
    )
    ours = randomised(models.MViT(config))
    theirs.double().eval().load_state_dict(convert_state_dict(ours.state_dict(), from_="slowfast", to="torchvision"))
    assert_equal_outputs(ours, theirs, torch.randn(2, 3, 8, 64, 64, dtype=torch.float64))


def test_mmpretrain_loads_and_computes_the_same() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mvit = pytest.importorskip("mmpretrain.models.backbones.mvit", exc_type=ImportError)
    arch = {"embed_dims": 16, "num_layers": 4, "num_heads": 1, "downscale_indices": [1, 3]}
    config = replace(IMAGE, cls_embed_on=False, use_abs_pos=False)
    theirs = randomised(mvit.MViT(arch=arch, img_size=64, rel_pos_spatial=True))
    ours = randomised(models.MViT(config))
    converted = translate_state_dict(ours.state_dict(), from_="mvit_kernels", to="mmpretrain", like=theirs)
    assert converted.problems() == [
        "mvit_kernels keys without a place in mmpretrain: head.projection.bias, head.projection.weight"
    ]
    theirs.load_state_dict(converted.state_dict)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        features = theirs(x)[0]
        expected = ours.head(features.mean((2, 3)))
        error = (ours(x) - expected).abs().max()
    assert error <= OF_SCALE * expected.abs().max()
    classifier = convert_state_dict(ours.state_dict(), from_="mvit_kernels", to="mmpretrain")
    assert {key.removeprefix("backbone.") for key in classifier} == {
        *theirs.state_dict(),
        "head.fc.weight",
        "head.fc.bias",
    }


def test_mmaction2_loads_and_computes_the_same() -> None:
    theirs = randomised(
        imported("mmaction.models.backbones.mvit", "MViT")(
            arch={"embed_dims": 16, "num_layers": 4, "num_heads": 1, "downscale_indices": [1, 3]},
            spatial_size=64,
            temporal_size=8,
            adaptive_kv_stride=(1, 4, 4),
            with_cls_token=True,
        )
    )
    ours = models.MViT(replace(VIDEO, use_abs_pos=False)).double().eval()
    head = {"cls_head.fc_cls.weight": torch.randn(7, 64), "cls_head.fc_cls.bias": torch.ones(7)}
    ours.load_state_dict(convert_state_dict({**theirs.state_dict(), **head}, from_="mmaction2", to="slowfast"))
    x = torch.randn(2, 3, 8, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = ours.head(theirs(x)[-1][1])
        error = (ours(x) - expected).abs().max()
    assert error <= OF_SCALE * expected.abs().max()
    backbone = {key: tensor for key, tensor in ours.state_dict().items() if not key.startswith("head.")}
    assert_same(convert_state_dict(backbone, from_="slowfast", to="mmaction2"), theirs.state_dict())


def assert_equal_outputs(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = theirs(x)
        error = (ours(x) - expected).abs().max()
    assert error <= OF_SCALE * expected.abs().max(), f"error {error:.2e}"


def test_forms_of_pytorchvideos_twins() -> None:
    """Newer versions have the pooling's tensors under two names, which must agree and are written where asked for."""
    ours = weights(replace(VIDEO, rel_pos_spatial=False, rel_pos_temporal=False))
    theirs = convert_state_dict(ours, from_="slowfast", to="pytorchvideo")
    twins = {
        f"blocks.{i}.attn._attention_pool_{x}.{part}.{parameter}": theirs[f"blocks.{i}.attn.{part}_{x}.{parameter}"]
        for i, x, (part, parameter) in product(
            range(4), "qkv", [("pool", "weight"), ("norm", "weight"), ("norm", "bias")]
        )
    }
    assert_same(convert_state_dict({**twins, **theirs}, from_="pytorchvideo", to="slowfast", like=ours), ours)
    assert_same(
        convert_state_dict(ours, from_="slowfast", to="pytorchvideo", like={**theirs, **twins}), {**theirs, **twins}
    )
    other = "blocks.1.attn._attention_pool_k.norm.bias"
    with pytest.raises(ValueError, match=f"do not fit: {other} differs from blocks.1.attn.norm_k.bias"):
        convert_state_dict({**theirs, **twins, other: torch.zeros(16)}, from_="pytorchvideo", to="slowfast")


@pytest.mark.parametrize("library", ["mmaction2", "mmpretrain", "detectron2"])
def test_norms_of_all_stages_pass_between_backbones(library: str) -> None:
    video = replace(VIDEO, use_abs_pos=False)
    ours = weights(video if library == "mmaction2" else replace(IMAGE, cls_embed_on=False))
    del ours["head.projection.weight"], ours["head.projection.bias"]
    theirs = convert_state_dict(ours, from_="slowfast", to=library)
    last, others = (
        ("scale4_norm", ("scale2_norm", "scale3_norm")) if library == "detectron2" else ("norm2", ("norm0", "norm1"))
    )
    assert torch.equal(theirs[f"{last}.weight"], ours["norm.weight"])
    theirs |= {f"{norm}.{p}": torch.randn(4) for norm in others for p in ("weight", "bias")}
    if library != "mmaction2":
        there = convert_state_dict(theirs, from_=library, to="detectron2")
        assert {"scale2_norm.bias", "scale3_norm.bias", "scale4_norm.bias"} <= {*there}
    with pytest.raises(ValueError) as error:
        convert_state_dict(theirs, from_=library, to="slowfast")
    expected = ", ".join(f"{norm}.{p}" for norm in others for p in ("bias", "weight"))
    assert str(error.value) == f"convert_state_dict: {library} keys without a place in slowfast: {expected}"


@pytest.mark.parametrize(("library", "prefix"), [("mmaction2", "backbone."), ("detectron2", "backbone.bottom_up.")])
def test_prefix_of_a_whole_model(library: str, prefix: str) -> None:
    ours = weights(replace(VIDEO, use_abs_pos=False) if library == "mmaction2" else replace(IMAGE, cls_embed_on=False))
    del ours["head.projection.weight"], ours["head.projection.bias"]
    plain = convert_state_dict(ours, from_="slowfast", to=library)
    prefixed = {prefix + key: tensor for key, tensor in plain.items()}
    assert_same(convert_state_dict(prefixed, from_=library, to="slowfast", like=ours), ours)
    assert_same(convert_state_dict(ours, from_="slowfast", to=library, like=prefixed), prefixed)
    mixed = {**prefixed, "blocks.0.norm1.weight": torch.zeros(16)}
    with pytest.raises(ValueError, match=f"unknown {library} keys: blocks.0.norm1.weight$"):
        convert_state_dict(mixed, from_=library, to="slowfast", like=ours)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("sep_pos_embed", [False, True])
def test_resized_tables_compute_what_the_small_model_computes_at_that_size(sep_pos_embed: bool, separate: bool) -> None:
    """The models resize their tables to the input; `like` does the same once."""
    small = replace(VIDEO if sep_pos_embed else IMAGE, separate_qkv=separate)
    large = replace(small, crop_size=96, num_frames=12 if sep_pos_embed else 1, separate_qkv=not separate)
    ours, target = randomised(models.MViT(small)), models.MViT(large).double().eval()
    target.load_state_dict(convert_state_dict(ours.state_dict(), from_="mvit_kernels", to="mvit_kernels", like=target))
    x = torch.randn(2, 3, *large.clip, dtype=torch.float64)
    assert_equal_outputs(target, ours, x)


def test_flat_kernels_become_deep_ones_and_back() -> None:
    flat = weights(IMAGE)
    theirs = convert_state_dict(flat, from_="slowfast", to="timm")
    pool = "stages.1.blocks.0.attn.pool_q.weight"
    assert theirs[pool].shape == (16, 1, 3, 3) and flat["blocks.1.attn.pool_q.weight"].shape == (16, 1, 1, 3, 3)
    deep = replace(IMAGE, patch_kernel=(1, 7, 7), patch_stride=(1, 4, 4), patch_padding=(0, 3, 3))
    ours = convert_state_dict(theirs, from_="timm", to="slowfast", like=models.MViT(deep))
    assert ours["patch_embed.proj.weight"].shape == (16, 3, 1, 7, 7)
    assert_same(convert_state_dict(ours, from_="slowfast", to="timm"), theirs)


def test_timms_stages_of_equal_width_need_the_target() -> None:
    ours = weights(replace(IMAGE, dim_mul=(), head_mul=()))
    assert "stages.0.blocks.3.norm1.weight" in convert_state_dict(ours, from_="slowfast", to="timm")
    wanted = convert_state_dict(weights(IMAGE), from_="slowfast", to="timm")
    like = {key: torch.zeros(0) for key in wanted}
    staged = translate_state_dict(ours, from_="slowfast", to="timm", like=like)
    assert {*staged.missing_target} == {key for key in wanted if "shortcut" in key}


def test_errors_name_everything_at_once() -> None:
    ours = weights(IMAGE)
    ours["extra"] = ours.pop("norm.bias")
    ours["blocks.3.attn.rel_pos_t"] = torch.zeros(1, 16)
    ours["blocks.2.attn.pool_k.weight"] = torch.zeros(16, 1, 3, 3, 3)
    del ours["blocks.1.attn.qkv.weight"]
    with pytest.raises(ValueError) as error:
        convert_state_dict(ours, from_="slowfast", to="timm")
    assert str(error.value) == (
        "convert_state_dict: unknown slowfast keys: extra; "
        "slowfast keys without a place in timm: blocks.3.attn.rel_pos_t; "
        "missing slowfast keys: blocks.0.attn.rel_pos_t, blocks.1.attn.qkv.weight, blocks.1.attn.rel_pos_t, "
        "blocks.2.attn.rel_pos_t, norm.bias; "
        "slowfast tensors that do not fit: blocks.2.attn.pool_k.weight has shape (16, 1, 3, 3, 3), "
        "a 2D convolution needs a kernel of 1 in time"
    )


def test_missing_keys_of_the_target() -> None:
    ours = weights(replace(IMAGE, cls_embed_on=False, use_abs_pos=False, rel_pos_spatial=False))
    with pytest.raises(ValueError, match=r"missing torchvision keys: pos_encoding\.class_token$"):
        convert_state_dict(ours, from_="slowfast", to="torchvision")
    like = {**ours, "blocks.0.attn.rel_pos_h": torch.zeros(3, 16)}
    with pytest.raises(ValueError, match=r"missing slowfast keys: blocks\.0\.attn\.rel_pos_h$"):
        convert_state_dict(ours, from_="slowfast", to="slowfast", like=like)


@pytest.mark.parametrize("separate", [False, True])
def test_every_projection_without_a_place_is_listed(separate: bool) -> None:
    ours = weights(replace(IMAGE, separate_qkv=separate))
    like = convert_state_dict(ours, from_="slowfast", to="timm")
    like = {key: tensor for key, tensor in like.items() if "stages.0.blocks.0.attn.qkv" not in key}
    converted = translate_state_dict(ours, from_="slowfast", to="timm", like=like)
    names = ("q", "k", "v") if separate else ("qkv",)
    assert {*converted.homeless} == {f"blocks.0.attn.{x}.{p}" for x in names for p in ("weight", "bias")}
    assert_same(converted.state_dict, like)


@pytest.mark.parametrize(
    ("key", "shape", "why"),
    [
        ("pos_embed", (1, 300, 16), "has shape (1, 257, 16), the target (1, 300, 16): only tables of square grids"),
        ("pos_embed", (1, 256, 16), "has shape (1, 257, 16), the target (1, 256, 16): only tables of square grids"),
        ("head.projection.weight", (9, 64), "has shape (7, 64), the target (9, 64)"),
        ("blocks.1.attn.pool_q.weight", (16, 1, 3, 3, 3), "has shape (16, 1, 1, 3, 3), the target (16, 1, 3, 3, 3)"),
        ("blocks.1.attn.rel_pos_h", (7, 8), "has shape (15, 16), the target (7, 8)"),
    ],
)
def test_tensors_that_do_not_fit_the_target(key: str, shape: tuple[int, ...], why: str) -> None:
    ours = weights(IMAGE)
    with pytest.raises(ValueError) as error:
        convert_state_dict(ours, from_="slowfast", to="slowfast", like={**ours, key: torch.zeros(shape)})
    assert str(error.value).startswith(f"convert_state_dict: slowfast tensors that do not fit: {key} {why}")


def test_a_joint_table_of_several_frames_is_not_resized() -> None:
    ours = weights(replace(VIDEO, sep_pos_embed=False))
    like = weights(replace(VIDEO, sep_pos_embed=False, crop_size=96))
    with pytest.raises(ValueError, match="a table of several frames does not say its grid"):
        convert_state_dict(ours, from_="slowfast", to="slowfast", like=like)


def test_detectron2_resizes_the_class_tokens_row_that_it_does_not_use() -> None:
    ours = weights(replace(IMAGE, cls_embed_on=False))
    del ours["head.projection.weight"], ours["head.projection.bias"]
    ours["pos_embed"] = torch.cat((torch.full((1, 1, 16), 7.0), torch.ones(1, 256, 16)), dim=1)
    theirs = convert_state_dict(ours, from_="slowfast", to="detectron2")
    like = {**theirs, "pos_embed": torch.zeros(1, 1 + 81, 16)}
    resized = convert_state_dict(theirs, from_="detectron2", to="detectron2", like=like)["pos_embed"]
    assert resized[0, 0].eq(7.0).all() and resized[0, 1:].eq(1.0).all()


def test_half_precision_tables_are_resized_in_float32() -> None:
    ours = {name: tensor.bfloat16() for name, tensor in weights(IMAGE).items()}
    like = weights(replace(IMAGE, crop_size=96))
    resized = convert_state_dict(ours, from_="slowfast", to="slowfast", like=like)
    exact = convert_state_dict(
        {name: tensor.double() for name, tensor in ours.items()}, from_="slowfast", to="slowfast", like=like
    )
    assert all(tensor.dtype == torch.bfloat16 for tensor in resized.values())
    for name, tensor in exact.items():
        torch.testing.assert_close(resized[name], tensor.bfloat16(), rtol=2**-7, atol=1e-6)


def test_uneven_projections_are_named() -> None:
    ours = weights(replace(IMAGE, separate_qkv=True))
    ours["blocks.0.attn.k.weight"] = torch.zeros(8, 16)
    with pytest.raises(ValueError, match=r"k.weight is one of q, k, v with shapes \(16, 16\), \(8, 16\), \(16, 16\)"):
        convert_state_dict(ours, from_="slowfast", to="timm")
    fused = weights(replace(IMAGE, rel_pos_spatial=False))
    fused["blocks.0.attn.qkv.bias"] = torch.zeros(47)
    with pytest.raises(ValueError, match=r"qkv.bias has shape \(47,\), rows for q, k and v alike are right"):
        convert_state_dict(fused, from_="slowfast", to="pytorchvideo")


def test_other_libraries_and_other_values_are_refused() -> None:
    with pytest.raises(ValueError, match="from_ is 'keras', one of mvit_kernels, slowfast, mvit, torchvision, "):
        convert_state_dict({}, from_="keras", to="timm")
    with pytest.raises(ValueError, match="to is 'Timm', one of"):
        convert_state_dict({}, from_="timm", to="Timm")
    with pytest.raises(TypeError, match=r"state_dict\['model_state'\] is a dict, a tensor is right.*'model_state'"):
        convert_state_dict({"model_state": {}}, from_="slowfast", to="timm")  # type: ignore[dict-item]
