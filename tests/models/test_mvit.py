"""The model around the blocks: position, input sizes, summary, head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mvit_kernels import models

TINY: dict[str, Any] = {
    "embed_dim": 8,
    "depth": 3,
    "dim_mul": ((1, 2.0),),
    "head_mul": ((1, 2.0),),
    "pool_q_stride": ((0, 1, 1, 1), (1, 1, 2, 2), (2, 1, 1, 1)),
    "num_frames": 4,
    "crop_size": 32,
    "num_classes": 5,
}


def tiny(name: str, **options: Any) -> models.MViT:
    torch.manual_seed(0)
    return models.create(name, **{**TINY, **options}).eval()


def clip(*shape: int) -> Tensor:
    return torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["mvit_v1_b_16x4", "mvit_v2_s_16x4", "maskfeat_s_16x4_finetune"])
@pytest.mark.parametrize("size", [(4, 32, 32), (6, 32, 32), (4, 40, 24), (1, 32, 48), (5, 33, 47)])
def test_any_frame_count_and_crop_size_runs(name: str, size: tuple[int, int, int]) -> None:
    logits = tiny(name)(clip(*size))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


def test_an_image_is_a_clip_of_one_frame() -> None:
    for patch in ({}, {"patch_kernel": (1, 7, 7), "patch_stride": (1, 4, 4), "patch_padding": (0, 3, 3)}):
        model = tiny("mvit_v2_t", **patch, num_frames=1)
        image = clip(32, 48)
        assert torch.equal(model(image), model(image.unsqueeze(2)))


def test_a_2d_patch_embedding_takes_frames_one_by_one() -> None:
    model = tiny("mvit_v2_t", num_frames=1)
    tokens, grid = model.patch_embed(clip(3, 32, 48))
    assert grid == (3, 8, 12)
    frames = [model.patch_embed(clip(3, 32, 48)[:, :, t])[0] for t in range(3)]
    torch.testing.assert_close(tokens, torch.cat(frames, dim=1))


def test_non_square_model_and_input() -> None:
    model = tiny("mvit_v2_s_16x4", crop_size=(32, 64))
    assert model.blocks[0].attn.rel_pos_h.shape == (2 * 16 - 1, 8)
    assert model(clip(4, 32, 64)).isfinite().all()


def test_separate_position_embedding_is_the_sum_per_token() -> None:
    model = tiny("mvit_v1_b_16x4")
    tokens = torch.zeros(1, 2 * 8 * 8, 8)
    out = model._embed_position(tokens, (2, 8, 8))
    assert torch.equal(out[:, :1], model.cls_token + model.pos_embed_class)
    for t, h, w in ((0, 0, 0), (1, 7, 3), (0, 2, 6)):
        expected = model.pos_embed_spatial[0, h * 8 + w] + model.pos_embed_temporal[0, t]
        torch.testing.assert_close(out[0, 1 + (t * 8 + h) * 8 + w], expected)


def test_position_embeddings_are_interpolated_to_another_grid() -> None:
    model = tiny("mvit_v1_b_16x4")
    out = model._embed_position(torch.zeros(1, 3 * 4 * 16, 8), (3, 4, 16))[:, 1:]
    # Separable: the sum of the tables, each interpolated on its own.
    spatial = F.interpolate(model.pos_embed_spatial.reshape(1, 8, 8, 8).permute(0, 3, 1, 2), (4, 16), mode="bilinear")
    temporal = F.interpolate(model.pos_embed_temporal.transpose(1, 2), 3, mode="linear")
    expected = temporal[:, :, :, None, None] + spatial[:, :, None]
    torch.testing.assert_close(out, expected.flatten(2).transpose(1, 2))


def test_joint_position_embedding_keeps_its_class_row() -> None:
    model = tiny("mvit_v1_b_16", num_frames=1)
    out = model._embed_position(torch.zeros(1, 64, 8), (1, 8, 8))
    assert torch.equal(out[:, 1:], model.pos_embed[:, 1:])
    larger = model._embed_position(torch.zeros(1, 80, 8), (1, 8, 10))
    assert torch.equal(larger[:, 0], out[:, 0])
    assert model(clip(32, 40)).isfinite().all()


def test_what_the_head_sees() -> None:
    x = torch.randn(2, 7, 16)
    cls, mean, no_cls = tiny("mvit_v2_s_16x4"), tiny("maskfeat_s_16x4_finetune"), tiny("mvit_v2_t", num_frames=1)
    torch.testing.assert_close(cls._summary(x), cls.norm(x[:, 0]))
    torch.testing.assert_close(mean._summary(x), mean.norm(x[:, 1:].mean(1)))
    torch.testing.assert_close(no_cls._summary(x), no_cls.norm(x).mean(1))


def test_state_dict_names_around_the_blocks_are_slowfasts() -> None:
    common = {f"{part}.{p}" for part in ("patch_embed.proj", "norm", "head.projection") for p in ("weight", "bias")}
    position = {
        "mvit_v1_b_16x4": {"cls_token", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"},
        "mvit_v1_b_16": {"cls_token", "pos_embed"},
        "mvit_v2_s_16x4": {"cls_token"},
        "mvit_v2_t": set(),
    }
    for name, embeddings in position.items():
        names = {key for key in tiny(name).state_dict() if not key.startswith("blocks.")}
        assert names == common | embeddings


def test_slowfasts_patch_2d_weights_are_four_dimensional() -> None:
    assert tiny("mvit_v2_t").patch_embed.proj.weight.shape == (8, 3, 7, 7)


def test_training_reaches_every_parameter() -> None:
    for name in ("mvit_v1_b_16x4", "mvit_v2_s_16x4"):
        model = tiny(name, droppath_rate=0.0).train()
        model(clip(4, 32, 32)).square().sum().backward()
        assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_drop_path_grows_linearly_with_depth() -> None:
    blocks = tiny("mvit_v2_s_16x4", droppath_rate=0.2).blocks
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks] == [0.0, 0.1, 0.2]


def test_dropout_acts_in_training_only() -> None:
    model = tiny("mvit_v1_b_16x4", dropout_rate=0.3, droppath_rate=0.3)
    x = clip(4, 32, 32)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_the_head_starts_small_where_asked() -> None:
    assert tiny("maskfeat_s_16x4_finetune").head.projection.weight.abs().max() < 1e-3


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([torch.zeros(1, 3, 4, 32, 32)], TypeError, "x is a list, a tensor"),
        (torch.zeros(1, 4, 4, 32, 32), ValueError, r"x has shape \(1, 4, 4, 32, 32\), a tensor \(B, 3, T, H, W\)"),
        (torch.zeros(3, 32, 32), ValueError, r"x has shape \(3, 32, 32\), a tensor \(B, 3, T, H, W\)"),
    ],
)
def test_a_bad_input_is_named(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^MViT: {message}"):
        tiny("mvit_v2_s_16x4")(x)
