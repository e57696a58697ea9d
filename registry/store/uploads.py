"""Notes about blobs at registries: where an upload goes on, after any accident of this process, and where a blob lies.

    uploads/id     JSON: for a blob and a repository, the registry's address of the upload that was begun;
                   for a blob and a registry, the repository that it was pushed to last

Losing a note costs no more than sending a blob again from its beginning; so a note that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import msgspec

from registry.errors import DiskFull, StoreFailed
from registry.store import fsops, reading
from registry.store.fsops import plainly

FOLDER = "uploads"
_LONGEST = 1 << 16


class _Note(msgspec.Struct):
    location: str


class Uploads:
    """The notes of one store."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER

    def find(self, target: str, digest: str) -> str:
        """The place that was noted for a blob at `target`, a repository's URL or a registry's host; "" for none."""
        with contextlib.suppress(StoreFailed, msgspec.MsgspecError, UnicodeDecodeError):
            data = reading.contents(self._path(target, digest), _LONGEST)
            return msgspec.json.decode(data, type=_Note).location if data else ""
        return ""

    def note(self, target: str, digest: str, location: str) -> None:
        """Note where the upload of a blob goes on, or where the blob lies."""
        with contextlib.suppress(StoreFailed, DiskFull), plainly(self.folder):
            fsops.make_folders(self.folder.parent, self.folder)
            fsops.replace(self._path(target, digest), msgspec.json.encode(_Note(location)))

    def forget(self, target: str, digest: str) -> None:
        """Forget an upload that is done, or that the registry has forgotten."""
        with contextlib.suppress(StoreFailed, DiskFull), plainly(self.folder):
            fsops.unlink(self._path(target, digest))

    def _path(self, target: str, digest: str) -> Path:
        return self.folder / hashlib.sha256(f"{target} {digest}".encode()).hexdigest()[:32]
