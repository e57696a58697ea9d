"""Small files with the tag of a variant that is pinned, or that was chosen automatically."""

from __future__ import annotations

import contextlib
from pathlib import Path

from registry.errors import StoreFailed
from registry.names import Name
from registry.store import fsops, reading

_LONGEST = 512


def write(store: Path, path: Path, name: Name) -> None:
    """Put the tag of a name into the file at `path` below `store`, unless it is there. Raises OSError."""
    data = f"{name.tag}\n".encode()
    with contextlib.suppress(StoreFailed):
        if reading.contents(path, _LONGEST) == data:
            return
    fsops.make_folders(store, path.parent)
    fsops.replace(path, data)


def remove(root: Path, path: Path) -> None:
    """Remove the file at `path`, and the folders below `root` that become empty. Raises OSError."""
    fsops.unlink(path)
    prune(path.parent, root)


def remove_tag(root: Path, path: Path, name: Name) -> None:
    """As `remove`, if the file holds the tag of this name. A note that cannot be removed does no harm."""
    with contextlib.suppress(StoreFailed, OSError):
        if (reading.contents(path, _LONGEST) or b"").strip() == str(name.tag).encode():
            remove(root, path)


def prune(folder: Path, root: Path) -> None:
    """Remove folders that became empty, upwards, `root` itself excepted. Raises OSError."""
    while folder != root and fsops.rmdir(folder):
        folder = folder.parent
