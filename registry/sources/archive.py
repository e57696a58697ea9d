"""Files inside tars that lie at a source: found by their headers alone, read by range, never extracted by their paths.

A packed tar is unpacked into a folder of the pull first, as one file (`unpacking.py`). The standard library reads
single headers. Its reader of whole archives is not used, for it believes what it reads.
Source: POSIX.1-2008, `pax`; GNU tar's long names (`L`).
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from registry.errors import SourceUnavailable
from registry.sources.base import FileReader
from registry.sources.inflating import is_packed
from registry.sources.layers import Descriptor, Sorted, is_weights
from registry.sources.local import Folder
from registry.sources.unpacking import Unpacking

_BLOCK = 512
_FILES, _FOLDER = (tarfile.REGTYPE, tarfile.AREGTYPE), tarfile.DIRTYPE
_NAMED = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
# Headers in a tar, bytes of an extended one, and letters of a name.
_MOST, _LONGEST, _LONGEST_NAME = 4096, 64 << 10, 240
_PIECE = 1 << 20  # bytes of a tar that are passed over at a time
_RECORD = re.compile(rb"([0-9]{1,6}) ([^=\n]+)=")


class Blobs(Protocol):
    """The blobs of a source by their names in its `Sorted`."""

    title: str

    def read_blob(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`."""

    def open_blob(self, name: str, offset: int = 0, state: bytes = b"") -> FileReader:
        """A reader that checks the digest."""


class Inside(NamedTuple):
    """A file in a tar: the name of the tar, and where its bytes lie in it."""

    archive: str
    start: int
    size: int


class Archives:
    """The files of a source, those in its tars among them. `close` it after use."""

    def __init__(self, found: Sorted, blobs: Blobs, unpacking: Unpacking | None) -> None:
        """Read the headers of the tars. Raises SourceUnavailable, also for a packed one without `unpacking`."""
        self._blobs, self._found = blobs, found
        self._unpacked: dict[str, Folder] = {}
        self.files: dict[str, Descriptor | Inside] = {}
        try:
            self._place(unpacking)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files."""
        for folder in self._unpacked.values():
            folder.close()

    def inside(self, name: str) -> Inside | None:
        """Where a file lies in a tar, None for one that is a blob of its own, and for no file."""
        found = self.files.get(name)
        return found if isinstance(found, Inside) else None

    def stamp(self, inside: Inside) -> str:
        """A text that changes whenever the file does."""
        return f"{self._found.archives[inside.archive].digest} {inside.start} {inside.size}"

    def read(self, name: str, inside: Inside, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of a file in a tar, from `offset`. Raises SourceUnavailable."""
        if size < 0 or offset < 0 or offset + size > inside.size:
            raise SourceUnavailable(f"`{name}` of `{self._blobs.title}` ends before byte {offset + size:,}")
        return self._read(inside.archive, inside.start + offset, size)

    def open(self, inside: Inside, offset: int, state: bytes) -> FileReader:
        """A file in a tar from `offset` on. It is checked by the digest of the tar, which is read whole for it.

        One that was unpacked was checked then.
        """
        start = inside.start + offset
        if folder := self._unpacked.get(inside.archive):
            return folder.open(folder.names()[0], start)
        if offset:
            return self._blobs.open_blob(inside.archive, start, state)
        reader, left = self._blobs.open_blob(inside.archive), start
        try:
            while left:
                piece = memoryview(bytearray(min(left, _PIECE)))
                reader.readinto(piece)
                left -= len(piece)
        except BaseException:
            reader.close()
            raise
        return reader

    def _read(self, archive: str, offset: int, size: int) -> bytes:
        if folder := self._unpacked.get(archive):
            return folder.read(folder.names()[0], offset, size)
        return self._blobs.read_blob(archive, offset, size)

    def _place(self, unpacking: Unpacking | None) -> None:
        """Where each file lies, by the names below the folder that all of them lie in. Raises SourceUnavailable."""
        title = self._blobs.title
        files: dict[str, Descriptor | Inside] = {**self._found.files}
        for archive, layer in self._found.archives.items():
            length = layer.size
            if is_packed(archive):
                length = self._unpack(archive, layer, unpacking)
            for each in members(partial(self._read, archive), length, title):
                if each.name in files:
                    raise SourceUnavailable(f"`{title}` lists two files `{each.name}`")
                files[each.name] = Inside(archive, each.start, each.size)
        if not any(map(is_weights, files)):
            raise SourceUnavailable(f"`{title}` holds no weights that can be read", "it may be no model")
        folders = {name.rpartition("/")[0] for name in files}
        common = min(folders, key=len)
        below = bool(common) and all(f"{folder}/".startswith(f"{common}/") for folder in folders)
        self.files = {name.removeprefix(f"{common}/") if below else name: place for name, place in files.items()}

    def _unpack(self, archive: str, layer: Descriptor, unpacking: Unpacking | None) -> int:
        """Unpack a tar; its length in bytes."""
        title = self._blobs.title
        if unpacking is None:
            raise SourceUnavailable(
                f"`{title}` has its weights in a packed tar", "`lm pull` unpacks it, and knows then"
            )
        path = unpacking.unpack(archive, layer.digest, layer.size, partial(self._blobs.open_blob, archive), title)
        self._unpacked[archive] = folder = _OneTar(path, title)
        return folder.size(path.name)


class _OneTar(Folder):
    """A tar of a folder of a pull, by itself."""

    def __init__(self, path: Path, title: str) -> None:
        super().__init__(path.parent, title)
        self._names = [path.name]


class Member(NamedTuple):
    """A regular file in a tar: its path, and where its bytes lie."""

    name: str
    start: int
    size: int


def members(read: Callable[[int, int], bytes], length: int, title: str) -> list[Member]:
    """The files of a tar of `length` bytes; `read` gives bytes from an offset on. Raises SourceUnavailable.

    Links, devices, holes, paths that lead out of it, two files of one name and sizes beyond its end are refused.
    """
    found, at, more = dict[str, Member](), 0, dict[str, str]()
    for _ in range(_MOST):
        block = read(at, _BLOCK) if at + _BLOCK <= length else bytes(_BLOCK)
        if block == bytes(_BLOCK):
            return list(found.values())
        at += _BLOCK
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            size = int(more.get("size", info.size))
        except (tarfile.HeaderError, ValueError):
            raise _refused(title, "is none") from None
        if not 0 <= size <= length - at:
            raise _refused(title, "ends before one of its files")
        if info.type in _NAMED or info.type == tarfile.XGLTYPE:
            if size > _LONGEST:
                raise _refused(title, f"has a header of {size:,} bytes")
            if info.type in _NAMED:
                more |= _extended(info.type, read(at, size), title)
        else:
            if info.type in _FILES:
                name = _name(more.get("path", info.name), title)
                if found.setdefault(name, Member(name, at, size)).start != at:
                    raise _refused(title, f"has two files `{name}`")
            elif info.type != _FOLDER or size:
                raise _refused(title, "holds a link, a device or a file with holes")
            more = {}
        at += -(-size // _BLOCK) * _BLOCK
    raise _refused(title, f"has more than {_MOST:,} headers")


def _extended(kind: bytes, data: bytes, title: str) -> dict[str, str]:
    """The path and the size that an extended header gives for the file behind it."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while data:
        match = _RECORD.match(data)
        length = int(match[1]) if match else 0
        if match is None or not match.end() < length <= len(data) or data[length - 1 : length] != b"\n":
            raise _refused(title, "has a header that cannot be read")
        key = match[2].decode("utf-8", "replace")
        if key.startswith("GNU.sparse"):
            raise _refused(title, "holds a file with holes")
        if key in ("path", "size"):
            found[key] = data[match.end() : length - 1].decode("utf-8", "surrogateescape")
        data = data[length:]
    return found


def _name(text: str, title: str) -> str:
    name = text.removeprefix("./")
    if {"", ".", ".."} & set(name.split("/")) or not name.isprintable() or "\\" in name or len(name) > _LONGEST_NAME:
        raise _refused(title, f"calls a file `{ascii(text[:80])[1:-1]}`, which is no name of one")
    return name


def _refused(title: str, why: str) -> SourceUnavailable:
    return SourceUnavailable(f"a tar in `{title}` {why}", "ask its publisher for the files as they are")
