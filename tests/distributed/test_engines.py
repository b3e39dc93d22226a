"""DDP, FSDP2, tensor parallel and the long-clip recipe on two processes: gradients equal to one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ways.hosts import assert_same

pytest.importorskip("torchvision")
if not torch.distributed.is_available():
    pytest.skip("torch is built without torch.distributed", allow_module_level=True)

NAMES = (
    "ddp",
    "fsdp, accelerated before",
    "fsdp, accelerated after",
    "tensor parallel over heads",
    "long clip",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    """Every scenario in one launch: most of the time is processes starting."""
    out = tmp_path_factory.mktemp("distributed") / "results.pt"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.distributed.worker", str(out)]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return torch.load(out)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_those_of_one_process(results: dict, name: str) -> None:
    assert set(results) == set(NAMES)
    assert not isinstance(results[name], str), results[name]
    found, expected = results[name]
    assert len(found) > 10
    assert_same(found, expected)
