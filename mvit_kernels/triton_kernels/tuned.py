"""The user's measured launch table: a JSON file in the user's cache folder that `python -m mvit_kernels tune` writes.

Rows are those of `launch_table.ROWS` and come before them. A file that can't be read, is of another version or holds
something else is left alone, with one warning.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from . import launch_table

Row = tuple[str, str, str, int, int, int, int, int, int]

_TYPES = (str, str, str, int, int, int, int, int, int)


def path() -> Path:
    """Where the table is: XDG_CACHE_HOME or ~/.cache."""
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mvit_kernels" / "triton_launch_table.json"
    )


@cache
def rows() -> tuple[Row, ...]:
    """The table's rows, read once in a process; none where there is no table."""
    file = path()
    try:
        status = file.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            raise ValueError("others than its user can write it")
        return parse(json.loads(file.read_text()))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        warnings.warn(f"mvit_kernels: {file} is ignored: {error}", stacklevel=2)
        return ()


def parse(data: Any) -> tuple[Row, ...]:
    """Rows of a decoded file; ValueError that says what is wrong."""
    if not isinstance(data, dict) or not isinstance(data.get("rows"), list):
        raise ValueError('an object with "version" and "rows" is right')
    if data.get("version") != launch_table.VERSION:
        raise ValueError(f"it has version {data.get('version')}, {launch_table.VERSION} is right: tune again")
    return tuple(_row(row) for row in data["rows"])


def _row(row: Any) -> Row:
    fits = isinstance(row, list) and len(row) == len(_TYPES)
    if not fits or any(type(value) is not kind for value, kind in zip(row, _TYPES, strict=True)):
        raise ValueError(f"row {row}, {', '.join(launch_table.FIELDS)} are right")
    block_m, block_n, warps, stages = row[5:]
    blocks = all(n in (16, 32, 64, 128) for n in (block_m, block_n))
    if not (blocks and warps in (1, 2, 4, 8) and 1 <= stages <= 5 and min(row[3:5]) >= 0):
        raise ValueError(f"row {row}: blocks of 16 to 128, 1 to 8 warps, 1 to 5 stages are right")
    return tuple(row)


def write(new: list[Row]) -> Path:
    """Put `new` rows before those that are there, in place of rows with the same key. Readable by the user alone."""
    keys = {row[:5] for row in new}
    kept = [row for row in rows() if row[:5] not in keys]
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A rename: a reader sees the old table or the new one. mkstemp makes files that only their user can read.
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, suffix=".json")
    try:
        with os.fdopen(descriptor, "w") as out:
            json.dump({"version": launch_table.VERSION, "rows": [*new, *kept]}, out, indent=1)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
    rows.cache_clear()
    return file
