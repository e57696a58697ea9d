"""A model in the store of Ollama on this disk (or of another lm): its manifest, and blobs named by their digests.

    ROOT/manifests/HOST/NAMESPACE/MODEL/TAG
    ROOT/blobs/sha256-…

The bytes are checked by the digests, since nobody knows what became of another program's files.
"""

from __future__ import annotations

import hashlib
import os
import stat
from functools import cached_property
from pathlib import Path

import msgspec

from registry.errors import AccessDenied, DigestMismatch, ModelNotFound, SourceUnavailable
from registry.names import Reference
from registry.sources.archive import Archives, Inside
from registry.sources.base import Companions, FileReader
from registry.sources.layers import Descriptor, companions, sort
from registry.sources.local import DeclaredFolder
from registry.sources.unpacking import Unpacking

_LONGEST_MANIFEST = 4 << 20


class _Manifest(msgspec.Struct):
    layers: list[Descriptor]


class StoredModel(DeclaredFolder):
    """The files of one model. `revision` is the digest of its manifest."""

    def __init__(self, reference: Reference, revision: str = "", unpacking: Unpacking | None = None) -> None:
        """Raises as `OciModel`; ModelNotFound also where the manifest is gone."""
        place = Path(reference.location)
        data = _read(place)
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if revision not in ("", found):
            raise ModelNotFound(f"`{place}` has changed")
        self._sorted = sort(layers_of(data, place), reference.location)
        self._layers = self._sorted.adapters | self._sorted.drafts | self._sorted.archives
        super().__init__(place.parents[4] / "blobs", str(place), {})
        self._names, self.revision = list(self._layers), found
        self._archives: Archives | None = None
        self._archives = Archives(self._sorted, self, unpacking)
        self._layers |= {name: each for name, each in self._archives.files.items() if isinstance(each, Descriptor)}
        self._names = list(self._layers)

    def names(self) -> list[str]:
        """Names of the files; adapters and a draft beside the weights have none here."""
        return list(self._archives.files if self._archives else ())

    def digest(self, name: str) -> str | None:
        """`sha256:…`; None for a file in a tar, which has none of its own."""
        return self._layers[name].digest if name in self._layers else None

    def stamp(self, name: str) -> str:
        """As in `Folder`, for a file in a tar with its place there. Raises SourceUnavailable."""
        archives, inside = self._inside(name)
        return archives.stamp(inside) if archives and inside else super().stamp(name)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises SourceUnavailable."""
        archives, inside = self._inside(name)
        return archives.read(name, inside, offset, size) if archives and inside else super().read(name, offset, size)

    def open(self, name: str, offset: int = 0, state: bytes = b"") -> FileReader:
        """The file from `offset` on, compared with its digest; a file in a tar is compared by the digest of the tar."""
        archives, inside = self._inside(name)
        return archives.open(inside, offset, state) if archives and inside else super().open(name, offset, state)

    def read_blob(self, name: str, offset: int, size: int) -> bytes:
        """As `read`, of a tar. Raises SourceUnavailable."""
        return super().read(name, offset, size)

    def open_blob(self, name: str, offset: int = 0, state: bytes = b"") -> FileReader:
        """As `open`, of a tar."""
        return super().open(name, offset, state)

    def close(self) -> None:
        """Close the files."""
        if self._archives:
            self._archives.close()
        super().close()

    def size(self, name: str) -> int:
        """Length in bytes. Raises SourceUnavailable, also where the manifest says another one."""
        archives, inside = self._inside(name)
        if archives and inside:
            return inside.size
        size = super().size(name)
        if name in self._layers and size != self._layers[name].size:
            raise SourceUnavailable(f"a blob of `{self.title}` has {size:,} bytes, and its manifest says otherwise")
        return size

    @cached_property
    def companions(self) -> Companions:  # type: ignore[override]
        """The things beside the weights. Raises SourceUnavailable, DigestMismatch."""
        return companions(self._sorted, self._read_setting, self.title)

    def place(self, name: str) -> Path:
        """The path of a blob."""
        return self._path / self._layers[name].digest.replace(":", "-")

    def _inside(self, name: str) -> tuple[Archives | None, Inside | None]:
        """The tars, and where a file lies in one of them; None for a file by itself."""
        return self._archives, self._archives.inside(name) if self._archives else None

    def _read_setting(self, layer: Descriptor) -> bytes:
        data = _read(self._path / layer.digest.replace(":", "-"))
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != layer.digest:
            raise DigestMismatch(f"a blob of `{self.title}` does not hash to its name", "its own program can mend it")
        return data


def layers_of(manifest: bytes, place: Path) -> list[Descriptor]:
    """The layers in a manifest. Raises SourceUnavailable."""
    try:
        return msgspec.json.decode(manifest, type=_Manifest).layers
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise SourceUnavailable(f"`{place}` is no manifest of a model") from None


def _read(path: Path) -> bytes:
    try:
        # A pipe in its place must not make us wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SourceUnavailable(f"`{path}` is no regular file")
            data = file.read(_LONGEST_MANIFEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(f"there is no `{path}`", "`lm list --found` shows what other programs have") from None
    except PermissionError:
        raise AccessDenied(f"the daemon may not read `{path}`", "give its user the right to read it") from None
    except OSError as error:
        raise SourceUnavailable(f"`{path}` cannot be read: {error.strerror}") from None
    if len(data) > _LONGEST_MANIFEST:
        raise SourceUnavailable(f"`{path}` is longer than {_LONGEST_MANIFEST:,} bytes")
    return data
