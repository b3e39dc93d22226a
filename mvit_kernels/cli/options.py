"""What the commands share: the parser's way of failing, argument types, and the options of a model run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from .. import backends
from ..backends.registry import ENVIRONMENT_VARIABLE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class UsageError(Exception):
    """The command can't do what was asked; the message is one line. The exit status is 2."""


class Parser(argparse.ArgumentParser):
    """Fails with one line that names the argument and what would be right, without the usage text."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def at_least(least: int) -> Callable[[str], int]:
    """An argument type: an int of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {least}")
        return value

    return parse


def output_path(text: str) -> Path:
    """An argument type: a file that can be written, checked now, for the run is long; it is left as it was."""
    path = Path(text)
    existed = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} can't be written: {error.strerror}") from None
    if not existed:
        path.unlink()
    return path


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which model runs, on what and how."""
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float32", help="of parameters and input (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=at_least(1), default=1, metavar="N", help="clips at once (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=at_least(1),
        nargs=3,
        metavar=("T", "H", "W"),
        help="frames, height and width of the input (default: the model's own)",
    )
    parser.add_argument(
        "--backend", choices=backends.backend_names(), help="instead of the automatic choice; refused where it can't"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help=f"CPU threads (default: {torch.get_num_threads()}, torch's choice)",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="of the random weights (default: %(default)s)"
    )


def prepare(args: argparse.Namespace) -> torch.device:
    """Set the threads asked for, and give the device; UsageError where machine or environment do not allow it."""
    forced = os.environ.get(ENVIRONMENT_VARIABLE)
    if forced and forced not in backends.backend_names():
        raise UsageError(f"{ENVIRONMENT_VARIABLE}={forced}: one of {', '.join(backends.backend_names())} is right")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA GPU on this machine")
    return torch.device(name)
