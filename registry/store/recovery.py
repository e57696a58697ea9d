"""Recovery of the store: half a commit is undone, unfinished files without a journal and temporary ones are removed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from registry.errors import StoreDamaged, StoreFailed
from registry.store import fsops, garbage, reading, uploads
from registry.store.catalog import Catalog
from registry.store.ingest import BESIDE, COMMITTED, NEW, folder_name
from registry.store.partial import DATA, JOURNAL, read_journal, resumable

log = logging.getLogger("lm.store")
_LONGEST_DIGEST = 80


def clear_away(catalog: Catalog, root: Path, ingests: Path) -> None:
    """Undo half commits, remove ingests that nobody can go on with, and temporary files. Raises OSError."""
    for name in reading.entries(ingests):
        try:
            restore(catalog, ingests / name)
            if name.startswith(NEW) or not resumable(ingests / name):
                log.info("what a pull left before it was journalled is removed")
                fsops.remove_tree(ingests / name)
            elif not name.startswith(BESIDE):
                _return(ingests / name)
        except (StoreDamaged, StoreFailed) as error:
            log.warning("what a pull left in `%s` stays as it is: %s", name, error)
    for orphan in catalog.shared.orphans(catalog.blobs):
        catalog.shared.forget(orphan)
    notes = (
        catalog.choices,
        catalog.pins,
        catalog.older_manifests,
        catalog.shared.folder,
        root / uploads.FOLDER,
        root / "synced",
    )
    for folder in (catalog.manifests, *notes, ingests):
        for parent, _, names in os.walk(folder):
            _remove_temporary(Path(parent), names)
    _remove_temporary(root, [path.name for path in root.iterdir()])


def restore(catalog: Catalog, folder: Path) -> None:
    """Undo half a commit: move a blob back to its ingest, where its file was renamed and no manifest lists it.

    Raises StoreDamaged, StoreFailed where nobody knows whether a manifest lists it.
    """
    note = reading.contents(folder / COMMITTED, _LONGEST_DIGEST)
    if not note:
        return
    try:
        blob = catalog.blob_path(note.decode())
    except (StoreDamaged, UnicodeDecodeError):
        return
    if reading.status(blob) and blob.name.replace("-", ":") not in garbage.referenced(catalog):
        blob.chmod(0o600)
        fsops.rename(blob, folder / DATA)
        fsops.fsync_dir(folder)


def readdress(before: Path, after: Path, title: str) -> None:
    """Rename the ingest folder `before` to `after`, and its pull to `title`. Raises OSError, StoreFailed.

    Its journal is last. Where the process dies before that, `clear_away` gives the folder its old name again.
    """
    fsops.rename(before, after)
    fsops.fsync_dir(after.parent)
    if journal := read_journal(after):
        facts = msgspec.structs.replace(journal.facts, title=title)
        fsops.replace(after / JOURNAL, msgspec.json.encode(msgspec.structs.replace(journal, facts=facts)))


def _return(folder: Path) -> None:
    """Undo half of a `readdress`: a pull is found by its title, so its folder has to have the name of that."""
    journal = read_journal(folder)
    target = folder.with_name(folder_name(journal.facts.title)) if journal else folder
    if target != folder and reading.status(target) is None:
        fsops.rename(folder, target)
        fsops.fsync_dir(folder.parent)


def _remove_temporary(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if name.startswith(fsops.TEMPORARY):
            fsops.unlink(folder / name)
