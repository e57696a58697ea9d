"""Reading the store's folders and files, so that "not there" is never confused with "cannot be read".

A function here returns None or an empty list only for a path that does not exist. Any other refusal (no permission, an
I/O error, a link to a disk that is not mounted) raises StoreFailed. If an unreadable folder of manifests counted as
empty, garbage collection would delete the blobs of all its models.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from registry.errors import StoreFailed

# A name that is too long for the file system cannot exist in it either.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def entries(folder: Path) -> list[str]:
    """The names in a folder, sorted; temporary files, which begin with a dot, are left out. Raises StoreFailed."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError as error:
        found = status(folder) if error.errno in _ABSENT else None
        if error.errno in _ABSENT and not (found and stat.S_ISLNK(found.st_mode)):
            return []
        raise _unreadable(folder, error) from None
    return sorted(name for name in names if not name.startswith("."))


def status(path: Path, *, follow: bool = False) -> os.stat_result | None:
    """The answer of `lstat` for a path, None where nothing is there. Raises StoreFailed.

    With `follow`, the state of the file to which a link leads.
    """
    try:
        return path.stat() if follow else path.lstat()
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise _unreadable(path, error) from None


def contents(path: Path, longest: int) -> bytes | None:
    """The first `longest` bytes of a file, None where nothing is there. Raises StoreFailed.

    Anything but a regular file has no bytes: a link is not followed, and a pipe, at which a reader would wait for ever,
    is not waited for.
    """
    found = status(path)
    if found is None or not stat.S_ISREG(found.st_mode):
        return b"" if found else None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(longest) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise _unreadable(path, error) from None


def twin(folder: Path, word: str) -> str:
    """The entry of a folder that differs from `word` in case only, else `word`."""
    return next((entry for entry in entries(folder) if entry.lower() == word.lower()), word)


def files_at_depth(folder: Path, depth: int, unreadable: list[StoreFailed] | None) -> Iterator[tuple[str, ...]]:
    """The paths, in parts, of everything but folders that lies exactly `depth` levels below a folder.

    Folders below that cannot be read go to `unreadable`, None to raise StoreFailed.
    """
    for entry in entries(folder):
        if depth > 1:
            try:
                yield from ((entry, *rest) for rest in files_at_depth(folder / entry, depth - 1, unreadable))
            except StoreFailed as failure:
                if unreadable is None:
                    raise
                unreadable.append(failure)
        elif not os.path.isdir(folder / entry):  # noqa: PTH112  what cannot be looked at is no known folder: it counts
            yield (entry,)


def _unreadable(path: Path, error: OSError) -> StoreFailed:
    if isinstance(error, PermissionError):
        # A path below a closed folder is refused, too; the right has to be given for the uppermost of these folders.
        closed = (folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK))
        path = next(closed, path)
        return StoreFailed(f"`{path}` may not be read by the daemon", "give the daemon's user the right to read it")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return StoreFailed(f"`{path}` is a link that leads to no folder", "mount its disk, or remove the link")
    return StoreFailed(f"`{path}` cannot be read: {error.strerror}", "check its disk; nothing was removed")
