"""What the streaming pass reads from and writes to, and the places from which it can be taken up again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

_SKIPPED = 2 << 20  # bytes at once


@dataclass(frozen=True, slots=True)
class Mark:
    """A place between two slabs: all output before it descends from source bytes before it, and from nothing else.

    `tensor` (an index into the plan) and `row` come next. `offset` bytes of file `shard` are read; `state` is what its
    reader wants to know to go on from there. A mark at offset 0 says besides that all earlier files were read to their
    ends and found to be what their source declares.
    """

    tensor: int
    row: int
    shard: str
    offset: int = 0
    state: bytes = b""


class Reader(Protocol):
    """A file of the source, read once, front to back."""

    def readinto(self, target: memoryview) -> None:
        """Fill `target` (bytes, writable) with what comes next; raises where the file ends before that."""

    def state(self) -> bytes | None:
        """What another reader needs to go on from here, None where none can."""

    def finish(self) -> None:
        """Read what is left; raises unless the whole file is what its source declares."""

    def close(self) -> None:
        """Let go of it."""


# Opens a file at an offset: 0 with no state, or where a mark says.
Open = Callable[[str, int, bytes], Reader]


class Output(Protocol):
    """Where the finished file goes."""

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""

    def reached(self, mark: Mark) -> None:
        """What has been appended so far ends at this mark."""


class Feed:
    """One file of the source as it streams in, from `position` on."""

    def __init__(self, reader: Reader, position: int) -> None:
        self._reader = reader
        self.position = position

    def fill(self, target: memoryview) -> None:
        """The next bytes, as many as `target` holds."""
        self._reader.readinto(target)
        self.position += len(target)

    def skip_to(self, offset: int) -> None:
        """Drop what lies before byte `offset` of the file."""
        while self.position < offset:
            self.fill(memoryview(bytearray(min(offset - self.position, _SKIPPED))))

    def mark(self, tensor: int, row: int, shard: str) -> Mark | None:
        """The place before a row of a tensor; None where nobody could go on."""
        state = self._reader.state()
        return None if state is None else Mark(tensor, row, shard, self.position, state)

    def finish(self) -> None:
        """Read to the end, where a source compares the digest."""
        self._reader.finish()

    def close(self) -> None:
        """Let go of the source's reader."""
        self._reader.close()


def finish_unread(source: Open, shards: Iterable[str], read: Collection[str]) -> None:
    """Have those of `shards` verified of which nothing was `read`: a part of a split model may hold entries only."""
    for shard in shards:
        if shard not in read:
            with closing(Feed(source(shard, 0, b""), 0)) as feed:
                feed.finish()
