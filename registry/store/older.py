"""The manifest that a model had before it was improved: kept for a while, so that the model can go back.

    older/host/namespace/model/tag      the manifest, byte for byte; its time is when it was kept

It keeps its blobs from `collect` while it counts: as long as the notes of the model that has the name now give its
digest (`Model.older`), and for `SECONDS`. So it counts from the one write that lists the improved model, and no longer
once the model goes back, is removed, or is brought in anew. Room that a new file needs is taken from the oldest first.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from registry.errors import BadName, StoreDamaged
from registry.names import Name
from registry.store import fsops, manifest, notes, reading
from registry.store.catalog import Catalog
from registry.store.manifest import Manifest
from registry.store.model import Model

SECONDS = 14 * 86400.0


@dataclass(frozen=True)
class OlderManifest:
    """A manifest that counts: of whose `model` it is, its bytes, the layers in it, and when it was kept (Unix time)."""

    model: Model
    data: bytes
    contents: Manifest
    since: float

    def bytes_beside(self, now: Manifest) -> int:
        """Bytes of its blobs that the model's manifest of `now` does not list."""
        return sum(layer.size for layer in self.contents.blobs if layer.digest not in now.digests)


def find(catalog: Catalog, model: Model) -> OlderManifest | None:
    """The older manifest of a model, None where none counts. Raises StoreFailed."""
    path = catalog.older_path(model.key)
    data, status = reading.contents(path, manifest.LONGEST + 1), reading.status(path)
    if not data or status is None or hashlib.sha256(data).hexdigest() != model.older:
        return None
    if time.time() - status.st_mtime > SECONDS:
        return None
    with suppress(StoreDamaged):  # nothing of ours: the digest of a manifest that was read before is in the notes
        return OlderManifest(model, data, manifest.parse(data, model.name), status.st_mtime)
    return None


def keep(catalog: Catalog, name: Name, data: bytes) -> None:
    """Keep the manifest `data` of this name, durably. It counts once the notes of the model say so. Raises OSError."""
    path = catalog.older_path(name)
    fsops.make_folders(catalog.older_manifests.parent, path.parent)
    fsops.replace(path, data)


def drop(catalog: Catalog, name: Name) -> None:
    """Remove the older manifest of this name, if there is one. Raises OSError.

    Not synced: one that a power cut brings back does not count, or has lost the same blobs.
    """
    path = catalog.older_path(name)
    if reading.status(path) is not None:
        notes.remove(catalog.older_manifests, path)


def all_of(catalog: Catalog) -> list[OlderManifest]:
    """The older manifests that count, the oldest first. Raises StoreFailed."""
    models = (catalog.read(name) for name in _names(catalog))
    found = [find(catalog, model) for model in models if model is not None]
    return sorted((each for each in found if each is not None), key=lambda each: each.since)


def needed(catalog: Catalog) -> list[Name]:
    """The names whose older manifest counts, or may count: nobody knows where a model cannot be read.

    Raises StoreFailed.
    """
    return [name for name in _names(catalog) if _may_count(catalog, name)]


def forget(catalog: Catalog) -> None:
    """Remove the older manifests that do not count any more. Raises OSError, StoreFailed."""
    for name in [name for name in _names(catalog) if not _may_count(catalog, name)]:
        drop(catalog, name)


def _may_count(catalog: Catalog, name: Name) -> bool:
    model = catalog.read(name)
    return model is not None and (model.failure is not None or find(catalog, model) is not None)


def _names(catalog: Catalog) -> Iterator[Name]:
    for parts in reading.files_at_depth(catalog.older_manifests, 4, None):
        with suppress(BadName):
            yield Name(*parts)
