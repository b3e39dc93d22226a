"""What makes Triton compile again, and what the code around the kernels may not do: read a tensor's values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mvit_kernels.models import layer_shapes, list_models
from mvit_kernels.models.shapes import LayerShape
from mvit_kernels.problem import Pool
from mvit_kernels.triton_kernels import matrix
from mvit_kernels.triton_kernels.device import record_launches

LAYER = next(layer for layer in layer_shapes("mvit_v2_s_16x4") if layer.num_kv == 393 and layer.num_q > 393)


def compiled(layer: LayerShape, op: str, batch: int) -> set[tuple]:
    """What Triton compiles for: the kernels with the kinds of their arguments and the values of their constants."""
    (case,) = [case for case in matrix.cases_of([layer], [torch.float16]) if case.op == op]
    with record_launches("sm90") as recording:
        matrix.launches(case, batch)()
    return {
        (kernel.__name__, *(_kind(kernel, i, value) for i, value in enumerate(args)), *options.items())
        for kernel, _, args, options in recording.launches
    }


def _kind(kernel, i: int, value: object) -> object:
    name = list(kernel.arg_names)[i]
    if name.isupper():
        return value
    return value.dtype if isinstance(value, torch.Tensor) else type(value)


def on_grid(layer: LayerShape, height: int, width: int) -> LayerShape:
    """The layer on another grid of tokens."""
    grid = (layer.grid[0], height, width)
    assert layer.pool_q is not None and layer.pool_kv is not None
    return replace(layer, grid=grid, grid_q=layer.pool_q.out_grid(grid), grid_kv=layer.pool_kv.out_grid(grid))


@pytest.mark.parametrize("op", matrix.OPS)
def test_another_image_size_compiles_nothing_again(op: str) -> None:
    # 8 x 7 x 7 and 8 x 5 x 13 keys: both end 9 keys behind a tile of 64, and their rel-pos rows take as many registers.
    other = on_grid(LAYER, 40, 104)
    assert other.num_kv % 64 == LAYER.num_kv % 64
    first, second = compiled(LAYER, op, 16), compiled(other, op, 16)
    assert first == second


@pytest.mark.parametrize("op", matrix.OPS)
def test_another_batch_compiles_nothing_again(op: str) -> None:
    assert compiled(LAYER, op, 50) == compiled(LAYER, op, 51) == compiled(LAYER, op, 64)
    # With so many programs no sum over the queries is cut, and the gradients of k and v need no float32 parts.
    assert compiled(LAYER, op, 150) == compiled(LAYER, op, 151) == compiled(LAYER, op, 300)


def test_another_padding_and_stride_compile_no_pooling_forward_again() -> None:
    assert LAYER.pool_kv is not None
    other = replace(LAYER, pool_kv=Pool("conv", (1, 5, 3), (1, 4, 3), (0, 2, 1)))
    first, second = (
        {key for key in compiled(layer, "pool", 2) if key[0] == "pool_forward"} for layer in (LAYER, other)
    )
    assert first == second


@pytest.mark.parametrize("model", list_models())
def test_launching_reads_no_values_so_cuda_graphs_can_capture(model: str) -> None:
    # Meta tensors have none: .item(), a copy to the host or a branch on data would raise.
    for case in matrix.cases([model], [torch.float16, torch.float32]):
        with record_launches("sm80") as recording:
            matrix.launches(case)()
        assert recording.launches
        assert all(0 < programs < 2**31 for _, programs, _, _ in recording.launches)


def test_one_hundred_thousand_queries_and_more_scores_than_32_bits_count() -> None:
    layer = next(layer for layer in layer_shapes("mvit_v2_l_40x3") if layer.num_q == 121681)
    batch = 8
    assert batch * layer.scores > 2**31
    for op in matrix.OPS:
        (case,) = [case for case in matrix.cases_of([layer], [torch.float16]) if case.op == op]
        with record_launches("sm90") as recording:
            matrix.launches(case, batch)()
        for kernel, programs, args, _ in recording.launches:
            assert 0 < programs < 2**31, kernel.__name__
            # No tensor has the extent of the scores.
            assert all(arg.numel() < batch * layer.scores / 16 for arg in args if isinstance(arg, torch.Tensor))


@pytest.fixture
def float32_settings():
    yield
    torch.backends.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")  # sets the new one too
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.parametrize(
    ("setting", "precision"),
    [
        (lambda: torch.set_float32_matmul_precision("highest"), "ieee"),
        (lambda: torch.set_float32_matmul_precision("high"), "tf32"),
        (lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True), "tf32"),
        (lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"), "tf32"),
        (lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee"), "ieee"),
        (lambda: setattr(torch.backends, "fp32_precision", "tf32"), "tf32"),
    ],
    ids=["highest", "high", "allow_tf32", "new tf32", "new ieee", "new for all"],
)
@pytest.mark.parametrize("op", ["attention", "rel_pos"])
def test_float32_products_are_tf32_where_pytorchs_setting_allows_it(op, setting, precision, float32_settings) -> None:
    setting()
    (case,) = [case for case in matrix.cases_of([LAYER], [torch.float32]) if case.op == op]
    with record_launches("sm90") as recording:
        matrix.launches(case)()
    found = {args[list(kernel.arg_names).index("PRECISION")] for kernel, _, args, _ in recording.launches}
    assert found == {precision}


def test_the_three_branches_of_a_layer_are_one_launch() -> None:
    (case,) = [case for case in matrix.cases_of([LAYER], [torch.float16]) if case.op == "pool"]
    with record_launches("sm90") as recording:
        matrix.launches(case)()
    names = [kernel.__name__ for kernel, *_ in recording.launches]
    assert names[0] == "pool_forward" and names.count("pool_forward") == 1
    assert [names.count(f"pool_grad_{of}") for of in ("outputs", "inputs", "weight")] == [3, 3, 3]
