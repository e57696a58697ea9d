"""One GGUF file at a URL, `https://…/x.gguf`, with the digest that the user may have added: `#sha256=…`.

The server's length, and its ETag or Last-Modified where it sends one, pin the content; a pull that goes on later begins
anew where they changed. Without a digest only the header is compared: it is read twice.
"""

from __future__ import annotations

import secrets
from urllib.parse import unquote, urldefrag, urlsplit

from registry.errors import ModelNotFound, SourceUnavailable
from registry.net.locate import Remote
from registry.net.network import Network
from registry.net.reaching import toward
from registry.sources.base import Companions
from registry.sources.remote import RemoteFiles


class FileAtUrl(RemoteFiles):
    """The file. `title` and `url` are without a query, which may hold a signature."""

    owner = ""
    companions = Companions()

    def __init__(self, url: str, network: Network, revision: str = "") -> None:
        """Ask how long it is. Raises ModelNotFound (also for another `revision`), AccessDenied, SourceUnavailable."""
        url, fragment = urldefrag(url)
        super().__init__(toward(network, url))
        self._digest = f"sha256:{fragment[-64:]}" if fragment else None
        self.title = self.url = url.partition("?")[0]
        self._name = unquote(urlsplit(url).path).rpartition("/")[2]
        self._place = Remote(url, -1, self._name)
        try:
            self._size, mark = self._fetcher.measure(self._place)
        except BaseException:
            self.close()
            raise
        self._place = Remote(url, self._size, self._name)
        self.revision = self._digest or mark
        if revision not in ("", self.revision):
            self.close()
            raise ModelNotFound(f"`{self.title}` has changed since the pull began")

    def names(self) -> list[str]:
        """The name of the file."""
        return [self._name]

    def size(self, name: str) -> int:
        """Length in bytes, as the server says. Raises SourceUnavailable."""
        return self._remote(name).size

    def digest(self, name: str) -> str | None:
        """`sha256:…` where the user gave it. Raises SourceUnavailable."""
        self._remote(name)
        return self._digest

    def stamp(self, name: str) -> str:
        """The digest, or the server's mark of the content; where it has none, no two are alike."""
        return f"{self.size(name)} {self.revision or secrets.token_hex(8)}"

    def _remote(self, name: str) -> Remote:
        if name != self._name:
            raise SourceUnavailable(f"`{self.title}` has no file `{name}`")
        return self._place
