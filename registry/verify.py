"""Bytes on their way from a source, checked against the digest that the source declares for them.

The chain that makes a resumed download as good as an uninterrupted one: a `Position` is an offset and the state of the
hash over exactly the bytes before it. A journal stores it only together with outputs that descend from those very bytes
and are durable. After a restart the stream begins at the offset with that state, so that the digest at the end covers
the bytes read before the stop as well, though nobody reads them again; if they were wrong, the digest is, and the
caller discards all that came of the file. Nothing may be committed before the stream has ended without an error.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from registry.errors import DigestMismatch, SourceUnavailable
from registry.sha256 import Sha256

_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(git-sha1):([0-9a-f]{40})")
_AGAIN = "pull again; if it stays so, the copy at the source is damaged"


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a file from which reading and hashing can go on: bytes before it, and `Sha256.state()` of them."""

    offset: int = 0
    state: bytes | None = None


class Verified:
    """Iterator over `chunks`, which are hashed by a thread of its own while the caller works on them.

    chunks: the file's bytes from `position.offset` on, in order; closed with this stream if it can be.
    digest: `sha256:…`, or `git-sha1:…` (a git blob's; it cannot be resumed: `position` then stays at 0).
    A chunk stays valid until the next one is asked for and must not be changed before. Iteration raises DigestMismatch
    after the last chunk if the digest differs, or there are fewer or more than `size` bytes.
    """

    def __init__(
        self, chunks: Iterable[memoryview | bytes], name: str, size: int, digest: str, position: Position | None = None
    ) -> None:
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise SourceUnavailable(f"the source declares a digest for `{name}` of a kind that is not known")
        position = position or Position()
        self._chunks, self._iterator = chunks, iter(chunks)
        self._name, self._size = name, size
        self._offset = position.offset
        self._wanted = match[2] or match[4]
        self._hash: Any = Sha256(position.state) if match[1] else _git_blob(size)
        if match[1] and self._hash.length != position.offset:
            raise ValueError("the position's state is not that of its offset")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._pending: Future[None] | None = None

    @property
    def position(self) -> Position:
        """The place after the last chunk that was handed out."""
        self._settle()
        return Position(self._offset, self._hash.state()) if isinstance(self._hash, Sha256) else Position()

    def __iter__(self) -> Iterator[memoryview | bytes]:
        return self

    def __next__(self) -> memoryview | bytes:
        self._settle()
        chunk = next(self._iterator, None)
        if chunk is None:
            self.close()
            self._check()
            raise StopIteration
        self._offset += len(chunk)
        if self._offset > self._size:
            self.close()
            raise DigestMismatch(f"`{self._name}` is longer than the {self._size:,} bytes that were declared", _AGAIN)
        self._pending = self._pool.submit(self._hash.update, chunk)
        return chunk

    def __enter__(self) -> Verified:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and hashing; the position stays as it is."""
        self._settle()
        self._pool.shutdown()
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _check(self) -> None:
        if self._offset != self._size:
            raise DigestMismatch(f"`{self._name}` ends after {self._offset:,} of {self._size:,} bytes", _AGAIN)
        if self._hash.hexdigest() != self._wanted:
            raise DigestMismatch(f"`{self._name}` does not hash to the digest that its source declares", _AGAIN)


def _git_blob(size: int) -> Any:
    """The hash of a git object of `size` bytes, its header hashed (git-hash-object)."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
