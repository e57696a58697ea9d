"""Bytes on their way from a source, checked against the digest that the source declares for them.

The chain that makes a resumed download as good as an uninterrupted one: `offset` and `state()` are a place in the file
and the state of the hash over exactly the bytes before it. A journal stores them only together with outputs that
descend from those very bytes and are durable. After a restart the stream begins at the offset with that state. So the
digest at the end covers the bytes before the stop as well, though nobody reads them again. If they were wrong, the
digest is, and the caller discards everything made of the file. Nothing may be committed before `finish` has returned.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from registry.errors import DigestMismatch, SourceUnavailable
from registry.sha256 import Sha256

_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(git-sha1):([0-9a-f]{40})")
_AGAIN = "pull again; if it stays so, the copy at the source is damaged"


class Verified:
    """A file that is read front to back from `chunks`, and hashed as it is read.

    chunks: the file's bytes from `offset` on, in order, each valid until the next is asked for. If they have a method
    `close`, it is called with this reader's.
    digest: `sha256:…`, or `git-sha1:…` (the digest of a git blob, which must be read from its beginning), or None: then
    nothing but the length is checked, and a reader may begin anywhere.
    offset, state: where an earlier reader stopped, and its `state()` there; 0 and nothing for the beginning.
    """

    def __init__(
        self,
        chunks: Iterable[memoryview | bytes],
        name: str,
        size: int,
        digest: str | None,
        offset: int = 0,
        state: bytes = b"",
    ) -> None:
        match = None if digest is None else _DIGEST.fullmatch(digest)
        if digest is not None and match is None:
            raise SourceUnavailable(f"the source declares a digest for `{name}` of a kind that is not known")
        self._chunks, self._iterator = chunks, iter(chunks)
        self._name, self._size = name, size
        self._wanted = (match[2] or match[4]) if match else None
        self._hash: Any = _Nothing()
        if match:
            self._hash = Sha256(state or None) if match[1] else _git_blob(size)
        if offset and match and (not match[1] or self._hash.length != offset):
            raise ValueError("the hash's state belongs to another offset")
        self._rest = memoryview(b"")
        self.offset = offset

    def readinto(self, target: memoryview) -> None:
        """Fill `target` with the next bytes. Raises DigestMismatch when the file ends before, errors of `chunks`."""
        filled = 0
        while filled < len(target):
            filled += self._take(target[filled:])
        self._hash.update(target)

    def state(self) -> bytes | None:
        """The hash's state after `offset` bytes; None for git's digests, which cannot be taken up again."""
        return self._hash.state() if isinstance(self._hash, Sha256 | _Nothing) else None

    def finish(self) -> None:
        """Read what is left. Raises DigestMismatch unless the whole file has the size and the digest declared."""
        while self._ready():
            self._hash.update(self._rest)
            self._advance(len(self._rest))
        if self.offset != self._size:
            raise self._short()
        if self._hash.hexdigest() != self._wanted:
            raise DigestMismatch(f"`{self._name}` does not hash to the digest that its source declares", _AGAIN)

    def close(self) -> None:
        """Stop reading."""
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()

    def _take(self, target: memoryview) -> int:
        if not self._ready():
            raise self._short()
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._advance(count)
        return count

    def _ready(self) -> bool:
        """Wait for the next chunk if `_rest` is empty; whether there are more bytes."""
        while not self._rest:
            chunk = next(self._iterator, None)
            if chunk is None:
                return False
            self._rest = memoryview(chunk)
        return True

    def _advance(self, count: int) -> None:
        self._rest = self._rest[count:]
        self.offset += count
        if self.offset > self._size:
            raise DigestMismatch(f"`{self._name}` is longer than the {self._size:,} bytes that were declared", _AGAIN)

    def _short(self) -> DigestMismatch:
        return DigestMismatch(f"`{self._name}` ends after {self.offset:,} of {self._size:,} bytes", _AGAIN)


class _Nothing:
    """The hash of a file of which nothing is declared."""

    def update(self, data: memoryview) -> None:
        pass

    def state(self) -> bytes:
        return b""

    def hexdigest(self) -> None:
        return None


def _git_blob(size: int) -> Any:
    """The hash of a git object of `size` bytes, its header hashed (git-hash-object)."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
