"""Installs a built wheel where there is no compiler, beside each torch named, and runs it.

    python tools/check_wheel.py dist/mvit_kernels-*.whl --torch torch --torch torch==2.13.0+cpu

For each pair of wheel and torch: a new environment, `python -m mvit_kernels info` with a PATH that holds nothing else,
and an attention layer, forward and backward, against the reference. A wheel for CUDA loads its CUDA library beside a
torch for that CUDA, needs no GPU for it, and beside any other torch says why it does not. One line each; exit status 1
if any failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SMOKE = """
import torch, mvit_kernels
from mvit_kernels.modules import MultiHeadPoolingAttention

torch.manual_seed(0)
layer = MultiHeadPoolingAttention(
    192, 192, (2, 14, 14), num_heads=2, qkv_bias=True, kernel_q=(3, 3, 3), kernel_kv=(3, 3, 3), stride_kv=(1, 4, 4),
    rel_pos_spatial=True, rel_pos_temporal=True, residual_pooling=True,
)
x = torch.randn(1, 1 + 2 * 14 * 14, 192, requires_grad=True)

def results(backend):
    with mvit_kernels.use_backend(backend):
        out, _ = layer(x, (2, 14, 14))
        return [out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]

eager = results("eager")
scale = max(float(tensor.abs().max()) for tensor in eager)  # some gradients are zero but for rounding
for ours, expected in zip(results("cpu"), eager, strict=True):
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5 * scale)
print("torch", torch.__version__, "ok")
"""

CUDA = """
import json, torch
from mvit_kernels import _library

print(json.dumps([torch.version.cuda, _library.cuda_load_error()]))
"""


class CheckError(Exception):
    """What did not work: one line; the output is on standard error."""


def run(step: str, *command: str | Path, path: str | None = None, cwd: Path | None = None) -> str:
    env = None if path is None else {"PATH": path, "HOME": str(Path.home())}
    done = subprocess.run([str(part) for part in command], env=env, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="", file=sys.stderr)
        raise CheckError(f"{step} failed, its output is above")
    return done.stdout


def check(wheel: Path, torch: str, folder: Path) -> str:
    """Install and run one wheel beside one torch; the line that says how it went well."""
    run("making an environment", sys.executable, "-m", "venv", "--clear", folder)
    python = folder / "bin" / "python"
    run(f"installing {torch}", python, "-m", "pip", "install", "--quiet", torch, "numpy")
    run(f"installing {wheel.name}", python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel)
    nothing = folder / "nothing"
    nothing.mkdir()
    info = run("info", python, "-m", "mvit_kernels", "info", path=str(nothing), cwd=nothing)
    shown = [line for line in info.splitlines() if line.startswith(("SIMD level", "backend "))]
    smoke = run("the smoke test", python, "-c", SMOKE, path=str(nothing), cwd=nothing)
    told = run("asking for the CUDA library", python, "-c", CUDA, path=str(nothing), cwd=nothing)
    check_cuda(wheel.name, *json.loads(told))
    return "; ".join([smoke.strip(), *(" ".join(line.split()) for line in shown)])


def check_cuda(wheel: str, torch_cuda: str | None, error: str | None) -> None:
    """The CUDA library loads beside a torch for the same CUDA, and says why not beside another."""
    local = re.search(r"\+cu(\d+)\d-", wheel)
    if local is None:
        right = error is not None and error.startswith("the CUDA library was not built")
    elif torch_cuda is not None and torch_cuda.split(".")[0] == local[1]:
        right = error is None
    else:
        right = error is not None and error.startswith("the CUDA library is for ")
    if not right:
        raise CheckError(f"beside a torch for CUDA {torch_cuda} the CUDA library says: {error or 'loaded'}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    parser.add_argument("--torch", action="append", metavar="REQUIREMENT", help="may be repeated (default: torch)")
    args = parser.parse_args(arguments)
    failed = False
    for wheel in args.wheels:
        for torch in args.torch or ["torch"]:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    if not wheel.is_file():
                        raise CheckError("there is no such file")
                    print(f"{wheel.name}: {check(wheel.resolve(), torch, Path(folder))}", flush=True)
                except CheckError as error:
                    failed = True
                    print(f"{wheel.name} beside {torch}: {error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
