"""The source and the output of the streaming pass, and the marks from which a stopped pass is resumed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

_SKIP_BYTES = 2 << 20  # the most that is read at once to be dropped


@dataclass(frozen=True, slots=True)
class Mark:
    """A place between two slabs at which a pass can stop and another one can resume.

    The output up to the mark is made of the source bytes before the mark, and of no others.

    - `tensor`, `row`: the next row to write is number `row` of tensor number `tensor` of the plan.
    - `shard`, `offset`: the next byte to read is number `offset` of the source's file `shard`. At offset 0, all files
      before `shard` were read to their ends and verified.
    - `state`: `Reader.state()` at that byte; a new reader of `shard` needs it.
    """

    tensor: int
    row: int
    shard: str
    offset: int = 0
    state: bytes = b""


class Reader(Protocol):
    """A file of the source, read once, front to back; `registry.sources.base.FileReader` is its other side."""

    def readinto(self, target: memoryview) -> None:
        """Fill `target` (writable bytes) with the next bytes; raises where the file ends before."""

    def state(self) -> bytes | None:
        """The state that another reader needs to go on from here; None when no reader can."""

    def finish(self) -> None:
        """Read the rest of the file; raises unless the whole has the digest that the source declares."""

    def close(self) -> None:
        """Close the file."""


Open = Callable[[str, int, bytes], Reader]
"""Opens a file of the source: (shard, offset, state), as a `Mark` has them; (shard, 0, b"") is the file's beginning."""


class Output(Protocol):
    """The file that a pass writes, such as `registry.store.partial.Partial`."""

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""

    def reached(self, mark: Mark) -> None:
        """Note that the bytes written so far end at this mark."""


class Feed:
    """A reader of one file of the source that counts its bytes: the next one is number `position` of the file."""

    def __init__(self, reader: Reader, position: int) -> None:
        self._reader = reader
        self.position = position

    def fill(self, target: memoryview) -> None:
        """The next bytes, as many as `target` holds."""
        self._reader.readinto(target)
        self.position += len(target)

    def skip_to(self, offset: int) -> None:
        """Read and drop the bytes before byte `offset` of the file."""
        while self.position < offset:
            self.fill(memoryview(bytearray(min(offset - self.position, _SKIP_BYTES))))

    def mark(self, tensor: int, row: int, shard: str) -> Mark | None:
        """The mark at this position, with the row that comes next; None when no reader could go on from here."""
        state = self._reader.state()
        return None if state is None else Mark(tensor, row, shard, self.position, state)

    def finish(self) -> None:
        """Read to the end, where the source compares the digest; raises if it is wrong."""
        self._reader.finish()

    def close(self) -> None:
        """Close the source's reader."""
        self._reader.close()


def verify_unread(source: Open, shards: Iterable[str], shards_read: Collection[str]) -> None:
    """Verify the files that the pass had no reason to read: a part of a split model may hold metadata only."""
    for shard in shards:
        if shard not in shards_read:
            with closing(Feed(source(shard, 0, b""), 0)) as feed:
                feed.finish()
