"""Garbage collection: removes blobs that no manifest lists, but nothing while a manifest is unreadable."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection

from registry.digest import Digest
from registry.errors import StoreDamaged, StoreFailed
from registry.store import fsops, manifest, older, reading
from registry.store.catalog import Catalog
from registry.store.sharing import freed_bytes

log = logging.getLogger("lm.store")

_BLOB = re.compile(r"sha256-[0-9a-f]{64}")


def referenced(catalog: Catalog) -> set[Digest]:
    """All digests that some manifest lists, be it an older one to which its model can go back.

    Raises StoreDamaged, StoreFailed when one manifest is unreadable.
    """
    needed = older.needed(catalog)
    paths = [(catalog.manifest_path(name), name.display) for name in catalog.names()]
    paths += [(catalog.older_path(name), name.display) for name in needed]
    return set().union(*(manifest.parse(manifest.read(path, name), name).digests for path, name in paths))


def kept_for_older(catalog: Catalog) -> dict[str, int]:
    """The blobs that older manifests alone list, with the bytes that their removal frees.

    Raises StoreDamaged, StoreFailed, OSError.
    """
    found = older.all_of(catalog)
    if not found:
        return {}
    listed: set[Digest] = set()
    for name in catalog.names():
        listed |= manifest.parse(manifest.read(catalog.manifest_path(name), name.display), name.display).digests
    alone = set().union(*(each.contents.digests for each in found)) - listed
    paths = {value: catalog.blob_path(value) for value in alone}
    return {value: freed_bytes(path.lstat()) for value, path in paths.items() if reading.status(path)}


def unlisted(catalog: Catalog, in_use: Collection[str]) -> dict[str, int]:
    """The blobs that no manifest lists and that are not `in_use` (digests), with the bytes that their removal frees.

    Raises StoreDamaged, StoreFailed while a manifest or a folder of manifests is unreadable, for nobody knows what is
    listed there; OSError.
    """
    needed = {f"sha256-{value.rpartition(':')[2]}" for value in (*referenced(catalog), *in_use)}
    found = (entry for entry in os.scandir(catalog.blobs) if _BLOB.fullmatch(entry.name) and entry.name not in needed)
    return {entry.name.replace("-", ":"): freed_bytes(entry.stat(follow_symlinks=False)) for entry in found}


def collect(catalog: Catalog, in_use: Collection[str]) -> int:
    """Remove the blobs that `unlisted` names; the number of bytes freed.

    Removes nothing while nobody knows what is listed; the log says why. Raises OSError. Call with the store's lock
    held: a manifest may list a blob at any other moment.
    """
    try:
        found = unlisted(catalog, in_use)
    except (StoreDamaged, StoreFailed) as error:
        log.warning("no blob is removed, for nobody knows which are in use: %s", error)
        return 0
    older.forget(catalog)
    for value in found:
        fsops.unlink(catalog.blob_path(value))
        catalog.shared.forget(value)
    # Not synced: a blob that a power cut brings back is still listed by nobody, and goes at the next start.
    return sum(found.values())
