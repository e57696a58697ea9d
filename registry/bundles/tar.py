"""Tar, as a stream: members with their bytes, in order; nothing is ever extracted by its path.

The standard library writes and reads the headers. Its reader of whole archives is not used, for it believes what it
reads: an extended header of a gigabyte becomes a gigabyte of memory, a sparse member reads from where it likes. Here a
member is a regular file of a bounded size; links, devices, holes and absolute paths are refused.

Source: POSIX.1-2008, `pax`; GNU tar's long names (`L`).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from registry.errors import BadBundle

BLOCK = 512
END = bytes(2 * BLOCK)
_RECORD = 20 * BLOCK  # a tar's length is a multiple of this, as most programs write it
# Bytes of an extended header, and of the zeros behind the end that are read.
_LONGEST, _MOST_ZEROS = 64 << 10, 1 << 20
_MOST_MEMBERS = 1 << 16
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_STEP = 1 << 16


class ByteStream(Protocol):
    """Bytes that come once, front to back."""

    def readinto(self, target: memoryview) -> int:
        """Fill `target` from its beginning, as far as there is something; 0 at the end."""


class TarMember(NamedTuple):
    """A regular file of a tar: its name, without `./`, and its length in bytes."""

    name: str
    size: int


def header(name: str, size: int) -> bytes:
    """The header of a regular file; the same for the same file, whoever writes it."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """The zeros behind a member of this size."""
    return bytes(-size % BLOCK)


class TarReader:
    """The members of a stream. After each one, read its bytes by `readinto`; what is left of it is passed over."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._left = self._pad = 0

    def members(self) -> Iterator[TarMember]:
        """The members in order, up to the end, behind which nothing but zeros may follow. Raises BadBundle."""
        name, count = "", 0
        while (info := self._header()) is not None:
            count += 1
            if count > _MOST_MEMBERS:
                raise BadBundle(f"the bundle has more than {_MOST_MEMBERS:,} members")
            if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
                found = self._extended(info)
                name = found if info.type != tarfile.XGLTYPE else name
                continue
            member, name = TarMember(_plain(name or info.name), info.size), ""
            if info.type == tarfile.DIRTYPE:
                continue
            if info.type not in _FILES:
                raise BadBundle(f"the bundle has a member `{_shown(member.name)}` that is no regular file")
            if info.size < 0:
                raise BadBundle(f"the bundle has a member of {info.size} bytes")
            self._left, self._pad = info.size, -info.size % BLOCK
            yield member
            self._skip()
        self._close()

    def readinto(self, target: memoryview) -> int:
        """Fill `target` with the member's next bytes, as far as there are some; 0 at its end. Raises BadBundle."""
        target = target[: self._left]
        if not target:
            return 0
        count = self._stream.readinto(target)
        if not count:
            raise BadBundle("the bundle ends in the middle", "it was cut off: make or fetch it again")
        self._left -= count
        return count

    def _header(self) -> tarfile.TarInfo | None:
        """The next header, None at the end of the tar."""
        block = self._exactly(BLOCK)
        if not block.strip(b"\0"):
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BadBundle(
                f"the bundle is no tar, or damaged ({error})", "if it is packed: `gunzip -c FILE | lm import -`"
            ) from None

    def _extended(self, info: tarfile.TarInfo) -> str:
        """The name in an extended header, "" where it has none. Raises BadBundle for one that means something else."""
        if not 0 <= info.size <= _LONGEST:
            raise BadBundle(f"the bundle has an extended header of {info.size:,} bytes")
        data = self._exactly(info.size)
        self._exactly(-info.size % BLOCK)
        if info.type == tarfile.GNUTYPE_LONGNAME:
            return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        found = ""
        for key, value in _records(data):
            if key.startswith("GNU.sparse") or key in ("size", "linkpath"):
                raise BadBundle(f"the bundle has a member with `{_shown(key)}`, which is not read")
            found = value if key == "path" else found
        return found

    def _skip(self) -> None:
        buffer = memoryview(bytearray(_STEP))
        while self.readinto(buffer):
            pass
        self._exactly(self._pad)

    def _close(self) -> None:
        """Read what is behind the first empty block: another one, and zeros. Raises BadBundle."""
        self._exactly(BLOCK)
        buffer, count = memoryview(bytearray(_STEP)), 0
        while part := self._stream.readinto(buffer):
            count += part
            if count > _MOST_ZEROS or bytes(buffer[:part]).strip(b"\0"):
                raise BadBundle("something follows behind the end of the bundle", "it is damaged, or two files in one")

    def _exactly(self, size: int) -> bytes:
        data = memoryview(bytearray(size))
        done = 0
        while done < size:
            count = self._stream.readinto(data[done:])
            if not count:
                raise BadBundle("the bundle ends in the middle", "it was cut off: make or fetch it again")
            done += count
        return bytes(data)


def end(size: int) -> bytes:
    """The end of a tar of which `size` bytes are written: two empty blocks, and zeros up to a whole record."""
    return END + bytes(-(size + len(END)) % _RECORD)


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    """The pairs of a pax header: `LENGTH KEY=VALUE\\n`. Raises BadBundle."""
    while data.strip(b"\0"):
        length, _, rest = data.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 7 else 0
        record, data = rest[: max(0, size - len(length) - 1)], data[size:]
        key, equals, value = record.partition(b"=")
        if not size or not equals or not record.endswith(b"\n"):
            raise BadBundle("the bundle has an extended header that is none")
        yield key.decode("utf-8", "replace"), value[:-1].decode("utf-8", "surrogateescape")


def _plain(name: str) -> str:
    """The name without `./`. Raises BadBundle for one that leads out of the bundle."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise BadBundle(f"the bundle has a member `{_shown(name)}`, whose name leads out of it")
    return "/".join(part for part in parts if part not in ("", "."))


def _shown(text: str) -> str:
    return ascii(text[:80])[1:-1]
