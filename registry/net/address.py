"""URLs of sources, taken apart: only HTTP, no passwords, no letters that a request line may not hold."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from registry.errors import SourceUnavailable

_PORTS = {"http": 80, "https": 443}


class HttpAddress(NamedTuple):
    """A URL taken apart: lower-case scheme and host, explicit port, quoted path with its query."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, url: str) -> HttpAddress:
        """Raises SourceUnavailable for all but `http` and `https` URLs with a host and without user or password."""
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS[parts.scheme]
        except (ValueError, KeyError):
            raise SourceUnavailable("the source names an address that is no HTTP URL") from None
        if not parts.hostname or parts.username is not None:
            raise SourceUnavailable("the source names an address without a host, or with a password in it")
        target = parts.path or "/"
        if parts.query:
            target += "?" + parts.query
        return cls(parts.scheme, parts.hostname, port, quote(target, safe="/%:=&?~#+!$,;'@()*[]"))

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: a token stays within them (RFC 6454)."""
        return self[:3]

    @property
    def netloc(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def join(self, location: str) -> HttpAddress:
        """Where a Location header leads from here."""
        try:
            return HttpAddress.parse(urljoin(f"{self.scheme}://{self.netloc}{self.target}", location))
        except ValueError:
            raise SourceUnavailable("the source names an address that is no URL") from None
