"""Digests: how they are written, and bytes checked against them as they pass.

Two kinds occur: `sha256:…`, which names blobs and large files of a hub, and `git-sha1:…`, all that a hub declares for
small files (the id of a git blob: SHA-1 over `blob {length}\\0` and the bytes). SHA-1 no longer resists an attacker who
makes both files, but still an accident; the hub itself vouches for small files only in this way.
"""

from __future__ import annotations

import hashlib
import re
from typing import NewType

from registry.errors import DigestMismatch, StoreDamaged

Digest = NewType("Digest", str)

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


def sha256(text: object) -> Digest:
    """`text` as a digest from which a path may be built. Raises StoreDamaged if it is not exactly one."""
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise StoreDamaged(f"`{str(text)[:80]!r}` is no digest", "expected `sha256:` and 64 hexadecimal digits")
    return Digest(text)


def of(data: bytes) -> Digest:
    """The digest of some bytes."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


class Check:
    """Compares the bytes of one file with its declared digest and size, fed in order, however cut."""

    def __init__(self, name: str, size: int, declared: str | None) -> None:
        """`declared` is `sha256:…` or `git-sha1:…`, or None: then only the size is checked."""
        self.name, self.size, self.declared = name, size, declared
        self.seen = 0
        self._hash = None if declared is None else hashlib.sha256()
        if declared is not None and declared.startswith("git-sha1:"):
            self._hash = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        """The next bytes. Raises DigestMismatch as soon as there are too many."""
        self.seen += len(data)
        if self.seen > self.size:
            raise DigestMismatch(f"`{self.name}` is longer than the {self.size:,} bytes declared", _AGAIN)
        if self._hash is not None:
            self._hash.update(data)

    def finish(self) -> None:
        """Raises DigestMismatch unless all bytes came and hash to what was declared."""
        if self.seen != self.size:
            raise DigestMismatch(f"`{self.name}` has {self.seen:,} bytes where {self.size:,} were declared", _AGAIN)
        if self._hash is not None and self._hash.hexdigest() != str(self.declared).rpartition(":")[2]:
            raise DigestMismatch(f"`{self.name}` does not hash to the `{self.declared}` that was declared", _AGAIN)


_AGAIN = "nothing of it was kept; try again, and if it stays so the source or the network damages files"
