"""The interface of every source of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Companions:
    """Things that a registry keeps beside a model's weights: its settings in the form of Ollama's `params`, and texts.

    `template` is a Go template, `messages` are turns (`role`, `content`) with which every chat begins. `card` is a
    quality card, unchecked. `left_out` names parts that are not fetched, with their bytes. `adapters` names the GGUF
    files, not in `names()`, of adapters that change the weights. `draft` is the name of the GGUF file of a model that
    guesses its next words, "" without one. `signatures` are Sigstore bundles, as they came.
    `as_published`: the registry has one file for each tag, so no level is
    chosen: it is taken as it is.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    template: str = ""
    licenses: tuple[str, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[tuple[str, int], ...] = ()
    adapters: tuple[str, ...] = ()
    draft: str = ""
    signatures: tuple[bytes, ...] = ()
    as_published: bool = False


class FileReader(Protocol):
    """A file read once, front to back, by one thread.

    All methods raise SourceUnavailable, and DigestMismatch as soon as the bytes cannot be those declared, at the latest
    in `finish`: before that has returned, nothing made of the bytes may be kept for good.
    """

    def readinto(self, target: memoryview) -> None:
        """Fill `target` (writable bytes) with the next bytes."""

    def state(self) -> bytes | None:
        """The `state` with which `Source.open` goes on from here; None where it can only begin at byte 0."""

    def finish(self) -> None:
        """Read the rest, and compare the digest of the whole with the declared one."""

    def close(self) -> None:
        """Close the file."""


class Source(Protocol):
    """The files of one model at one moment, readable by range. Used by one thread at a time, but for `read`.

    `title` names it to people, `url` is where it can be found again, `revision` pins its content (empty for a folder,
    which has none). `owner` is who published it, "" where the model's name does not say so. All methods raise
    SourceUnavailable when the source fails or has no such file.
    """

    title: str
    revision: str
    url: str
    owner: str

    @property
    def companions(self) -> Companions:
        """The things beside the weights; fetched when they are asked for."""

    def names(self) -> list[str]:
        """Paths of all files, relative to the model's folder, with `/` between their parts."""

    def size(self, name: str) -> int:
        """Length in bytes."""

    def digest(self, name: str) -> str | None:
        """`sha256:…` or `git-sha1:…` as the source declares it, None where it declares nothing."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`; for headers and small files."""

    def stamp(self, name: str) -> str:
        """A text that changes whenever the file does: a digest, or inode, length and time."""

    def open(self, name: str, offset: int = 0, state: bytes = b"") -> FileReader:
        """A reader of the file from `offset` on; `state` is an earlier reader's state there, b"" at the beginning."""

    def close(self) -> None:
        """Close connections and files."""
