"""A ring of files with samples, one JSON line each: the oldest file goes when all together would take too much.

Each file is named by the number of its first sample, and a sample's number is that and its place in the file. One
process writes, the daemon; others read meanwhile. A line that a crash tore has no end: readers leave it, and the next
writer cuts it off. Samples are not synced to the disk one by one: a power cut may cost the last seconds of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from registry.store import fsops

# The number of files that share the room of a ring.
PARTS = 8
_SUFFIX = ".jsonl"


class Ring:
    """The writer's side of a ring."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """`most_bytes`: what all files together may take. The folder is made with the first sample."""
        self._folder = folder
        self._most = most_bytes
        self._next = 0  # the number of the next sample, 0 where the files were not looked at yet
        self._size = 0  # bytes of the last file

    def append(self, line: bytes) -> int:
        """Write one sample, a line without its end, and return its number. Raises OSError; then nothing was written."""
        if not self._next:
            self._resume()
        whole = line + b"\n"
        files = files_of(self._folder)
        if not files or self._size + len(whole) > self._most // PARTS:
            files.append((self._next, self._folder / f"{self._next:012}{_SUFFIX}"))
            self._size = 0
        _make_room(files, self._most - len(whole))
        path = files[-1][1]
        try:
            fsops.append(path, whole)
        except OSError:
            with contextlib.suppress(OSError):
                fsops.cut(path, self._size)
            self._next = 0  # whatever is there is looked at anew
            raise
        self._size += len(whole)
        self._next += 1
        return self._next - 1

    def _resume(self) -> None:
        """Go on behind the last whole line; what a crash left behind it is cut off."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = files_of(self._folder)
        if not files:
            self._next, self._size = 1, 0
            return
        first, path = files[-1]
        data = path.read_bytes()
        self._size = data.rfind(b"\n") + 1
        if self._size < len(data):
            fsops.cut(path, self._size)
        self._next = first + data.count(b"\n")


def files_of(folder: Path) -> list[tuple[int, Path]]:
    """The files of a ring, the oldest first, each with the number of its first sample. Raises OSError."""
    names = [path for path in folder.glob(f"*{_SUFFIX}") if path.stem.isascii() and path.stem.isdigit()]
    return sorted((int(path.stem), path) for path in names)


def samples_behind(folder: Path, number: int) -> Iterator[tuple[int, bytes]]:
    """The samples with a higher number, in order, each with its number. Raises OSError."""
    files = files_of(folder)
    for place, (first, path) in enumerate(files):
        if place + 1 < len(files) and files[place + 1][0] <= number + 1:
            continue
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # the writer needed its room meanwhile
            continue
        whole = data[: data.rfind(b"\n") + 1].splitlines()
        yield from ((first + index, line) for index, line in enumerate(whole) if first + index > number)


def _make_room(files: list[tuple[int, Path]], most_bytes: int) -> None:
    """Remove the oldest files until all take no more than `most_bytes`; the last one stays."""
    sizes = [path.stat().st_size if path.exists() else 0 for _, path in files]
    total = sum(sizes)
    for (_, path), size in zip(files[:-1], sizes, strict=False):
        if total <= most_bytes:
            break
        fsops.unlink(path)
        total -= size
