"""What `import mvit_kernels` brings along: every process that uses the package waits for it."""

from __future__ import annotations

import subprocess
import sys


def test_what_is_not_needed_yet_is_not_imported() -> None:
    """torch._dynamo alone takes as long as all the rest."""
    modules = {"torch._dynamo", "triton", "torchvision", "timm", "matplotlib", "av"}
    code = (
        "import sys, torch; before = set(sys.modules); import mvit_kernels;"
        f"print(*{modules} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
