"""A folder of this machine as a source: read in place by `pread`, never mapped, never written.

The files may be links (a snapshot in the Hugging Face cache is made of them), but what they lead to must be a regular
file: a pipe would block its reader for ever, a device has no end. A file is opened once; if it changes while it is
read, that is said instead of using half of each.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from registry.errors import AccessDenied, ModelNotFound, SourceUnavailable

CHUNK = 1 << 20


class Folder:
    """The regular files directly inside one folder. It declares no digests."""

    revision = ""

    def __init__(self, path: Path, title: str) -> None:
        """`title` is also the `url`. Raises ModelNotFound, AccessDenied, SourceUnavailable."""
        self.title = self.url = title
        self._path = path
        self._open: dict[str, tuple[int, os.stat_result]] = {}
        try:
            with os.scandir(path) as entries:
                self._names = sorted(entry.name for entry in entries if _is_regular(entry))
        except OSError as error:
            raise _unreadable(title, error) from None

    def names(self) -> list[str]:
        """Names of the regular files, links to such included."""
        return list(self._names)

    def size(self, name: str) -> int:
        """Length in bytes, as it was when the file was opened. Raises SourceUnavailable."""
        return self._file(name)[1].st_size

    def digest(self, name: str) -> str | None:
        """None: a folder declares nothing."""
        return None

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises SourceUnavailable."""
        descriptor, _ = self._file(name)
        parts = []
        while size > 0:
            try:
                part = os.pread(descriptor, min(size, 1 << 30), offset)
            except OSError as error:
                raise self._unread(name, error) from None
            if not part:
                raise SourceUnavailable(f"`{name}` of `{self.title}` ends before byte {offset + size:,}", _CHANGED)
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def stream(self, name: str) -> Iterator[bytes]:
        """The whole file in order. Raises SourceUnavailable, also when it changed since it was opened."""
        descriptor, before = self._file(name)
        for offset in range(0, before.st_size, CHUNK):
            yield self.read(name, offset, min(CHUNK, before.st_size - offset))
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise SourceUnavailable(f"`{name}` of `{self.title}` changed while it was read", _CHANGED)

    def close(self) -> None:
        """Close the files."""
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _file(self, name: str) -> tuple[int, os.stat_result]:
        if name not in self._open:
            if name not in self._names:
                raise SourceUnavailable(f"`{self.title}` has no file `{name}`")
            self._open[name] = self._opened(name)
        return self._open[name]

    def _opened(self, name: str) -> tuple[int, os.stat_result]:
        try:
            # It was a regular file when the folder was listed; a pipe put in its place must not make us wait.
            descriptor = os.open(self._path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self._unread(name, error) from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise SourceUnavailable(f"`{name}` of `{self.title}` is no regular file")
        return descriptor, status

    def _unread(self, name: str, error: OSError) -> SourceUnavailable:
        why = f"`{name}` of `{self.title}` cannot be read: {error.strerror}"
        return SourceUnavailable(
            why, "check the file, its rights and its disk; the daemon's user must be able to read it"
        )


_CHANGED = "wait until whatever writes to the folder has finished, then pull again"


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file() and entry.name.isprintable()
    except OSError:
        return False  # a link that leads nowhere, or in a circle


def _unreadable(title: str, error: OSError) -> ModelNotFound | AccessDenied | SourceUnavailable:
    if isinstance(error, FileNotFoundError):
        return ModelNotFound(f"there is no folder `{title}`", "check the path; a model of a hub is named `org/repo`")
    if isinstance(error, NotADirectoryError):
        return ModelNotFound(f"`{title}` is no folder", "name the folder that holds `config.json` and the weights")
    if isinstance(error, PermissionError):
        return AccessDenied(f"the daemon may not read `{title}`", "give its user the right to read the folder")
    return SourceUnavailable(f"`{title}` cannot be read: {error.strerror}")
