"""A model in an OCI registry, or in Ollama's, which answers the same routes: a manifest, and blobs by their digests.

    GET {base}/v2/{namespace}/{model}/manifests/{tag or digest}
    GET {base}/v2/{namespace}/{model}/blobs/{digest}                         large ones by redirect to another origin

The digest of the manifest pins the model. All of its blobs are checked by their digests. Source: the OCI distribution
specification, https://github.com/opencontainers/distribution-spec/blob/main/spec.md.
"""

from __future__ import annotations

import re
from functools import cached_property
from http.client import HTTPMessage

import msgspec

from registry import digest
from registry.errors import AccessDenied, DigestMismatch, ModelNotFound, RegistryError, SourceUnavailable
from registry.names import OLLAMA, Reference
from registry.net.address import HttpAddress
from registry.net.authorize import Authorizer
from registry.net.locate import Remote
from registry.net.network import Network
from registry.net.reaching import base_url, toward
from registry.sources.archive import Archives, Inside
from registry.sources.base import Companions, FileReader
from registry.sources.inflating import is_packed
from registry.sources.layers import Descriptor, check, companions, sort
from registry.sources.remote import RemoteFiles
from registry.sources.unpacking import Unpacking

_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_ACCEPT = ", ".join((*_MANIFESTS, *_INDEXES))
_LONGEST_MANIFEST = 4 << 20  # what a registry must take, by the specification
# Manifests that are read on the way through indexes to one that is a model.
_MOST_DOCUMENTS = 8
_PINNED = re.compile(r"sha256-([0-9a-f]{64})")
# Registries whose API has another host than their names.
_HOSTS = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


class _Document(msgspec.Struct, rename="camel"):
    """A manifest or an index."""

    schema_version: int = 0
    media_type: str = ""
    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None


class OciModel(RemoteFiles):
    """The files of one model in a registry. `revision` is the digest of its manifest."""

    owner = ""

    def __init__(
        self, reference: Reference, network: Network, revision: str = "", unpacking: Unpacking | None = None
    ) -> None:
        """Read the manifest, and the headers of tars; packed ones are unpacked.

        Without `unpacking` the files of a model with packed ones are not known. Raises AccessDenied, ModelNotFound
        (also where `revision` is gone), SourceUnavailable, DiskFull.
        """
        name = reference.name
        self._host = _HOSTS.get(name.host, name.host)
        self._base = network.ollama if name.host == OLLAMA else base_url(network, self._host)
        self._host = HttpAddress.parse(self._base).netloc
        network = toward(network, self._base)
        self._repository = f"{name.namespace}/{name.model}"
        self._login = Authorizer(network, self._base, f"repository:{self._repository}:pull", network.logins)
        super().__init__(network.with_authorizer(self._login))
        self.title, self.url = name.display, reference.origin
        tag = str(name.tag)
        pinned = _PINNED.fullmatch(tag)
        try:
            wanted = revision or (f"sha256:{pinned[1]}" if pinned else tag)
            self.revision, layers = self._find(wanted)
            self._sorted = sort(layers, self.title)
            self._unpacking = unpacking
            if unpacking or not any(map(is_packed, self._sorted.archives)):
                _ = self._archives
        except BaseException:
            self.close()
            raise

    @cached_property
    def _archives(self) -> Archives:
        """The files, those in tars among them. Raises as `__init__`."""
        return Archives(self._sorted, self, self._unpacking)

    def names(self) -> list[str]:
        """Names of the files, below the folder that all of them lie in. Raises SourceUnavailable."""
        return list(self._archives.files)

    def size(self, name: str) -> int:
        """Length in bytes as declared. Raises SourceUnavailable."""
        inside = self._inside(name)
        return inside.size if inside else self._blob(name).size

    def digest(self, name: str) -> str | None:
        """`sha256:…`; None for a file in a tar, which has none of its own. Raises SourceUnavailable."""
        return None if self._inside(name) else self._blob(name).digest

    def stamp(self, name: str) -> str:
        """The digest, for a file in a tar with its place there. Raises SourceUnavailable."""
        inside = self._inside(name)
        return self._archives.stamp(inside) if inside else self._blob(name).digest

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises as `RemoteFiles.read`."""
        inside = self._inside(name)
        return self._archives.read(name, inside, offset, size) if inside else super().read(name, offset, size)

    def open(self, name: str, offset: int = 0, state: bytes = b"") -> FileReader:
        """The file from `offset` on. One in a tar is checked by the digest of the tar, which is read whole for it."""
        inside = self._inside(name)
        return self._archives.open(inside, offset, state) if inside else super().open(name, offset, state)

    def read_blob(self, name: str, offset: int, size: int) -> bytes:
        """As `read`, of a tar. Raises as `RemoteFiles.read`."""
        return super().read(name, offset, size)

    def open_blob(self, name: str, offset: int = 0, state: bytes = b"") -> FileReader:
        """As `open`, of a tar."""
        return super().open(name, offset, state)

    def close(self) -> None:
        """Close connections and files."""
        if archives := self.__dict__.get("_archives"):
            archives.close()
        super().close()

    @cached_property
    def companions(self) -> Companions:
        """The things that the registry keeps beside the weights. Raises as `read`."""
        return companions(self._sorted, lambda layer: self.read(layer.digest, 0, layer.size), self.title)

    def _inside(self, name: str) -> Inside | None:
        archives: Archives | None = self.__dict__.get("_archives")  # while it is made, tars alone are read
        return archives.inside(name) if archives else None

    def _blob(self, name: str) -> Descriptor:
        archives: Archives | None = self.__dict__.get("_archives")
        found = archives.files.get(name) if archives else None
        beside = self._sorted.adapters | self._sorted.drafts | self._sorted.archives
        found = found or beside.get(name)
        if isinstance(found, Descriptor):
            return found
        for layer in (layer for layers in self._sorted.settings.values() for layer in layers):
            if layer.digest == name:
                return layer
        raise SourceUnavailable(f"`{self.title}` has no file `{name}`")

    def _remote(self, name: str) -> Remote:
        blob = self._blob(name)
        url = f"{self._base}/v2/{self._repository}/blobs/{blob.digest}"
        return Remote(url, blob.size, name, self._refused)

    def _find(self, wanted: str) -> tuple[str, list[Descriptor]]:
        """The digest of the manifest of a model, and its layers; through indexes, the first model that they list."""
        waiting = [wanted]
        for _ in range(_MOST_DOCUMENTS):
            if not waiting:
                break
            found, document = self._read_manifest(waiting.pop(0))
            if document.layers is not None:
                return found, document.layers
            nested = [check(each, self.title).digest for each in (document.manifests or [])[:_MOST_DOCUMENTS]]
            waiting = nested + waiting
        raise SourceUnavailable(f"`{self.title}` is a list of manifests, none of which is a model")

    def _read_manifest(self, wanted: str) -> tuple[str, _Document]:
        """A manifest by its tag or digest, and its digest. Raises as `__init__`, and DigestMismatch."""
        url = f"{self._base}/v2/{self._repository}/manifests/{wanted}"
        data = self._fetcher.document(url, f"the manifest of `{self.title}`", _LONGEST_MANIFEST, self._refused, _ACCEPT)
        found = digest.of(data)
        if wanted.startswith("sha256:") and found != wanted:
            raise DigestMismatch(f"the manifest of `{self.title}` does not hash to `{wanted[:19]}`", "pull again")
        try:
            document = msgspec.json.decode(data, type=_Document)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            document = _Document()
        if document.schema_version != 2 or (document.layers is None) == (document.manifests is None):
            raise SourceUnavailable(
                f"`{self._host}` does not answer as a registry does", f"is there a registry at {self._base}?"
            )
        return found, document

    def _refused(self, status: int, headers: HTTPMessage) -> RegistryError:
        if status in (404, 410):
            hint = "check its spelling" if self._base.endswith(OLLAMA) else "check its spelling and its tag"
            return ModelNotFound(f"`{self._host}` has no model `{self.title}`", hint)
        if status in (401, 403):
            if self._login.logged_in:
                return AccessDenied(f"`{self._host}` does not let this login read `{self.title}`", "see its settings")
            hint = f"it may be private, or not there: `lm login {self._host}`"
            if self._login.elsewhere:
                hint = f"it may be private; lm sends no login to `{self._login.elsewhere}`, which checks them"
            return AccessDenied(f"`{self._host}` does not let everybody read `{self.title}`", hint)
        return SourceUnavailable(f"`{self._host}` answers {status} for `{self.title}`", "try again later")
