"""A file on its way into the store: its folder, and the notes that lie beside the file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from registry.store import fsops, reading
from registry.store.layers import Staged
from registry.store.partial import DATA, Journal, read_journal, resumable

COMMITTED = "committed"  # in an ingest folder: the digest under which its data is about to lie among the blobs
DETACHED = "detached"  # in an ingest folder: the wishes of a pull that goes on whoever looks on
OWNERS = "owners"  # in an ingest folder: the owners of the keys that asked for the pull
# The beginning of a folder's name whose file nobody goes on with: it goes when the store is opened the next time.
NEW = "new-"
# The beginning of the name of a folder whose file is to take the place of a model's own.
BESIDE = "beside-"
_LONGEST = 1 << 16


@dataclass(frozen=True)
class Ingest:
    """A file on its way into the store: its maker writes `data`, then calls `Store.commit`, `pause` or `abandon`."""

    title: str
    folder: Path

    @property
    def data(self) -> Path:
        """The file to write."""
        return self.folder / DATA

    @property
    def detached(self) -> bytes | None:
        """The note of `Store.detach`, None without one. Raises StoreFailed."""
        return reading.contents(self.folder / DETACHED, _LONGEST)

    @property
    def owners(self) -> set[str]:
        """The owners that `Store.note_owners` noted; where there are none, the daemon's own user, "".

        Raises StoreFailed.
        """
        return set((reading.contents(self.folder / OWNERS, _LONGEST) or b"").decode("ascii", "replace").split("\n"))

    @property
    def journal(self) -> Journal | None:
        """The journal, None where the file cannot be resumed. Raises StoreFailed."""
        return read_journal(self.folder) if resumable(self.folder) else None


def folder_name(title: str) -> str:
    """The name of the folder in which the file of `title` is made."""
    return hashlib.sha256(title.encode()).hexdigest()[:16]


def settle(ingest: Ingest, staged: Staged) -> Path:
    """Settle a layer, and return its file. Takes long for a large one, so it is called without the store's lock."""
    path = staged.settle(ingest.folder)
    if path == ingest.data and ingest.journal:
        fsops.replace(ingest.folder / COMMITTED, staged.layer.digest.encode())
    return path
