"""accelerate(model, scope="block"): whole blocks of torchvision's MViT and of our own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from mvit_kernels import accelerate, accelerated, explain_model, restore
from mvit_kernels.modules import MultiScaleBlock
from mvit_kernels.patch.swap import is_accelerated
from tests.numerics import assert_within_rule
from tests.patch.test_torchvision import CONFIGURATIONS, clip, small_model

mvit = pytest.importorskip("torchvision.models.video.mvit")

CASES = {
    **CONFIGURATIONS,
    "v1 with dropout in the MLP": lambda: (small_model(1, dropout=0.3), clip()),
    "v2, channels changed by the MLP": lambda: (small_model(2, proj_after_attn=False), clip()),
}


def tokens(channels: int) -> torch.Tensor:
    """Of the grid that the second block of a small model sees."""
    return torch.randn(2, 1 + 4 * 8 * 8, channels, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def model() -> nn.Module:
    return small_model(2)


@pytest.mark.parametrize("name", CASES)
def test_outputs_agree_with_eager_within_the_rule(name: str, backend) -> None:
    model, x = CASES[name]()
    with torch.no_grad():
        eager = model(x)
        oracle = copy.deepcopy(model).double()(x.double())
        report = accelerate(model, scope="block")
        assert [layer.scope for layer in report.replaced].count("block") == 4 and not report.left_alone
        assert_within_rule(model(x), eager, oracle)


@pytest.mark.parametrize("name", ["v1", "v2", "v2, channels changed by the MLP"])
def test_outputs_and_every_gradient_agree_with_eager_in_float64(name: str, backend) -> None:
    model, x = CASES[name]()
    model, x = model.double(), x.double().requires_grad_()

    def results() -> list[torch.Tensor]:
        out = model(x)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])]

    eager = results()
    with accelerated(model, scope="block"):
        kernel = results()
    for a, b in zip(kernel, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * float(b.abs().max()) + 1e-14)


@pytest.mark.parametrize("version", [1, 2])
def test_every_gradient_of_a_block_agrees_with_eager_within_the_rule(version: int, backend) -> None:
    block, x = small_model(version).blocks[1], tokens(16 * (3 - version))
    grad = torch.randn(2, 1 + 4 * 4 * 4, block.mlp[3].out_features, generator=torch.Generator().manual_seed(3))

    def gradients(block: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        return list(torch.autograd.grad(block(x, (4, 8, 8))[0], [x, *block.parameters()], grad.to(x.dtype)))

    eager, oracle = gradients(block, x), gradients(copy.deepcopy(block).double(), x.double())
    accelerate(block, scope="block")
    names = ["x", *dict(block.named_parameters())]
    for name, k, e, o in zip(names, gradients(block, x), eager, oracle, strict=True):
        if name == "attn.pool_k.norm_act.0.bias":  # what is added to every key alike changes no softmax
            assert float(k.abs().max()) < 1e-5 and float(o.abs().max()) < 1e-12
        else:
            assert_within_rule(k, e, o, "gradient")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_outputs_agree_with_float64(dtype: torch.dtype, backend) -> None:
    model, x = small_model(2).to(dtype), clip(dtype=dtype)
    with torch.no_grad():
        eager, oracle = model(x), copy.deepcopy(model).double()(x.double())
        accelerate(model, scope="block")
        assert_within_rule(model(x), eager, oracle)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_autocast_gives_the_dtypes_and_accuracy_of_eager(version: int, training: bool, backend) -> None:
    block, x = small_model(version).blocks[1], tokens(16 * (3 - version))

    def results(block: nn.Module, x: torch.Tensor, autocast: bool = True) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out, _ = block(x, (4, 8, 8))
        return [out, *torch.autograd.grad(out.float().square().sum(), [*block.parameters()])] if training else [out]

    with torch.set_grad_enabled(training):
        eager, oracle = results(block, x), results(copy.deepcopy(block).double(), x.double(), False)
        accelerate(block, scope="block")
        kernel = results(block, x)
    for k, e, o in zip(kernel, eager, oracle, strict=True):
        assert_within_rule(k, e, o.double(), "gradient" if training else "forward", dtype=torch.bfloat16)


def test_training_draws_the_random_numbers_of_the_host(backend) -> None:
    model, x = small_model(1, dropout=0.2, attention_dropout=0.2, stochastic_depth_prob=0.5), clip()
    model = model.double().train()

    def run() -> torch.Tensor:
        torch.manual_seed(5)
        return model(x.double())

    eager = run()
    accelerate(model, scope="block")
    torch.testing.assert_close(run(), eager, rtol=1e-9, atol=1e-9)


def test_state_dict_parameters_and_objects_stay(model: nn.Module) -> None:
    before, keys = dict(model.named_parameters()), list(model.state_dict())
    blocks = list(model.blocks)
    accelerate(model, scope="block")
    assert list(model.state_dict()) == keys
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    for old, new in zip(blocks, model.blocks, strict=True):
        assert old is new and isinstance(new, mvit.MultiscaleBlock)


def test_twice_is_harmless_and_restore_takes_everything_back(model: nn.Module) -> None:
    accelerate(model)
    first = accelerate(model, scope="block")
    assert {layer.scope for layer in first.replaced} == {"block"} and len(first.already) == 4
    second = accelerate(model, scope="block")
    assert not second.replaced and len(second.already) == 8
    restore(model)
    assert not any(is_accelerated(module) for module in model.modules())


def test_attention_scope_is_the_default_and_leaves_blocks(model: nn.Module) -> None:
    report = accelerate(model)
    assert {layer.scope for layer in report.replaced} == {"attention"}
    assert not any(is_accelerated(block) for block in model.blocks)


def test_unknown_scope_is_named(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"accelerate: scope is 'layer', one of 'attention', 'block' is right"):
        accelerate(model, scope="layer")
    assert not any(is_accelerated(module) for module in model.modules())


def test_the_report_tells_blocks_and_what_was_left_alone(model: nn.Module) -> None:
    model.blocks[2].norm2 = nn.BatchNorm1d(32)
    report = accelerate(model, scope="block")
    assert "4 of 4 attention layers on" in str(report) and "3 of 4 blocks on" in str(report)
    assert "left alone: blocks.2  norm2 is BatchNorm1d, LayerNorm is covered" in str(report)


@pytest.mark.parametrize("part", ["attn", "attn.project", "attn.project.0", "mlp", "stochastic_depth"])
def test_hooks_on_parts_of_a_block_fire_and_their_results_count(part: str, model: nn.Module, backend) -> None:
    accelerate(model, scope="block")
    with torch.no_grad():
        without = model(clip())
        seen = []
        module = model.blocks[1].get_submodule(part)

        def hook(module, args, output):
            seen.append(part)
            return (2 * output[0], output[1]) if isinstance(output, tuple) else 2 * output

        handle = module.register_forward_hook(hook)
        hooked = model(clip())
        assert seen and not torch.allclose(hooked, without)
        restore(model)
        torch.testing.assert_close(hooked, model(clip()), rtol=1e-4, atol=1e-4)
        handle.remove()


def test_a_hook_on_a_part_that_has_to_be_read_brings_the_hosts_forward_back(model: nn.Module, backend) -> None:
    accelerate(model, scope="block")
    seen = []
    model.blocks[1].norm1.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match="norm1 has hooks"), torch.no_grad():
        model(clip())
    assert seen


def test_parameters_replaced_after_acceleration_are_used(model: nn.Module, backend) -> None:
    accelerate(model, scope="block")
    with torch.no_grad():
        model(clip())
        model.blocks[0].mlp[0].weight = nn.Parameter(torch.randn_like(model.blocks[0].mlp[0].weight))
        model.blocks[1].norm1.weight.data.mul_(3)
        model.blocks[2].mlp[3].weight.data += 0.1
        changed = model(clip())
        torch.testing.assert_close(changed, restore(model)(clip()), rtol=1e-4, atol=1e-4)


def test_copies_and_pickles_stay_accelerated(model: nn.Module, backend) -> None:
    accelerate(model, scope="block")
    with torch.no_grad():
        expected = model(clip())
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(is_accelerated(block) for block in other.blocks)
            assert torch.equal(other(clip()), expected)


def test_explain_names_every_op_of_a_block(model: nn.Module) -> None:
    accelerate(model, scope="block")
    with torch.no_grad():
        decisions = explain_model(model, clip()).decisions
    ops = [decision.problem.op for decision in decisions if decision.layer == "blocks.1"]
    assert ops.count("layer_norm") == 1 and ops.count("linear") >= 2 and "pooling_attention" in ops
    assert ops[-1] == "norm_mlp"
    assert {decision.layer for decision in decisions} == {f"blocks.{i}" for i in range(4)}


OWN = {
    "v1": {"dim_out": 32},
    "v2": {"dim_out": 32, "dim_mul_in_att": True, "residual_pooling": True, "rel_pos_spatial": True},
    "max pooling, no cls": {"dim_out": 16, "mode": "max", "has_cls_embed": False},
    "dropout": {"dim_out": 32, "drop_rate": 0.3, "drop_path": 0.3},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_our_own_block_agrees_with_its_own_forward(name: str, training: bool, backend) -> None:
    torch.manual_seed(0)
    options = {"qkv_bias": True, "kernel_q": (3, 3, 3), "kernel_kv": (3, 3, 3), "stride_q": (1, 2, 2), **OWN[name]}
    block = MultiScaleBlock(16, num_heads=2, input_size=(2, 6, 6), **options).double().train(training)
    x = torch.randn(2, 72 + options.get("has_cls_embed", True), 16, dtype=torch.float64, requires_grad=True)

    def results() -> list[torch.Tensor]:
        torch.manual_seed(5)
        out, grid = block(x, (2, 6, 6))
        assert grid == [2, 3, 3]
        return [out, *torch.autograd.grad(out.square().sum(), [x, *block.parameters()])]

    own = results()
    report = accelerate(block, scope="block")
    assert [layer.scope for layer in report.replaced] == ["block"]
    for a, b in zip(results(), own, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_layer_scale_leaves_our_own_block_alone() -> None:
    block = MultiScaleBlock(16, 16, 2, (2, 4, 4), layer_scale_init_value=0.1)
    report = accelerate(block, scope="block")
    assert not report.replaced and "layer scale" in str(report)
