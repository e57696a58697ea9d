"""A file on its way into the store, and the journal from which its making goes on after any accident.

    ingest/id/data       the output so far
    ingest/id/journal    facts of the pull, and two checkpoints: where the current source file began, and the latest

A `Checkpoint` says how much of the source was consumed (file, offset, state of its hash), how long the output was then,
and the state of the output's own hash. It is journalled only after the output up to it is on the disk. After kill -9 or
a power cut the output is cut back to the latest checkpoint, and the source is read on from there; only the bytes behind
it are fetched twice. A failed fsync ends the pull: lost bytes can only lie behind the latest checkpoint.

Every byte in the store descends from checked bytes, though a resumed pull never reads a byte again. The hash of the
source file goes on from its state at exactly the place where the output was cut. So at the end of the file its digest
covers the bytes of all runs, each once, and each output byte was made of bytes that it covers. If the digest is wrong,
the output is cut back to where that file began; all before it was verified in the same way, which is what a position at
offset 0 says. The journal belongs to one fingerprint: header, origins of all tensors, level, revision and version; with
any other the pull starts anew. A commit happens only after the last file was verified.
"""

from __future__ import annotations

import os
import stat
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from registry.sha256 import Sha256
from registry.store import fsops, reading, sharing
from registry.store.fsops import plainly

# A checkpoint is journalled after this many bytes of source, or seconds, unless the disk is still busy with the last.
EVERY_BYTES = 48 << 20
EVERY_SECONDS = 2.0
JOURNAL = "journal"
DATA = "data"
_LONGEST = 1 << 20

# How a file was taken over without a copy; "" where it was not.
Adopted = Literal["", "reflink", "link", "place"]


class PullFacts(msgspec.Struct, frozen=True):
    """The facts of a pull, which its journal keeps.

    `title` is the reference that the user gave, `source` the place it comes from, `size` the length of the finished
    file in bytes. `fingerprint` stands for everything that decides the file. `pre` is the pre-tokenizer's name where
    the user gave it.
    """

    title: str
    source: str
    revision: str
    level: str
    reason: str
    fingerprint: str
    size: int
    pre: str = ""


class SourcePosition(Protocol):
    """A position of the streaming pass in the source. Offset 0 begins a file: all files before it were verified."""

    @property
    def tensor(self) -> int:
        """The output tensor that comes next."""

    @property
    def row(self) -> int:
        """The row of it."""

    @property
    def shard(self) -> str:
        """The source file."""

    @property
    def offset(self) -> int:
        """Bytes of it that were consumed."""

    @property
    def state(self) -> bytes:
        """The state from which its reader goes on."""


class Checkpoint(msgspec.Struct, frozen=True):
    """A position, and the output's length and hash there."""

    tensor: int
    row: int
    shard: str
    offset: int
    state: bytes
    size: int
    hash: bytes


class Journal(msgspec.Struct, frozen=True):
    """The record of an unfinished pull: its facts, and two checkpoints.

    `began` is the one at which the present source file began, `latest` the newest.
    """

    facts: PullFacts
    began: Checkpoint
    latest: Checkpoint


class Partial:
    """The output of a pull in its folder. `write` and `reached` are for one thread."""

    def __init__(self, folder: Path, every_bytes: int = EVERY_BYTES, every_seconds: float = EVERY_SECONDS) -> None:
        """`every_bytes` of the source, or `every_seconds`: how often a checkpoint is journalled. Raises StoreFailed."""
        self._every_bytes, self._every_seconds = every_bytes, every_seconds
        self._folder = folder
        self._path = folder / DATA
        self._file = -1
        self._hash = Sha256()
        self._adopted: Adopted = ""
        self._facts: PullFacts | None = None
        self._began: Checkpoint | None = None
        self._journalled = (0, 0.0)
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._syncing: Future[None] | None = None
        self.journal = read_journal(folder)

    def begin(self, facts: PullFacts) -> Checkpoint | None:
        """Open the output, and return the checkpoint from which to resume; None where the pull begins anew.

        Raises DiskFull, StoreFailed.
        """
        journal, self._adopted = self.journal, ""
        with plainly(self._folder.parents[1]):
            self._close_file()
            if (found := reading.status(self._path)) and (found.st_nlink > 1 or stat.S_ISLNK(found.st_mode)):
                fsops.unlink(self._path)  # another program's file, which an earlier attempt linked: never written to
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(self._path, flags, 0o600)
            fits = journal is not None and journal.facts.fingerprint == facts.fingerprint
            if journal is None or not fits or os.fstat(self._file).st_size < journal.latest.size:
                journal = self.journal = None
                fsops.unlink(self._folder / JOURNAL)
            latest = journal.latest if journal else None
            os.ftruncate(self._file, latest.size if latest else 0)
            os.lseek(self._file, 0, os.SEEK_END)
        self._facts = msgspec.structs.replace(journal.facts, title=facts.title) if journal else facts
        self._began = journal.began if journal else None
        self._hash = Sha256(latest.hash if latest else None)
        self._journalled = (latest.offset if latest else 0, time.monotonic())
        return latest

    def adopt(self, source: int, *, link: bool, place: Path | None = None) -> Adopted:
        """Make the open file `source` the whole output, without a copy: by a reflink, or with `link` by a hard link.

        With `place`, its path, it is read in place where neither can be. Its bytes must be written afterwards all the
        same: they are hashed only. No position is journalled. To be called after `begin`, before anything is written.
        Raises DiskFull, StoreFailed.
        """
        with plainly(self._folder.parents[1]):
            self._adopted = "reflink" if sharing.reflink(source, self._file) else ""
            if (link or place) and not self._adopted:
                self._adopted = self._linked(source, link, place)
        return self._adopted

    def _linked(self, source: int, link: bool, place: Path | None) -> Adopted:
        """Replace the empty output by a link to `source`; where that cannot be, it stays empty. Raises OSError."""
        fsops.unlink(self._path)
        self._close_file()
        if link and sharing.link(source, self._path):
            return "link"
        if place and sharing.place(source, place, self._path, self._folder.parents[1]):
            return "place"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return ""

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes. Raises DiskFull, StoreFailed."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        if self._adopted:
            return
        with plainly(self._folder.parents[1]):
            while view:
                view = view[os.write(self._file, view) :]

    def reached(self, position: SourcePosition) -> None:
        """Note that the output ends at this position; now and then it is journalled, while writing goes on."""
        if self._adopted:
            return
        offset, when = self._journalled
        due = position.offset - offset >= self._every_bytes or time.monotonic() - when >= self._every_seconds
        if position.offset and (not due or (self._syncing and not self._syncing.done())):
            return
        self._settle()
        checkpoint = Checkpoint(
            position.tensor,
            position.row,
            position.shard,
            position.offset,
            position.state,
            self._hash.length,
            self._hash.state(),
        )
        if not position.offset or self._began is None:
            self._began = checkpoint
        assert self._facts is not None
        self.journal = Journal(self._facts, self._began, checkpoint)
        self._journalled = (position.offset, time.monotonic())
        self._syncing = self._disk.submit(self._save, self.journal)

    def rewind(self) -> None:
        """Journal the checkpoint at which the present source file began, after its digest was wrong.

        Raises DiskFull, StoreFailed.
        """
        self._settle()
        if self.journal is not None:
            self.journal = Journal(self.journal.facts, self.journal.began, self.journal.began)
            self._save(self.journal)

    def finish(self) -> tuple[str, int]:
        """SHA-256 (hexadecimal) and length of the finished output."""
        self._settle()
        return self._hash.hexdigest(), self._hash.length

    def close(self) -> None:
        """Close the file; output and journal stay on the disk."""
        self._disk.shutdown()
        self._close_file()

    def _save(self, journal: Journal) -> None:
        with plainly(self._folder.parents[1]):
            fsops.fsync(self._path)
            fsops.replace(self._folder / JOURNAL, msgspec.json.encode(journal))

    def _settle(self) -> None:
        """Wait for the disk; raises what went wrong there."""
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            syncing.result()

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read_journal(folder: Path) -> Journal | None:
    """The journal of an ingest folder, None where there is none or it is damaged. Raises StoreFailed."""
    data = reading.contents(folder / JOURNAL, _LONGEST + 1)
    if not data or len(data) > _LONGEST:
        return None
    try:
        return msgspec.json.decode(data, type=Journal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def resumable(folder: Path) -> bool:
    """Whether a pull can go on from what lies there. Raises StoreFailed."""
    journal, status = read_journal(folder), reading.status(folder / DATA)
    return journal is not None and status is not None and status.st_size >= journal.latest.size
