"""A file that a client sends under its digest: hashed while it comes, a blob when it is whole."""

from __future__ import annotations

import hashlib
import os
import secrets

from registry import digest as digests
from registry.errors import DigestMismatch, DiskFull
from registry.store import fsops
from registry.store.fsops import plainly
from registry.store.store import Store

# Bytes that the disk keeps free beside an upload.
MARGIN = 64 << 20


class ArrivingFile:
    """One upload. `write`, then `finish` or `abandon`; all block. Raises DiskFull, StoreFailed."""

    def __init__(self, store: Store, digest: str, size: int | None) -> None:
        """`size` is the length in bytes as far as it is known. Raises StoreDamaged for a text that is no digest, and
        DiskFull where the disk has no room for it."""
        self._store, self._digest = store, digests.sha256(digest)
        if size is not None and size + MARGIN > store.free_bytes():
            raise DiskFull(f"the disk of the store has no room for {size:,} bytes", "make room: `lm list`, `lm rm`")
        self._hash = hashlib.sha256()
        # Two clients may send the same file: each has a folder of its own.
        self._ingest = store.begin(f"{digest} {secrets.token_hex(8)}", new=True)
        with plainly(store.root):
            fsops.write(self._ingest.data, b"")
            self._file = os.open(self._ingest.data, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._hash.update(data)
        view = memoryview(data)
        with plainly(self._store.root):
            while view:
                view = view[os.write(self._file, view) :]

    def finish(self) -> None:
        """Make a blob of the file. Raises DigestMismatch, too."""
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._digest:
            raise DigestMismatch(
                f'digest mismatch, expected "{self._digest}", got "{found}"', "nothing was kept; send it again"
            )
        with plainly(self._store.root):
            fsops.fsync(self._ingest.data)
        self._store.keep(self._ingest.data, self._digest)
        self.abandon()

    def abandon(self) -> None:
        """Remove what is left of the upload."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._store.abandon(self._ingest)
