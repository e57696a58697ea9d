"""The files of an audit log: `audit.jsonl`, which grows, and full ones named by the number of their first line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

CURRENT = "audit.jsonl"
LOCK = "audit.lock"
_FULL = re.compile(r"audit-([0-9]{12})\.jsonl")
# Longer than any line: what is read at once.
BLOCK = 1 << 20


def full_name(first: int) -> str:
    """The name of a full file by the number of its first line."""
    return f"audit-{first:012}.jsonl"


def full_files(folder: Path) -> list[Path]:
    """The full files, oldest first. Raises OSError."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if _FULL.fullmatch(name)]  # noqa: PTH208
    except FileNotFoundError:
        return []


def all_files(folder: Path) -> list[Path]:
    """All files with lines, oldest first; the last one grows. Raises OSError."""
    current = folder / CURRENT
    return [*full_files(folder), *([current] if current.exists() else [])]


def lines_of(path: Path, end: int | None = None) -> Iterator[bytes]:
    """The lines of a file, or of its first `end` bytes, with their line breaks. Raises OSError.

    A piece without a line break is what a line longer than any has, or the end of a torn one.
    """
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size if end is None else end
        while left > 0 and (line := file.readline(min(left, BLOCK))):
            left -= len(line)
            yield line


def last_lines(path: Path) -> tuple[list[bytes], bytes]:
    """The last lines of a file without their line breaks, and the bytes behind the last line break. Raises OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = max(0, size - BLOCK)
        file.seek(start)
        *lines, rest = file.read(BLOCK).split(b"\n")
    return (lines if start == 0 else lines[1:]), rest


def first_line(path: Path) -> bytes:
    """The first line of a file without its line break, b"" where there is none. Raises OSError."""
    with path.open("rb") as file:
        return file.readline(BLOCK).rstrip(b"\n")
