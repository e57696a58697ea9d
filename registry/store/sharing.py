"""Files that the store has in common with another program: taken over without a copy.

A reflink is a file of its own, whose blocks the disk shares until one of the two changes. A hard link is the same file
by another name. Where neither can be, the blob is a symbolic link, and the file is read in place. Its owner may change
the file in both cases, and remove it in the last. So its mode is left alone, and `shared/sha256-…` notes the state
(inode, size, times) in which its bytes had that digest. In another state it is hashed again before it is used. A
symbolic link without a note is none of lm's, and is not followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import sys
import threading
from pathlib import Path

from registry.errors import StoreFailed
from registry.store import fsops, reading

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_LONGEST_NOTE = 256


def reflink(source: int, target: int) -> bool:
    """Let `target`, an empty open file, share the blocks of `source`; whether the file systems can do that."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def link(source: int, target: Path) -> bool:
    """Give the open file `source` the further name `target`; whether it is this user's own, and can have one."""
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or sys.platform != "linux":
        return False
    try:
        fsops.link(source, target)
    except OSError:
        return False
    return True


def place(source: int, path: Path, target: Path, root: Path) -> bool:
    """Let `target` lead to the file at `path`, which is open as `source`; whether it can be.

    It cannot be a file of the store at `root` itself, nor one that was replaced since it was opened.
    """
    try:
        real = path.resolve(strict=True)
        if real.is_relative_to(root.resolve()) or not os.path.samestat(real.lstat(), os.fstat(source)):
            return False
        fsops.symlink(real, target)
    except OSError:
        return False
    return True


def freed_bytes(status: os.stat_result) -> int:
    """Bytes of the disk that the removal of a blob frees, by its own state: 0 for one that has another owner too."""
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0


class Shared:
    """The notes on shared blobs of one store. May be used by several threads."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "shared"
        self._lock = threading.Lock()
        self._noted: dict[str, str] | None = None

    def note(self, digest: str, state: str) -> None:
        """Note that the blob's bytes have the digest in a state (`state_of`). Raises OSError."""
        self._write(digest, state)

    def status(self, digest: str, path: Path) -> os.stat_result | None:
        """The state of the blob at `path`, of the file elsewhere where it is read in place; None where it is gone.

        Raises StoreFailed.
        """
        found = reading.status(path)
        if found is None or not stat.S_ISLNK(found.st_mode) or digest not in self._notes():
            return found
        return reading.status(path, follow=True)

    def elsewhere(self, digest: str, path: Path) -> Path | None:
        """The place of the file that is read in place, be it there or not; None for a file of the store's own."""
        if digest not in self._notes():
            return None
        try:
            return path.readlink()
        except OSError:
            return None

    def orphans(self, blobs: Path) -> list[str]:
        """The digests of notes about blobs that are not here: a process died before it made those."""
        return [each for each in self._notes() if reading.status(blobs / each.replace(":", "-", 1)) is None]

    def forget(self, digest: str) -> None:
        """Forget a blob that is gone. Raises OSError."""
        if digest in self._notes():
            self._notes().pop(digest)
            fsops.unlink(self._path(digest))

    def is_as_noted(self, digest: str, path: Path, status: os.stat_result) -> bool:
        """Whether a blob has the bytes of its digest, by its state or by hashing it again. Raises StoreFailed."""
        if digest not in self._notes():
            return True
        with self._lock:
            if self._notes()[digest] == state_of(status):
                return True
            try:
                with path.open("rb") as file:
                    found, after = hashlib.file_digest(file, "sha256").hexdigest(), state_of(os.fstat(file.fileno()))
            except OSError as error:
                raise StoreFailed(f"`{path}` cannot be read: {error.strerror}", "check its disk") from None
            if f"sha256:{found}" != digest:
                return False
            with contextlib.suppress(OSError):  # a disk that is read-only: it is hashed again the next time
                self._write(digest, after)
            return True

    def _notes(self) -> dict[str, str]:
        if self._noted is None:
            names = reading.entries(self.folder)
            texts = {name: reading.contents(self.folder / name, _LONGEST_NOTE) or b"" for name in names}
            self._noted = {name.replace("-", ":", 1): text.decode("utf-8", "replace") for name, text in texts.items()}
        return self._noted

    def _write(self, digest: str, state: str) -> None:
        self._notes()[digest] = state
        fsops.make_folders(self.folder.parent, self.folder)
        fsops.replace(self._path(digest), state.encode())

    def _path(self, digest: str) -> Path:
        return self.folder / digest.replace(":", "-", 1)


def state_of(status: os.stat_result) -> str:
    """The state of a file: its inode, its length in bytes, and its times in nanoseconds."""
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
