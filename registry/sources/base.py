"""What a source of a model offers, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Source(Protocol):
    """The files of one model at one moment, readable by range. Used by one thread at a time.

    `title` names it to people, `url` is where it can be found again, `revision` pins its content (empty for a folder,
    which has none). All methods raise SourceUnavailable when the source fails or has no such file.
    """

    title: str
    revision: str
    url: str

    def names(self) -> list[str]:
        """Paths of all files, relative to the model's folder, with `/` between their parts."""

    def size(self, name: str) -> int:
        """Length in bytes."""

    def digest(self, name: str) -> str | None:
        """`sha256:…` or `git-sha1:…` as the source declares it, None where it declares nothing."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`; for headers and small files."""

    def stream(self, name: str) -> Iterator[bytes]:
        """The whole file once, in order. Raises DigestMismatch, at the latest after the last byte, when it is not
        what was declared: until the iterator has ended, nothing made of the bytes may be kept."""

    def close(self) -> None:
        """Let go of connections and files."""
