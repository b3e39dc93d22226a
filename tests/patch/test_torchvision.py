"""accelerate on torchvision's MViT: same outputs, same gradients, same object."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import mvit_kernels
from mvit_kernels import accelerate, accelerated, backends, explain_model, restore
from mvit_kernels.patch.swap import is_accelerated
from tests.numerics import assert_within_rule

mvit = pytest.importorskip("torchvision.models.video.mvit")


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter away from its initial zero, one or tiny value, so that each of them matters."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = 0.3 if parameter.dim() == 1 or "rel_pos" in name or "pos_encoding" in name else None
        if scale is not None:
            base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.data = base + scale * torch.randn(parameter.shape, generator=generator)
    return model


def small_model(version: int = 2, spatial=(64, 64), frames: int = 8, **changes) -> nn.Module:
    """torchvision's MViT class with the stage pattern of v1_b or v2_s, four blocks deep and narrow."""
    v2 = version == 2
    settings = [
        mvit.MSBlockConfig(
            1, 16, 16 if v2 else 32, [3, 3, 3] if v2 else [], [3, 3, 3], [1, 1, 1] if v2 else [], [1, 8, 8]
        ),
        mvit.MSBlockConfig(2, 16 if v2 else 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 4, 4]),
        mvit.MSBlockConfig(
            2, 32, 32 if v2 else 64, [3, 3, 3] if v2 else [], [3, 3, 3], [1, 1, 1] if v2 else [], [1, 2, 2]
        ),
        mvit.MSBlockConfig(4, 32 if v2 else 64, 64, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    options = {
        "residual_pool": v2,
        "residual_with_cls_embed": False,
        "rel_pos_embed": v2,
        "proj_after_attn": v2,
        "num_classes": 11,
        **changes,
    }
    torch.manual_seed(0)
    return randomised(mvit.MViT(spatial, frames, settings, **options)).eval()


def clip(frames: int = 8, height: int = 64, width: int = 64, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, frames, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


CONFIGURATIONS = {
    "v1": lambda: (small_model(1), clip()),
    "v2": lambda: (small_model(2), clip()),
    "v2 with the cls token in the residual": lambda: (small_model(2, residual_with_cls_embed=True), clip()),
    "v1 with dropout in the projection": lambda: (small_model(1, attention_dropout=0.3), clip()),
    "v2, not square": lambda: (small_model(2, spatial=(96, 64)), clip(8, 96, 64)),
    "v2, odd grid": lambda: (small_model(2, spatial=(72, 88), frames=6), clip(6, 72, 88)),
    "v1, rel pos": lambda: (small_model(1, rel_pos_embed=True), clip()),
    "v2, one frame": lambda: (
        small_model(
            2, frames=1, patch_embed_kernel=(1, 7, 7), patch_embed_stride=(1, 4, 4), patch_embed_padding=(0, 3, 3)
        ),
        clip(1),
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_outputs_agree_with_eager_within_the_rule(name: str, backend) -> None:
    model, x = CONFIGURATIONS[name]()
    with torch.no_grad():
        eager = model(x)
        oracle = copy.deepcopy(model).double()(x.double())
        report = accelerate(model)
        assert len(report.replaced) == 4 and not report.left_alone
        assert_within_rule(model(x), eager, oracle)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_float64_outputs_agree_with_eager(name: str, backend) -> None:
    model, x = CONFIGURATIONS[name]()
    model, x = model.double(), x.double()
    with torch.no_grad():
        eager = model(x)
        accelerate(model)
        torch.testing.assert_close(model(x), eager, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["v1", "v2", "v2, not square"])
def test_every_gradient_agrees_with_eager_in_float64(name: str, backend) -> None:
    model, x = CONFIGURATIONS[name]()
    model, x = model.double(), x.double().requires_grad_()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        return list(torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()]))

    eager = gradients()
    with accelerated(model):
        kernel = gradients()
    for a, b in zip(kernel, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * float(b.abs().max()) + 1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_outputs_agree_with_float64(dtype: torch.dtype, backend) -> None:
    model, x = CONFIGURATIONS["v2"]()
    model, x = model.to(dtype), x.to(dtype)
    with torch.no_grad():
        eager, oracle = model(x), copy.deepcopy(model).double()(x.double())
        accelerate(model)
        assert_within_rule(model(x), eager, oracle)


def test_autocast_runs_in_bfloat16_and_agrees(backend) -> None:
    model, x = CONFIGURATIONS["v2"]()
    with torch.no_grad():
        oracle = copy.deepcopy(model).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            eager = model(x)
            accelerate(model)
            with backends.record() as log:
                kernel = model(x)
    assert all(decision.problem.dtype == torch.bfloat16 for decision in log)
    assert_within_rule(kernel, eager, oracle)


def test_torchvision_models_agree_on_their_published_shape(backend) -> None:
    x = torch.randn(1, 3, 16, 224, 224, generator=torch.Generator().manual_seed(2))
    for build in (mvit.mvit_v1_b, mvit.mvit_v2_s):
        torch.manual_seed(0)
        model = randomised(build()).eval()
        with torch.no_grad():
            eager = model(x)
            assert len(accelerate(model).replaced) == 16
            kernel = model(x)
        assert float((kernel - eager).abs().max()) <= 2e-5 * float(eager.abs().max())


def test_state_dict_parameters_and_modules_stay() -> None:
    model, _ = CONFIGURATIONS["v2"]()
    before = model.state_dict()
    parameters, modules = list(model.parameters()), list(model.modules())
    accelerate(model)
    assert list(model.state_dict()) == list(before)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(isinstance(block.attn, mvit.MultiscaleAttention) for block in model.blocks)
    model.load_state_dict(before)


def test_a_loaded_state_dict_and_a_replaced_parameter_take_effect(backend) -> None:
    model, x = CONFIGURATIONS["v2"]()
    other = small_model(2)
    for parameter in other.parameters():
        parameter.data *= 1.1
    accelerate(model)
    with torch.no_grad():
        model(x)
        model.load_state_dict(other.state_dict())
        model.blocks[1].attn.rel_pos_h = nn.Parameter(2 * other.blocks[1].attn.rel_pos_h)
        model.blocks[2].attn.qkv = nn.Linear(32, 96)
        other.blocks[1].attn.rel_pos_h.data *= 2
        other.blocks[2].attn.qkv = model.blocks[2].attn.qkv
        torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-5)


def test_restore_is_exact_and_twice_is_harmless() -> None:
    model, x = CONFIGURATIONS["v2"]()
    types = [type(module) for module in model.modules()]
    with torch.no_grad():
        before = model(x)
        accelerate(model)
        second = accelerate(model)
        assert not second.replaced and len(second.already) == 4
        restore(restore(model))
        assert [type(module) for module in model.modules()] == types
        assert torch.equal(model(x), before)


def test_the_context_manager_restores_what_it_replaced_also_after_an_error() -> None:
    model, _ = CONFIGURATIONS["v2"]()
    accelerate(model.blocks[0])
    with pytest.raises(KeyError), accelerated(model) as report:
        assert len(report.replaced) == 3 and all(is_accelerated(block.attn) for block in model.blocks)
        raise KeyError
    assert [is_accelerated(block.attn) for block in model.blocks] == [True, False, False, False]


def test_print_shows_the_change() -> None:
    model, _ = CONFIGURATIONS["v2"]()
    before = repr(model)
    accelerate(model)
    assert "AcceleratedMultiscaleAttention" in repr(model) and "forward by mvit_kernels" in repr(model)
    restore(model)
    assert repr(model) == before


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_accelerated_independent_and_restorable(how: str) -> None:
    model, x = CONFIGURATIONS["v2"]()
    accelerate(model)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        twin = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    restore(model)
    assert all(is_accelerated(block.attn) for block in twin.blocks)
    assert all(type(block.attn) is mvit.MultiscaleAttention for block in restore(twin).blocks)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))


def test_train_and_eval_and_dropout_behave_as_before(backend) -> None:
    model, x = CONFIGURATIONS["v1 with dropout in the projection"]()
    model.train()

    def run() -> torch.Tensor:
        torch.manual_seed(3)
        return model(x)

    eager = run()
    accelerate(model)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(run(), eager, rtol=1e-4, atol=1e-5)


def test_hooks_on_the_layer_fire_and_hooks_inside_it_keep_the_host_forward(backend) -> None:
    model, x = CONFIGURATIONS["v2"]()
    seen: list[str] = []
    model.blocks[0].attn.register_forward_hook(lambda *_: seen.append("attn"))
    model.blocks[0].attn.project.register_forward_hook(lambda *_: seen.append("project"))
    model.blocks[1].attn.qkv.register_forward_hook(lambda *_: seen.append("qkv"))
    report = accelerate(model)
    assert [(layer.name, layer.reason) for layer in report.left_alone] == [("blocks.1.attn", "qkv has hooks")]
    with torch.no_grad():
        model(x)
        assert seen == ["project", "attn", "qkv"]
        handle = model.blocks[2].attn.pool_k.pool.register_forward_hook(lambda *_: seen.append("pool_k"))
        with pytest.warns(UserWarning, match="runs its own forward: pool_k.pool has hooks"):
            model(x)
        assert seen[-1] == "pool_k"
        handle.remove()
        with warnings.catch_warnings(), backends.record() as log:
            warnings.simplefilter("error")
            model(x)
        assert {decision.problem.op for decision in log} >= {"qkv_pool3d_norm", "pooling_attention"}


class OwnForward(mvit.MultiscaleAttention):
    def forward(self, x, thw):
        out, thw = super().forward(x, thw)
        return out + 1, thw


class NoForward(mvit.MultiscaleAttention):
    """A subclass that adds nothing to the forward."""


def test_what_is_not_covered_is_left_alone_with_the_reason() -> None:
    model, _ = CONFIGURATIONS["v2"]()
    model.blocks[0].attn.__class__ = OwnForward
    model.blocks[1].attn.__class__ = NoForward
    model.blocks[2].attn.pool_k.norm_act[0] = nn.BatchNorm1d(16)
    model.blocks[3].attn.qkv = nn.Sequential(model.blocks[3].attn.qkv)
    report = accelerate(model)
    assert {layer.name: layer.reason for layer in report.left_alone} == {
        "blocks.0.attn": "subclass overrides forward()",
        "blocks.2.attn": "pool_k.pool norm is BatchNorm1d, LayerNorm is covered",
        "blocks.3.attn": "qkv is Sequential, Linear is covered",
    }
    assert [layer.name for layer in report.replaced] == ["blocks.1.attn"]
    assert "1 of 4 attention layers" in str(report) and "left alone: blocks.0.attn  subclass overrides" in str(report)
    copied = pickle.loads(pickle.dumps(model.blocks[1].attn))
    assert is_accelerated(copied) and isinstance(copied, NoForward)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: setattr(a.pool_q, "norm_before_pool", True), "pool_q normalises before pooling"),
        (lambda a: a.pool_q.norm_act.append(nn.GELU()), "pool_q has an activation"),
        (lambda a: setattr(a.pool_q, "pool", nn.AvgPool3d(3)), "pool_q.pool is AvgPool3d"),
        (lambda a: setattr(a.pool_q, "pool", nn.Conv3d(16, 16, 3, padding=1)), "pool_q.pool has a bias"),
        (lambda a: setattr(a.pool_q, "pool", nn.Conv3d(16, 16, 3, padding=1, bias=False)), "in 1 groups"),
        (
            lambda a: setattr(
                a.pool_q, "pool", nn.Conv3d(16, 16, 3, padding=1, groups=16, bias=False, padding_mode="replicate")
            ),
            "padding mode 'replicate'",
        ),
        (lambda a: setattr(a, "forward", a.forward), "forward was replaced on the instance"),
    ],
)
def test_each_uncovered_variant_is_named(change, reason: str) -> None:
    model = small_model(2)
    change(model.blocks[0].attn)
    report = accelerate(model)
    assert [layer.name for layer in report.left_alone] == ["blocks.0.attn"]
    assert reason in report.left_alone[0].reason


def test_another_norm_layer_of_the_whole_model_is_left_alone(backend) -> None:
    model = small_model(1, norm_layer=partial(nn.LayerNorm, eps=1e-3))
    x = clip()
    with torch.no_grad():
        eager = model(x)
        assert len(accelerate(model).replaced) == 4
        torch.testing.assert_close(model(x), eager, rtol=1e-4, atol=1e-5)


def test_a_similar_class_of_an_unknown_library_is_reported() -> None:
    class MultiScaleAttention(nn.Module):
        pass

    report = accelerate(nn.Sequential(MultiScaleAttention()))
    assert not report.replaced and "no adapter for tests.patch.test_torchvision" in report.left_alone[0].reason


def test_a_model_without_such_layers_gets_a_report_that_says_so() -> None:
    assert "no multi-head pooling attention layer" in str(accelerate(nn.Linear(2, 2)))


def test_something_that_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="accelerate: model is a dict"):
        accelerate({})
    with pytest.raises(TypeError, match="restore: model is a int"):
        restore(3)


def test_wrong_grid_raises_and_leaves_the_model_usable(backend) -> None:
    model, x = CONFIGURATIONS["v2"]()
    accelerate(model)
    with torch.no_grad():
        before = model(x)
        with pytest.raises(ValueError, match="thw"):
            model.blocks[0].attn(torch.zeros(1, 10, 16), (2, 2, 2))
        assert torch.equal(model(x), before)


def test_the_grid_comes_back_as_the_host_returns_it() -> None:
    attention = small_model(2).blocks[1].attn
    x = torch.zeros(1, 1 + 4 * 16 * 16, 16)
    _, expected = attention(x, (4, 16, 16))
    accelerate(attention)
    _, grid = attention(x, (4, 16, 16))
    assert grid == expected == (4, 8, 8) and type(grid) is type(expected)


def test_explain_tells_layer_problem_and_backend(backend) -> None:
    model, x = CONFIGURATIONS["v2"]()
    accelerate(model)
    with torch.no_grad():
        explanation = explain_model(model, x)
    assert {decision.layer for decision in explanation.decisions} == {f"blocks.{i}.attn" for i in range(4)}
    assert all(decision.backend == backend for decision in explanation.decisions)
    assert "blocks.3.attn" in str(explanation) and "pooling_attention" in str(explanation)
    assert not model.blocks[0].attn._forward_hooks


def test_touched_tokens_are_used_where_the_stride_exceeds_the_kernel() -> None:
    report = accelerate(small_model(2))
    assert [layer.touched_tokens for layer in report.replaced] == [True, True, False, False]
    assert "2 of them with touched-token k/v" in str(report)


def test_threads_share_an_accelerated_model(backend) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model, x = CONFIGURATIONS["v2"]()
    accelerate(model)

    def run(_: int) -> torch.Tensor:
        with torch.no_grad(), mvit_kernels.use_backend(backend):
            return model(x)

    expected = run(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(out, expected) for out in pool.map(run, range(8)))
