"""The only place that changes the disk: every operation that must survive a crash goes through these few functions.

Each is one step: it either happened or it did not. `hook`, set by tests, is called before and after each step with its
name and path. It may raise, or kill the process: so tests show that the store survives both at every step. Files are
made with mode 0600, folders with 0700. A failed fsync is never tried again, and the caller has to throw the file away.
The kernel may count the pages as clean although they never reached the disk (Rebello et al., "Can applications recover
from fsync failures?", USENIX ATC 2020).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from registry.errors import DiskFull, StoreFailed

TEMPORARY = ".tmp-"
FULL = (errno.ENOSPC, errno.EDQUOT)
# A disk with these errors can be read.
UNWRITABLE = (*FULL, errno.EROFS)

Hook = Callable[[Literal["before", "after"], str, Path], None]
hook: Hook | None = None


@contextmanager
def _step(operation: str, path: Path) -> Iterator[None]:
    if hook is not None:
        hook("before", operation, path)
    yield
    if hook is not None:
        hook("after", operation, path)


def mkdir(path: Path) -> None:
    """Make one folder, not its parents. It is durable once its parent is synced. Raises OSError."""
    with _step("mkdir", path):
        path.mkdir(mode=0o700)


def write(path: Path, data: bytes) -> None:
    """Make a new file with these bytes. Raises OSError, also when there is one already."""
    with _step("write", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)


def append(path: Path, data: bytes) -> None:
    """Put bytes behind the end of a file, which is made where there is none. Raises OSError."""
    with _step("append", path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "ab") as file:
            file.write(data)


def cut(path: Path, size: int) -> None:
    """Take away a file's bytes from `size` on. Raises OSError."""
    with _step("cut", path):
        os.truncate(path, size)


def fsync(path: Path) -> None:
    """Wait until a file's bytes are on the disk. Raises OSError."""
    with _step("fsync", path):
        _fsync(path, os.O_RDONLY | os.O_NOFOLLOW)


def fsync_dir(path: Path) -> None:
    """Wait until a folder's entries are on the disk. Raises OSError."""
    with _step("fsync_dir", path):
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def seal(path: Path) -> None:
    """Take away everybody's right to write to a file. Raises OSError."""
    with _step("seal", path):
        path.chmod(0o444, follow_symlinks=False) if os.chmod in os.supports_follow_symlinks else path.chmod(0o444)


def rename(source: Path, target: Path) -> None:
    """Give a file another name, replacing the file of that name. Durable once its folder is synced. Raises OSError."""
    with _step("rename", target):
        source.rename(target)


def link(source: int, target: Path) -> None:
    """Give an open file the further name `target`; Linux only. Raises OSError."""
    with _step("link", target):
        # A name below an open folder makes Python use linkat(2), which alone follows the link in /proc.
        folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(str(source), target, src_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)


def link_path(path: Path, target: Path) -> None:
    """Give the file at `path` the further name `target`. Raises OSError."""
    with _step("link", target):
        os.link(path, target, follow_symlinks=False)


def symlink(path: Path, target: Path) -> None:
    """Make `target`, which must not exist, a link that leads to `path`. Raises OSError."""
    with _step("symlink", target):
        target.symlink_to(path)


def unlink(path: Path) -> None:
    """Remove a file, which may be gone already. Raises OSError."""
    with _step("unlink", path):
        path.unlink(missing_ok=True)


def rmdir(path: Path) -> bool:
    """Remove a folder if it is empty; returns whether it is gone. Raises OSError."""
    with _step("rmdir", path):
        try:
            path.rmdir()
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            if error.errno != errno.ENOENT:
                raise
    return True


def make_folders(root: Path, path: Path) -> None:
    """Make `path` and its parents below the existing folder `root`, each durable before the next. Raises OSError."""
    if path == root or path.is_dir():
        return
    make_folders(root, path.parent)
    try:
        mkdir(path)
    except FileExistsError:
        return
    fsync_dir(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Put `data` into the file at `path`: a reader finds all of the old or all of the new bytes. Raises OSError."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    unlink(temporary)
    write(temporary, data)
    fsync(temporary)
    rename(temporary, path)
    fsync_dir(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it, following no links; it may be gone already. Raises OSError."""
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path))
        else:
            unlink(Path(entry.path))
    rmdir(path)


@contextmanager
def plainly(root: Path) -> Iterator[None]:
    """Turn OSErrors of the block into DiskFull or StoreFailed, which name `root`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(
                f"the disk of `{root}` is full", "make room, or set `LM_HOME` to a folder elsewhere"
            ) from None
        why = error.strerror or type(error).__name__
        raise StoreFailed(f"the store at `{root}` cannot be used: {why}", "check the folder and its disk") from None


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # macOS: fsync alone leaves the bytes in the drive's cache
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
