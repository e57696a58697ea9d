"""The streaming pass between memory and a file, for tests that want a model rather than a pull."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from quant.errors import MalformedFile
from quant.feedback.matrix import Feedback
from quant.importance import Importance
from quant.levels.harms import MeasuredHarms
from quant.plan import ModelPlan, Progress
from quant.stream.pipeline import Conversion
from quant.stream.streams import Mark

# The bytes of a source file, in order, in pieces of any size.
Stream = Callable[[str], Iterable[bytes]]


@dataclass(frozen=True)
class Written:
    """A finished file: `sha256` in hex, `size` in bytes."""

    sha256: str
    size: int

    @classmethod
    def at(cls, path: Path) -> Written:
        data = path.read_bytes()
        return cls(hashlib.sha256(data).hexdigest(), len(data))


class Pieces:
    """A reader of pieces; its state is the number of bytes before it."""

    def __init__(self, shard: str, pieces: Iterable[bytes], offset: int = 0) -> None:
        self.shard, self.pieces = shard, iter(pieces)
        self.at, self.rest = 0, memoryview(b"")
        self.readinto(memoryview(bytearray(offset)))

    def readinto(self, target: memoryview) -> None:
        while len(target):
            if not self.rest:
                piece = next(self.pieces, None)
                if piece is None:
                    raise MalformedFile(f"`{self.shard}` ends at byte {self.at}, before its last tensor")
                self.rest = memoryview(piece)
            count = min(len(target), len(self.rest))
            target[:count], target, self.rest = self.rest[:count], target[count:], self.rest[count:]
            self.at += count

    def state(self) -> bytes | None:
        return str(self.at).encode()

    def finish(self) -> None:
        for _ in self.pieces:
            pass

    def close(self) -> None:
        close = getattr(self.pieces, "close", None)
        if close:
            close()


class Out:
    """An `Output` that writes to a file, and keeps the marks, each with the file's length then."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.marks: list[tuple[Mark, int]] = []

    def write(self, data: bytes | memoryview) -> None:
        self.file.write(data)

    def reached(self, mark: Mark) -> None:
        self.marks.append((mark, self.file.tell()))


def write(
    plan: ModelPlan,
    level: str,
    stream: Stream,
    path: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    importance: Importance | None = None,
    feedback: Feedback | None = None,
    harms: MeasuredHarms | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Written:
    """The model of `plan` at `level` in a new file at `path`."""
    with path.open("wb") as file:
        Conversion(plan, level, metadata, importance, feedback, harms).write(
            lambda shard, offset, state: Pieces(shard, stream(shard), offset),
            Out(file),
            threads=threads,
            progress=progress,
            peek=lambda shard, offset, size: b"".join(stream(shard))[offset : offset + size],
        )
    return Written.at(path)
