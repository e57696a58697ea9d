"""Files inside a tar that lies at a source: found by its headers alone, read by range, never extracted by their paths.

The standard library reads single headers. Its reader of whole archives is not used, for it believes what it reads.
Source: POSIX.1-2008, `pax`; GNU tar's long names (`L`).
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from typing import NamedTuple

from registry.errors import SourceUnavailable

_BLOCK = 512
_FILES, _FOLDER = (tarfile.REGTYPE, tarfile.AREGTYPE), tarfile.DIRTYPE
_NAMED = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
# Headers in a tar, bytes of an extended one, and letters of a name.
_MOST, _LONGEST, _LONGEST_NAME = 4096, 64 << 10, 240
_RECORD = re.compile(rb"([0-9]{1,6}) ([^=\n]+)=")


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
