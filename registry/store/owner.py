"""Locks the store's folder for this process, after checks of its owner and of the version of its layout."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path

from registry.errors import StoreDamaged, StoreFailed, StoreLocked
from registry.store import fsops, reading
from registry.store.fsops import UNWRITABLE

FORMAT = 1
_LOCK = "store.lock"
_VERSION = "store.json"
_LONGEST_VERSION = 1 << 16
_FOLDERS = ("blobs", "manifests", "ingest")


def take(root: Path) -> int:
    """Lock the folder `root`. Returns a file descriptor; the lock lasts until it is closed.

    Raises StoreLocked (with the owner's process id), StoreDamaged (not a store of ours), StoreFailed (the folder of
    another user), OSError.
    """
    _check_owner(root)
    return _lock(root / _LOCK)


def check_free(root: Path) -> None:
    """Raise StoreLocked, with the owner's process id, if a process has the folder `root`. Takes and changes nothing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(root / _LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _locked(root, descriptor) from None
        finally:
            os.close(descriptor)


def prepare(root: Path) -> None:
    """Create the version file and the folders of a new store; check the version of an old one.

    Raises StoreDamaged (of a newer version, or damaged), StoreFailed, OSError.
    """
    path = root / _VERSION
    data = reading.contents(path, _LONGEST_VERSION)
    if data is None:
        data = json.dumps({"format": FORMAT}).encode()
        fsops.replace(path, data)
    try:
        version = json.loads(data)["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        version = None
    if not isinstance(version, int):
        raise StoreDamaged(f"`{path}` is damaged", f'put `{{"format": {FORMAT}}}` into it')
    if version > FORMAT:
        raise StoreDamaged(f"the store at `{root}` is of a newer version ({version}) than this program", "update lm")
    for folder in _FOLDERS:
        fsops.make_folders(root, root / folder)


def _check_owner(root: Path) -> None:
    status = root.stat()
    if not os.access(root, os.W_OK):
        return  # nobody of ours can write there: the models of a read-only disk may belong to whoever made it
    if status.st_uid != os.geteuid():
        raise StoreFailed(f"the store at `{root}` belongs to another user", "set `LM_HOME` to a folder of your own")
    if status.st_mode & 0o077:
        root.chmod(status.st_mode & 0o700)
    if not reading.status(root / _VERSION) and any(reading.status(root / name) for name in ("blobs", "manifests")):
        raise StoreDamaged(f"`{root}` holds the models of another program", "set `LM_HOME` to another folder")


def _lock(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)  # without a file to lock, the folder is locked
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        locked = _locked(path.parent, descriptor)
        os.close(descriptor)
        raise locked from None
    with contextlib.suppress(OSError):  # for messages only; a full disk still has the place of an earlier id
        os.pwrite(descriptor, f"{os.getpid():<19}\n".encode(), 0)
    return descriptor


def _locked(root: Path, descriptor: int) -> StoreLocked:
    owner = ""
    with contextlib.suppress(IsADirectoryError):  # of a read-only store the folder itself is locked
        owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
    return StoreLocked(
        f"the store at `{root}` belongs to process {owner or 'unknown'}",
        "one daemon owns a store: stop that one with `lm stop --daemon`, or set `LM_HOME` to another folder",
    )
