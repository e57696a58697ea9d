"""A folder of this machine as a source: read in place by `pread`, never mapped, never written.

The files may be links (a snapshot in the Hugging Face cache is made of them), but what they lead to must be a regular
file: a pipe would block its reader for ever, a device has no end. A file is opened once; if it changes while it is
read, that is an error, because the model would be made of two versions.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from registry.errors import AccessDenied, ModelNotFound, SourceUnavailable
from registry.net.verify import Verified
from registry.sources.base import Companions, FileReader

LONGEST = 1 << 30  # bytes in one system call
_PIECE = 4 << 20
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf", re.IGNORECASE)
# Folders that belong to the file system, not to a model; only root may read them.
_FOREIGN = ("lost+found",)
# Files that count in folders below. Weights too: sentence-transformers has the layers behind a pooling there.
_BELOW = (".json", ".jinja", ".gguf", ".safetensors")


class Folder:
    """The regular files inside one folder, and the settings, templates and weights one level below.

    The path may also lead to a GGUF file: then the source has this file, and its other parts if it is split. A folder
    declares no digests.
    """

    revision = owner = ""
    companions = Companions()

    def __init__(self, path: Path, title: str) -> None:
        """`title` is also the `url`. Raises ModelNotFound, AccessDenied, SourceUnavailable."""
        self.title = self.url = title
        self._path = path
        self._open: dict[str, tuple[int, os.stat_result]] = {}
        self._opening = threading.Lock()
        try:
            if path.name.lower().endswith(".gguf") and path.is_file():
                self._path, self._names = path.parent, _parts_of(path)
            else:
                self._names = _listed(path)
        except OSError as error:
            raise _unreadable(title, path, error) from None

    def names(self) -> list[str]:
        """Names of the regular files, links to such included, those below with the name of their folder."""
        return list(self._names)

    def size(self, name: str) -> int:
        """Length in bytes, as it was when the file was opened. Raises SourceUnavailable."""
        return self._file(name)[1].st_size

    def digest(self, name: str) -> str | None:
        """None: a folder declares nothing."""
        return None

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises SourceUnavailable."""
        data = bytearray(size)
        self.readinto(name, offset, memoryview(data))
        return bytes(data)

    def stamp(self, name: str) -> str:
        """Its inode, length and time of change. Raises SourceUnavailable."""
        return _stamp(self._file(name)[1])

    def open(self, name: str, offset: int = 0, state: bytes = b"") -> FileReader:
        """The file from `offset` on; there is no state, since nothing is declared. Raises SourceUnavailable."""
        return _FolderFile(self, name, offset)

    def readinto(self, name: str, offset: int, target: memoryview) -> None:
        """As `read`, into memory that is there."""
        descriptor, _ = self._file(name)
        while target:
            try:
                count = os.preadv(descriptor, [target[:LONGEST]], offset)
            except OSError as error:
                raise self._unread(name, error) from None
            if not count:
                raise SourceUnavailable(f"`{name}` of `{self.title}` ends at byte {offset:,}", _CHANGED)
            target, offset = target[count:], offset + count

    def has(self, name: str) -> bool:
        """Whether a name is of a file by itself, which `descriptor` opens."""
        return name in self._names

    def descriptor(self, name: str) -> int:
        """The open file. Raises SourceUnavailable."""
        return self._file(name)[0]

    def check(self, name: str) -> None:
        """Raises SourceUnavailable when the file changed since it was opened."""
        descriptor, before = self._file(name)
        if _stamp(os.fstat(descriptor)) != _stamp(before):
            raise SourceUnavailable(f"`{name}` of `{self.title}` changed while it was read", _CHANGED)

    def close(self) -> None:
        """Close the files."""
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _file(self, name: str) -> tuple[int, os.stat_result]:
        with self._opening:
            if name not in self._open:
                if name not in self._names:
                    raise SourceUnavailable(f"`{self.title}` has no file `{name}`")
                self._open[name] = self._open_file(name)
            return self._open[name]

    def _open_file(self, name: str) -> tuple[int, os.stat_result]:
        try:
            # It was a regular file when the folder was listed; a pipe put in its place must not make us wait.
            descriptor = os.open(self.place(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self._unread(name, error) from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise SourceUnavailable(f"`{name}` of `{self.title}` is no regular file")
        return descriptor, status

    def place(self, name: str) -> Path:
        """The path of a file."""
        return self._path / name

    def _unread(self, name: str, error: OSError) -> SourceUnavailable:
        why = f"`{name}` of `{self.title}` cannot be read: {error.strerror}"
        return SourceUnavailable(
            why, "check the file, its rights and its disk; the daemon's user must be able to read it"
        )


class DeclaredFolder(Folder):
    """A folder whose files have digests that somebody declared."""

    def __init__(self, path: Path, title: str, digests: Mapping[str, str]) -> None:
        """`digests` maps names to `sha256:…`. Raises as `Folder`."""
        super().__init__(path, title)
        self._digests = digests

    def digest(self, name: str) -> str | None:
        """`sha256:…` as somebody declares it, None where nobody does."""
        return self._digests.get(name)

    def open(self, name: str, offset: int = 0, state: bytes = b"") -> FileReader:
        """The file from `offset` on, compared with the digest where there is one. Raises SourceUnavailable."""
        declared = self.digest(name)
        if declared is None:
            return super().open(name, offset, state)
        return Verified(self._pieces(name, offset), name, self.size(name), declared, offset, state)

    def _pieces(self, name: str, position: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(_PIECE))
        while position < self.size(name):
            piece = buffer[: min(_PIECE, self.size(name) - position)]
            self.readinto(name, position, piece)
            yield piece
            position += len(piece)


class _FolderFile:
    """One file of a folder, front to back."""

    def __init__(self, folder: Folder, name: str, offset: int) -> None:
        self._folder, self._name, self._offset = folder, name, offset

    def readinto(self, target: memoryview) -> None:
        self._folder.readinto(self._name, self._offset, target)
        self._offset += len(target)

    def state(self) -> bytes | None:
        return b""  # no hash to go on with: any reader may begin at any offset

    def finish(self) -> None:
        self._folder.check(self._name)

    def close(self) -> None:
        pass  # the folder keeps its files open


_CHANGED = "wait until whatever writes to the folder has finished, then pull again"


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def _parts_of(path: Path) -> list[str]:
    """The file, or all parts of the split file that it belongs to."""
    split = _PART.fullmatch(path.name)
    if not split:
        return [path.name]
    parts = re.compile(re.escape(split[1]) + r"-\d{5}-of-" + split[2] + r"\.gguf", re.IGNORECASE)
    with os.scandir(path.parent) as entries:
        return sorted(entry.name for entry in entries if parts.fullmatch(entry.name) and _is_regular(entry))


def _listed(path: Path) -> list[str]:
    """The names of usable files. Raises OSError, whose `filename` names the folder: this one, or one below."""
    names = []
    with os.scandir(path) as entries:
        for entry in entries:
            if _is_regular(entry):
                names.append(entry.name)
            elif entry.is_dir(follow_symlinks=False) and entry.name not in _FOREIGN:
                with os.scandir(entry) as below:
                    names += [f"{entry.name}/{e.name}" for e in below if e.name.endswith(_BELOW) and _is_regular(e)]
    return sorted(names)


def _is_regular(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file with a printable name. Where the system does not tell, opening it shows why."""
    try:
        return entry.is_file() and entry.name.isprintable()
    except OSError as error:
        return error.errno != errno.ELOOP and entry.name.isprintable()


def _unreadable(title: str, path: Path, error: OSError) -> ModelNotFound | AccessDenied | SourceUnavailable:
    if isinstance(error, FileNotFoundError):
        kind = "file" if title.endswith(".gguf") else "folder"
        return ModelNotFound(f"there is no {kind} `{title}`", "check the path; a model of a hub is named `org/repo`")
    if isinstance(error, NotADirectoryError):
        return ModelNotFound(f"`{title}` is no folder", "name the folder that holds `config.json` and the weights")
    title = title if error.filename in (None, str(path)) else f"{title}/{Path(error.filename).name}"
    if isinstance(error, PermissionError):
        return AccessDenied(f"the daemon may not read `{title}`", "give its user the right to read the folder")
    return SourceUnavailable(f"`{title}` cannot be read: {error.strerror}")
