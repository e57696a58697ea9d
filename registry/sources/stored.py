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
from registry.sources.base import Companions
from registry.sources.layers import Descriptor, companions, sort
from registry.sources.local import DeclaredFolder

_LONGEST_MANIFEST = 4 << 20


class _Manifest(msgspec.Struct):
    layers: list[Descriptor]


class StoredModel(DeclaredFolder):
    """The files of one model. `revision` is the digest of its manifest."""

    def __init__(self, reference: Reference, revision: str = "") -> None:
        """Raises AccessDenied, ModelNotFound (also for another `revision`), SourceUnavailable."""
        place = Path(reference.location)
        data = _read(place)
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if revision not in ("", found):
            raise ModelNotFound(f"`{place}` has changed")
        self._sorted = sort(layers_of(data, place), reference.location)
        if self._sorted.archives:
            raise SourceUnavailable(f"`{place}` has its files in a tar", "pull it from its registry")
        files = {name.rpartition("/")[2]: layer for name, layer in self._sorted.files.items()}
        self._layers = self._sorted.adapters | files
        super().__init__(place.parents[4] / "blobs", str(place), {n: each.digest for n, each in self._layers.items()})
        self._listed = list(files)
        self._names, self.revision = list(self._layers), found

    def names(self) -> list[str]:
        """Names of the files; adapters beside the weights have none here."""
        return list(self._listed)

    def size(self, name: str) -> int:
        """Length in bytes. Raises SourceUnavailable, also where the manifest says another one."""
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
