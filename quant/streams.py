"""What the streaming pass reads from and writes to, and the places from which it can be taken up again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


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
