"""The source and the output of the streaming pass, and the marks from which a pass can go on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

_SKIPPED = 2 << 20  # bytes at once


@dataclass(frozen=True, slots=True)
class Mark:
    """A place between two slabs: the output before it depends on the source bytes before it, and on no others.

    The next row is number `row` of tensor number `tensor` of the plan. `offset` bytes of file `shard` are read, and a
    new reader of the file needs `state` to go on from there. At offset 0, all files before it were read to their ends
    and verified.
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
        """The state from which another reader can go on here, None when no reader can."""

    def finish(self) -> None:
        """Read what is left; raises unless the whole file is what its source declares."""

    def close(self) -> None:
        """Close the file."""


# Opens a file at an offset: 0 with no state, or where a mark says.
Open = Callable[[str, int, bytes], Reader]


class Output(Protocol):
    """Where the finished file goes."""

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""

    def reached(self, mark: Mark) -> None:
        """The bytes appended so far end at this mark."""


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
        """Read and drop the bytes before byte `offset` of the file."""
        while self.position < offset:
            self.fill(memoryview(bytearray(min(offset - self.position, _SKIPPED))))

    def mark(self, tensor: int, row: int, shard: str) -> Mark | None:
        """The mark before a row of a tensor; None when no reader could go on from here."""
        state = self._reader.state()
        return None if state is None else Mark(tensor, row, shard, self.position, state)

    def finish(self) -> None:
        """Read to the end, where the source compares the digest."""
        self._reader.finish()

    def close(self) -> None:
        """Let go of the source's reader."""
        self._reader.close()


def finish_unread(source: Open, shards: Iterable[str], read: Collection[str]) -> None:
    """Verify the files among `shards` that are not in `read`: a part of a split model may hold metadata only."""
    for shard in shards:
        if shard not in read:
            with closing(Feed(source(shard, 0, b""), 0)) as feed:
                feed.finish()
