"""The parser, and which failures are the user's to mend: one line and status 2, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..backends import UnsupportedError
from ..video import ClipError
from . import bench, explain, info, report, triton_report, tune, verify
from .options import Parser, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0, 1 where a check of results failed, 2 where what was asked can't be done."""
    parser = Parser(prog="mvit_kernels", description="Fused kernels for Multiscale Vision Transformers.")
    commands = parser.add_subparsers(
        required=True, metavar="{bench,report,info,explain,verify,triton-report,tune}", parser_class=Parser
    )
    for command in (bench, report, info, explain, verify, triton_report, tune):
        command.add_parser(commands)
    args = parser.parse_args(arguments)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of the output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails in turn
        return 0
    except (UsageError, ClipError, UnsupportedError) as error:
        print(f"mvit_kernels: {error}", file=sys.stderr)
        return 2
