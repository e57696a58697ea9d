"""Streams that gzip or zstd packed, unpacked piece by piece: of one part or several, bounded whatever they hold.

Sources: RFC 1952 (gzip), RFC 8878 (zstd, whose decoder is `compression.zstd` of Python 3.14).
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

from registry.errors import SourceUnavailable

_STEP = 1 << 20  # bytes unpacked at a time
_GZIP = 31  # the form of the stream as a number of `zlib`
# The largest window of zstd's that is granted, as a power of two: its own default, 128 MiB.
_WINDOW = 27


class Inflater(Protocol):
    """A packed stream."""

    @property
    def ended(self) -> bool:
        """Whether the last part came to its end."""
        ...

    def pieces(self, data: memoryview | bytes) -> Iterator[bytes]:
        """Yield what the next bytes unpack to, a bounded piece at a time. Raises SourceUnavailable."""
        ...


class Gzip:
    """A stream of gzip."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._part = zlib.decompressobj(_GZIP)
        self._fed = False

    @property
    def ended(self) -> bool:
        """Whether the last part came to its end."""
        return self._part.eof and self._fed

    def pieces(self, data: memoryview | bytes) -> Iterator[bytes]:
        """Yield what the next bytes unpack to, at most a MiB at a time. Raises SourceUnavailable."""
        while data:
            if self._part.eof:
                self._part = zlib.decompressobj(_GZIP)
            self._fed = True
            try:
                piece = self._part.decompress(data, _STEP)
            except zlib.error:
                raise _refused(self._title, "gzip") from None
            data = self._part.unused_data if self._part.eof else self._part.unconsumed_tail
            if piece:
                yield piece


class Zstd:
    """A stream of zstd."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._library = _zstd()
        self._part = self._begin()
        self._fed = False

    @property
    def ended(self) -> bool:
        """Whether the last part came to its end."""
        return bool(self._part.eof) and self._fed

    def pieces(self, data: memoryview | bytes) -> Iterator[bytes]:
        """Yield what the next bytes unpack to, at most a MiB at a time. Raises SourceUnavailable."""
        while data or not (self._part.needs_input or self._part.eof):
            if self._part.eof:
                self._part = self._begin()
            self._fed = True
            try:
                piece = self._part.decompress(data, _STEP)
            except self._library.ZstdError:
                raise _refused(self._title, "zstd") from None
            data = self._part.unused_data if self._part.eof else b""
            if piece:
                yield piece

    def _begin(self) -> Any:
        return self._library.ZstdDecompressor(options={self._library.DecompressionParameter.window_log_max: _WINDOW})


# By the ending of a packed tar's name.
INFLATERS: dict[str, type[Gzip] | type[Zstd]] = {".gz": Gzip, ".zst": Zstd}


def is_packed(archive: str) -> bool:
    """Whether a tar of this name must be unpacked before it is read."""
    return archive.endswith(tuple(INFLATERS))


def inflater(archive: str, title: str) -> Inflater:
    """The decoder for a tar of this name, which `is_packed`; `title` names the source in errors."""
    return INFLATERS[archive[archive.rindex(".") :]](title)


def _zstd() -> Any:
    """The standard library's module, or its backport: both have the same names."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _refused(title: str, packer: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"`{title}` has a packed tar that is not packed by {packer}", "ask its publisher to push it again"
    )
