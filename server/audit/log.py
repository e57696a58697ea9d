"""Writing the audit log: one writer at a time, whole lines, synced, and room kept for the lines that make room.

Every writer (the daemon, and commands that work without one) takes the lock of the folder, finds the end of the chain
and appends behind it. Bytes of a line that a dying process left half written are cut off, and a line says so. Where the
disk is full, lines go into the reserve: blocks that the file has allocated behind its end (`server/audit/reserve.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from registry.errors import RegistryError
from registry.store import fsops
from server.audit.files import CURRENT, LOCK, first_line, full_files, full_name, last_lines
from server.audit.line import NOTHING, AuditEvent, Head, boot_id, chained, link_of, now
from server.audit.reserve import keep_room
from server.config import Config
from server.values import FOREVER

# The log keeps this many bytes allocated for the time when the disk is full, and allocates twice as many at once.
RESERVE = 256 << 10
FULL_BYTES = 16 << 20
# Acts that make room, or end something: they go on where the disk is full.
FREEING = frozenset({"remove", "prune", "stop", "shutdown", "logout", "export", "key.revoke", "config.unset"})
# Full files that one turn removes: a clock that jumps takes no more than these.
_REMOVED_AT_ONCE = 2


class AuditFailed(RegistryError):
    """The audit log cannot be written, so what takes an entry in it is refused."""

    code = "audit_failed"


def audit_log(config: Config) -> AuditLog:
    """The audit log of a home."""
    return AuditLog(config.audit_folder, None if config.audit_keep == FOREVER else config.audit_keep)


class AuditLog:
    """The log in one folder. Several threads may use it, and several processes have one each."""

    def __init__(self, folder: Path, keep_seconds: float | None = None, full_bytes: int = FULL_BYTES) -> None:
        """Nothing is read or made yet. Full files go when their last line is older than `keep_seconds` (None: never).

        A file is full at `full_bytes`.
        """
        self.folder = folder
        self._keep_seconds = keep_seconds
        self._full_bytes = full_bytes
        self._descriptor = -1
        self._size = -1
        self._allocated = 0
        self._head = NOTHING
        self._boot = boot_id()
        self._one_at_a_time = threading.Lock()
        self.reserve_offered = True
        """Whether the file system keeps room behind the end of a file."""

    def append(self, events: Sequence[AuditEvent], *, durable: bool = True, from_reserve: bool = True) -> Head:
        """Write events behind the end of the chain; its new head. `durable` waits until they are on the disk.

        Without `from_reserve` nothing is written while the reserve is not whole. Raises AuditFailed.
        """
        with self._locked():
            if not from_reserve:
                self._fill_reserve()
            self._turn()
            self._write(events)
            if durable:
                os.fsync(self._descriptor)
            with contextlib.suppress(OSError):  # the next one that needs room says so
                self._fill_reserve()
            return self._head

    def require_room(self) -> None:
        """Raise AuditFailed unless the log can be written and its reserve is whole."""
        with self._locked():
            self._fill_reserve()

    def head(self) -> Head:
        """The end of the chain. Raises AuditFailed."""
        with self._locked():
            return self._head

    def close(self) -> None:
        """Give the file up; the next use opens it again."""
        with self._one_at_a_time:
            self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = self._size = -1

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the one writer: the file is open, and its end known. OSErrors become AuditFailed."""
        try:
            with self._one_at_a_time, folder_lock(self.folder):
                self._open()
                yield
        except OSError as error:
            with self._one_at_a_time:
                self._close()
            full = error.errno in fsops.FULL
            why = "the disk is full" if full else error.strerror or type(error).__name__
            hint = "`lm rm` and `lm prune` make room" if full else "check the folder, its owner and its disk"
            raise AuditFailed(f"the audit log in `{self.folder}` cannot be written: {why}", hint) from None

    def _open(self) -> None:
        """Open the file, made if need be, and find the end of the chain, unless both are known."""
        path = self.folder / CURRENT
        if self._descriptor >= 0 and not _is(self._descriptor, path):
            self._close()  # another process turned it
        if self._descriptor < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o600)
            fsops.fsync_dir(self.folder)
        size = os.fstat(self._descriptor).st_size
        if size != self._size:
            self._find_end(path, size)

    def _find_end(self, path: Path, size: int) -> None:
        lines, torn = last_lines(path)
        head = _head_of(lines)
        if head is None and size > len(torn):
            raise AuditFailed(
                f"the end of the audit log `{path}` is damaged, so nothing can be added to it",
                "`lm audit verify` says where; move the folder away to begin a new log",
            )
        if head is None and (earlier := full_files(self.folder)):
            head = _head_of(last_lines(earlier[-1])[0])
        self._head = head or NOTHING
        self._size = self._allocated = size
        if torn:
            self._mend(torn)

    def _mend(self, torn: bytes) -> None:
        """Cut off what a dying process left of a line, and say so."""
        os.ftruncate(self._descriptor, self._size - len(torn))
        self._size = self._allocated = self._size - len(torn)
        more = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
        self._write([AuditEvent("lm", "audit.mended", CURRENT, more=more)])
        os.fsync(self._descriptor)

    def _turn(self) -> None:
        """Begin a new file where this one is full; old ones go when their time is over."""
        if self._size < self._full_bytes:
            return
        path = self.folder / CURRENT
        first = link_of(first_line(path))
        name = full_name(first.seq if first else self._head.seq + 1)
        if (self.folder / name).exists():
            return
        os.fsync(self._descriptor)
        path.rename(self.folder / name)
        fsops.fsync_dir(self.folder)
        head = self._head
        self._close()
        self._open()
        assert self._head == head
        self._write([AuditEvent("lm", "audit.turned", name)])
        self._remove_old()

    def _remove_old(self) -> None:
        """Remove files whose last line is older than they are kept: the oldest, a few at most."""
        if self._keep_seconds is None:
            return
        for path in full_files(self.folder)[:_REMOVED_AT_ONCE]:
            last = link_of((last_lines(path)[0] or [b""])[-1])
            if last is None or path.stat().st_mtime > now()[0] - self._keep_seconds:
                return
            self._write([AuditEvent("lm", "audit.removed", path.name, more={"until": last.seq, "head": last.hash})])
            os.fsync(self._descriptor)
            path.unlink()

    def _write(self, events: Sequence[AuditEvent]) -> None:
        head, data = self._head, bytearray()
        for event in events:
            line, head = chained(event, head, self._boot)
            data += line
        before, written = self._size, 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, before)
            raise
        self._size, self._head = before + written, head

    def _fill_reserve(self) -> None:
        """Allocate room behind the end of the file, unless there is enough. Raises OSError."""
        if self.reserve_offered and self._allocated - self._size < RESERVE:
            self.reserve_offered = keep_room(self._descriptor, self._size, 2 * RESERVE)
            self._allocated = self._size + 2 * RESERVE


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which is made if need be. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    ours: Any = os.fstat(descriptor)
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _head_of(lines: list[bytes]) -> Head | None:
    """The head by the last line that is as it was written; None where there is none."""
    return next((link.head for line in reversed(lines) if (link := link_of(line))), None)
