"""The model of bytes moved, on every published layer."""

from __future__ import annotations

import pytest

from mvit_kernels.cli import main
from mvit_kernels.models import layer_shapes
from mvit_kernels.triton_kernels import matrix, traffic


@pytest.mark.parametrize("model", matrix.MODELS)
def test_pooling_moves_at_most_15_percent_more_than_it_must(model: str) -> None:
    for layer in layer_shapes(model):
        if layer.pool_kv is not None:
            found = traffic.pooling(layer, 2)
            assert found.must <= found.does <= 1.15 * found.must < found.eager, layer


@pytest.mark.parametrize("model", matrix.MODELS)
def test_attention_moves_less_than_every_alternative(model: str) -> None:
    for layer in layer_shapes(model):
        found = traffic.attention(layer, 2)
        assert found.must <= found.does < found.flex <= found.sdpa < found.eager, layer


def test_the_command_prints_the_table_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triton-report", "--bytes", "--model", "mvit_v2_s_16x4"]) == 0
    text = capsys.readouterr().out
    assert "a model, not measured" in text
    assert any(line.startswith("0 | 25089 | 25089 | 393 | attention | ") for line in text.splitlines())


def test_the_report_refuses_to_run_in_the_interpreter(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["triton-report", "--arch", "sm90"]) == 2
    assert "TRITON_INTERPRET=1 is set" in capsys.readouterr().err
