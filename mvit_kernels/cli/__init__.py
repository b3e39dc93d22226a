"""The command line: `python -m mvit_kernels {bench,info,explain}`."""

from .main import main

__all__ = ["main"]
