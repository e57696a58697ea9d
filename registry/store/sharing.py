"""Files that the store has in common with another program: taken over by a reflink or a hard link, without a copy.

A reflink is a file of its own, whose blocks the disk shares until one of the two changes. A hard link is the same file
by another name, and its owner may change it. So its mode is left alone, and `shared/sha256-…` notes the state (inode,
size, times) in which its bytes had that digest. In another state it is hashed again before it is used.
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


class Shared:
    """The notes on shared blobs of one store. May be used by several threads."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "shared"
        self._lock = threading.Lock()
        self._noted: dict[str, str] | None = None

    def note(self, digest: str, path: Path) -> None:
        """Note that the blob's bytes have the digest in the state that it is in now. Raises OSError."""
        self._write(digest, _state(path.lstat()))

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
            if self._notes()[digest] == _state(status):
                return True
            try:
                with path.open("rb") as file:
                    found, after = hashlib.file_digest(file, "sha256").hexdigest(), _state(os.fstat(file.fileno()))
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


def _state(status: os.stat_result) -> str:
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
