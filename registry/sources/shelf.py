"""A repository of a registry, or of another lm, that is read byte for byte: manifests, and blobs by their digests.

    GET {base}/v2/{path}/manifests/{tag or digest}
    GET {base}/v2/{path}/blobs/{digest}
    GET {base}/v2/_catalog, GET {base}/v2/{path}/tags/list

`lm pull` makes a model of a registry's files (`oci.py`). Here a model is taken as it is, so that it has the same
digest on every box.
"""

from __future__ import annotations

from http.client import HTTPMessage
from typing import TypeVar
from urllib.parse import quote

import msgspec

from registry import digest
from registry.errors import AccessDenied, DigestMismatch, ModelNotFound, RegistryError, SourceUnavailable
from registry.net.address import HttpAddress
from registry.net.authorize import Authorizer
from registry.net.locate import Remote
from registry.net.network import Network
from registry.net.reaching import base_url, is_loopback, toward
from registry.sources.layers import Descriptor, check
from registry.sources.remote import RemoteFiles
from registry.store.manifest import LONGEST, Layer

_ACCEPT = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"


Shape = TypeVar("Shape", bound=msgspec.Struct)


class _Catalog(msgspec.Struct):
    repositories: list[str] = []


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class RegistryShelf(RemoteFiles):
    """The repository `path` of a registry at `host`, "" to ask for its catalogue alone. Close it after use."""

    owner = ""

    def __init__(self, host: str, path: str, network: Network) -> None:
        """Raises AccessDenied for a host that is not asked (`registry/net/reaching.py`), SourceUnavailable."""
        self._base = base_url(network, host)
        network = toward(network, self._base)
        self._login = Authorizer(network, self._base, f"repository:{path}:pull" if path else "", network.logins)
        super().__init__(network.with_authorizer(self._login))
        self._path = path
        self.title = f"{host}/{path}" if path else host
        self._layers: dict[str, Layer] = {}

    @property
    def trusted(self) -> bool:
        """Whether nobody on the way can change what is said: over TLS, or on this machine."""
        address = HttpAddress.parse(self._base)
        return address.scheme == "https" or is_loopback(address.host)

    def manifest(self, wanted: str) -> bytes:
        """A manifest by its tag or digest. Raises AccessDenied, ModelNotFound, SourceUnavailable, DigestMismatch."""
        url = f"{self._base}/v2/{quote(self._path, safe='/:')}/manifests/{quote(wanted, safe=':')}"
        data = self._fetcher.document(url, f"the manifest of `{self.title}`", LONGEST, self._refused, _ACCEPT)
        if wanted.startswith("sha256:") and digest.of(data) != wanted:
            raise DigestMismatch(f"the manifest of `{self.title}` does not hash to `{wanted[:19]}`", "try again")
        return data

    def expect(self, layer: Layer) -> None:
        """Note a blob that is read by its digest from now on. Raises SourceUnavailable for one that may not be."""
        check(Descriptor(layer.media_type, layer.digest, layer.size), self.title)
        self._layers[layer.digest] = layer

    def listed(self) -> list[tuple[str, str]]:
        """Paths and tags of everything that the registry lists. Raises as `manifest`."""
        found = []
        for path in self._listing("_catalog", _Catalog).repositories:
            tags = self._listing(f"{quote(path, safe='/:')}/tags/list", _Tags).tags
            found += [(path, tag) for tag in tags or []]
        return found

    def size(self, name: str) -> int:
        """Length in bytes of an expected blob."""
        return self._layers[name].size

    def digest(self, name: str) -> str:
        """The digest of a blob, which is its name."""
        return name

    def _remote(self, name: str) -> Remote:
        url = f"{self._base}/v2/{quote(self._path, safe='/:')}/blobs/{name}"
        return Remote(url, self._layers[name].size, name[:19], self._refused)

    def _listing(self, path: str, shape: type[Shape]) -> Shape:
        url = f"{self._base}/v2/{path}?n=1000"
        data = self._fetcher.document(url, f"the list of `{self.title}`", LONGEST, self._refused)
        try:
            return msgspec.json.decode(data, type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise SourceUnavailable(f"`{self.title}` does not answer as a registry does") from None

    def _refused(self, status: int, headers: HTTPMessage) -> RegistryError:
        host = HttpAddress.parse(self._base).netloc
        if status in (404, 410):
            return ModelNotFound(f"`{host}` has no `{self.title}`", "check its spelling and its tag")
        if status in (401, 403):
            return AccessDenied(f"`{host}` does not let us read `{self.title}`", f"`lm login {host}`")
        return SourceUnavailable(f"`{host}` answers {status} for `{self.title}`", "try again later")
