"""Importing the kernels asks no driver, so they can be compiled, interpreted and packaged where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import pkgutil, importlib, torch
from triton.runtime import driver

def asked(*args, **kwargs):
    raise AssertionError("a driver was asked")

torch._C._cuda_init = torch._C._cuda_getDeviceCount = asked
for name in ("is_available", "device_count", "current_device", "get_device_capability", "get_device_properties"):
    setattr(torch.cuda, name, asked)
type(driver).active = type(driver).default = property(asked)

import mvit_kernels
import mvit_kernels.triton_kernels as package
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
"""


@pytest.mark.parametrize("interpreted", [False, True])
def test_importing_every_module_asks_no_driver(interpreted: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_INTERPRET": "1"} if interpreted else {}
    command = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
