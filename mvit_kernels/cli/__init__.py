"""The command line: `python -m mvit_kernels {bench,info,explain,verify}`."""

from .main import main

__all__ = ["main"]
