"""Garbage collection: removes the blobs that no manifest lists, but nothing while a manifest is unreadable."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection

from registry.digest import Digest
from registry.errors import StoreDamaged, StoreFailed
from registry.store import fsops, manifest
from registry.store.catalog import Catalog

log = logging.getLogger("lm.store")

_BLOB = re.compile(r"sha256-[0-9a-f]{64}")


def referenced(catalog: Catalog) -> set[Digest]:
    """All digests that some manifest lists. Raises StoreDamaged, StoreFailed when one manifest is unreadable."""
    listed: set[Digest] = set()
    for name in catalog.names():
        path = catalog.manifest_path(name)
        listed |= manifest.parse(manifest.read(path, name.display), name.display).digests
    return listed


def collect(catalog: Catalog, in_use: Collection[str]) -> int:
    """Remove the blobs that no manifest lists and that are not `in_use` (digests); the number of bytes freed.

    Removes nothing while a manifest or a folder of manifests is unreadable, for nobody knows what is listed there; the
    log says which. Raises OSError. Call with the store's lock held: a manifest may list a blob at any other moment.
    """
    try:
        listed = referenced(catalog)
    except (StoreDamaged, StoreFailed) as error:
        log.warning("no blob is removed, for nobody knows which are in use: %s", error)
        return 0
    needed = {f"sha256-{value.rpartition(':')[2]}" for value in (*listed, *in_use)}
    freed = 0
    for entry in list(os.scandir(catalog.blobs)):
        if _BLOB.fullmatch(entry.name) and entry.name not in needed:
            size = entry.stat(follow_symlinks=False).st_size
            fsops.unlink(catalog.blobs / entry.name)
            catalog.shared.forget(entry.name.replace("-", ":"))
            freed += size
    # Not synced: a blob that a power cut brings back is still listed by nobody, and goes at the next start.
    return freed
