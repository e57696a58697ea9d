"""A new folder that appears whole or not at all: written beside its place, synced, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.errors import DiskFull, StoreFailed
from registry.store import fsops

# Bytes that a disk keeps free besides what is written.
_MARGIN = 64 << 20
# A folder that `--force` may replace has one of these.
_OF_A_MODEL = ("config.json", "model.safetensors", "model.safetensors.index.json")


class NewFolder:
    """The folder while it is written. Its files are synced when they are closed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        """Make the file `name`, in a folder below if its name has one. Raises OSError."""
        place = self.path / name
        place.parent.mkdir(exist_ok=True)
        with place.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())


def check_place(target: Path, force: bool) -> None:
    """Raises StoreFailed where a folder may not be made at `target`."""
    if not target.parent.is_dir():
        raise StoreFailed(f"there is no folder `{target.parent}`", "make it first")
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise StoreFailed(f"`{target}` is there already, and no folder", "name a new folder")
    names = [each.name for each in target.iterdir()]
    if names and not force:
        raise StoreFailed(f"`{target}` is there already", "`--force` replaces it")
    if names and not any(name in names for name in _OF_A_MODEL):
        raise StoreFailed(f"`{target}` holds other things than a model, so it is not replaced", "name a new folder")


def check_room(target: Path, size: int) -> None:
    """Raises DiskFull where the disk has no room for `size` bytes."""
    free = shutil.disk_usage(target.parent).free
    if size + _MARGIN > free:
        raise DiskFull(
            f"the folder will have {size / 1e9:.2f} GB, and the disk of `{target.parent}` has {free / 1e9:.2f} GB left",
            "make room, or name a folder on another disk",
        )


@contextmanager
def new_folder(target: Path) -> Iterator[NewFolder]:
    """Write a folder that takes the place of `target` when the block ends; nothing is left of it where that fails.

    Raises DiskFull, StoreFailed.
    """
    start = f".{target.name}.part-"
    partial = target.with_name(f"{start}{os.getpid()}")
    try:
        _sweep(target.parent, start)
        partial.mkdir(mode=0o755)
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield NewFolder(partial)
            for folder, _, _ in os.walk(partial):
                fsops.fsync_dir(Path(folder))
            _put(partial, target)
        finally:
            os.close(lock)
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if error.errno in fsops.FULL:
            raise DiskFull(f"the disk of `{target.parent}` is full", "make room, or name another disk") from None
        raise StoreFailed(f"`{target}` cannot be written: {error.strerror}", "check the folder and its disk") from None


def _put(partial: Path, target: Path) -> None:
    """Give the whole folder its name; one that is there goes when the new one has it."""
    try:
        partial.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        before = target.with_name(f"{partial.name}-before")
        target.rename(before)
        try:
            partial.rename(target)
        except OSError:
            before.rename(target)
            raise
        fsops.fsync_dir(target.parent)
        shutil.rmtree(before, ignore_errors=True)
    fsops.fsync_dir(target.parent)


def _sweep(parent: Path, start: str) -> None:
    """Remove what is left of exports that were killed: their folders are locked by nobody."""
    for left in parent.iterdir():
        if not left.name.startswith(start) or left.is_symlink() or left.name.endswith("-before"):
            continue
        lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)
