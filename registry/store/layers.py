"""Layers that a commit will make blobs: files that are written already, or small objects still in memory."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from registry import digest
from registry.errors import DigestMismatch, StoreDamaged
from registry.store import fsops, manifest
from registry.store.manifest import Layer


@dataclass(frozen=True)
class Staged:
    """A layer that a commit makes a blob. `content` is its file, in the folder of the ingest, or its bytes.

    `shared` is the state (`registry/store/sharing.py`) of a file that is another program's too, by a hard link or a
    symbolic one, from before its bytes were hashed; "" for a file of lm's own.
    """

    layer: Layer
    content: Path | bytes
    shared: str = ""

    @classmethod
    def file(cls, path: Path, media_type: str, sha256: str, size: int, shared: str = "") -> Staged:
        """A file of the ingest. `sha256` (hexadecimal) and `size` describe the bytes that its writer sent to it."""
        return cls(Layer(media_type, f"sha256:{sha256}", size), path, shared)

    @classmethod
    def json(cls, fields: dict[str, Any], media_type: str) -> Staged:
        """A JSON object: the config, the parameters."""
        data = manifest.encode(fields)
        return cls(Layer(media_type, digest.of(data), len(data)), data)

    @classmethod
    def text(cls, text: str, media_type: str) -> Staged:
        """A text: instructions, a licence."""
        data = text.encode()
        return cls(Layer(media_type, digest.of(data), len(data)), data)

    @classmethod
    def messages(cls, messages: Sequence[Mapping[str, str]], media_type: str) -> Staged:
        """A list of messages as JSON."""
        data = msgspec.json.encode(messages)
        return cls(Layer(media_type, digest.of(data), len(data)), data)

    def settle(self, folder: Path) -> Path:
        """Write the content to a file below the ingest's folder, unless it is one, and fsync it; returns the file.

        Raises DigestMismatch (another size than announced), StoreDamaged, OSError.
        """
        if isinstance(self.content, Path):
            path = self.content
            self._check(path)
        else:
            path = folder / f"layer-{self.layer.digest[-16:]}"
            fsops.unlink(path)
            fsops.write(path, self.content)
        fsops.fsync(path.resolve() if self.shared else path)
        return path

    def _check(self, path: Path) -> None:
        status = path.stat() if self.shared else path.lstat()
        if not stat.S_ISREG(status.st_mode) or (status.st_nlink != 1 and not self.shared):
            raise StoreDamaged("the file to commit is no ordinary file", "pull again")
        if status.st_size != self.layer.size:
            raise DigestMismatch(
                f"the file made has {status.st_size:,} bytes where {self.layer.size:,} were announced", "pull again"
            )
