"""One request over HTTP, made so that a large body costs little and nothing secret leaves its origin.

`http.client` on blocking sockets of our own: a body is received straight into the caller's buffer (half the CPU time of
aiohttp, measured), and another thread can end any wait by shutting the socket down. Redirects are answers here
(`registry/net/locate.py` follows them); proxies are used. There are no cookies, compression, caches or HTTP/2.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterable, Mapping
from http.client import HTTPException, HTTPResponse

from registry.net.address import HttpAddress
from registry.net.dialing import Link, Sockets, dial
from registry.net.network import Network

# The most of an unwanted body, in bytes, that is read to keep its connection; beyond that a new one is cheaper.
_LEFTOVER = 1 << 16
# Methods that may be sent twice without harm (RFC 9110 §9.2.2).
_IDEMPOTENT = ("GET", "HEAD", "PUT", "DELETE")


class Response:
    """An answer whose body is still to come."""

    def __init__(self, response: HTTPResponse, link: Link) -> None:
        self._response, self._link = response, link
        self.status, self.headers = response.status, response.headers
        self.public = link.public
        self.readinto = response.readinto

    def discard(self) -> None:
        """Skip the rest of the body: a small one is read, and the connection stays; else the connection is closed."""
        with contextlib.suppress(OSError, HTTPException):
            if self._response.length is not None and self._response.length <= _LEFTOVER:
                self._response.read()
        if not self._response.isclosed():
            self._response.close()
            self._link.connection.close()


class HttpClient:
    """The connections of one thread, at most one per origin; `abort` and `interrupt` may be called from any thread."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._links: dict[tuple[str, str, int], Link] = {}
        self._sockets = Sockets()

    def send(
        self,
        method: str,
        address: HttpAddress,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes | memoryview] | None = None,
        *,
        public: bool = False,
    ) -> Response:
        """Send a request and read the answer's head; redirects are answers.

        public: refuse to connect to a private address (a redirect from a public hub must not reach into this network).
        Raises OSError and HTTPException for trouble that may pass, SourceUnavailable for what will not; `close` the
        client then. A request that may not be sent twice, as one whose body comes in parts (then `headers` say its
        length), goes over a new connection. The other side may be closing an old one at this moment, and nobody could
        tell whether it had read the request.
        """
        link = self._links.get(address.origin)
        if link and link.connection.sock and method in _IDEMPOTENT and (body is None or isinstance(body, bytes)):
            try:
                return self._exchange(link, method, address, headers, body)
            except (ConnectionError, ssl.SSLError, HTTPException):
                # The other side may close an idle connection at any time. So this is no failure: a new one is made.
                self._close(link)
        elif link:
            self._close(link)
        link = self._links[address.origin] = dial(self._network, self._sockets, address, public)
        return self._exchange(link, method, address, headers, body)

    def abort(self) -> None:
        """End whatever the thread waits for, at once; it sees an OSError, and so does each later request."""
        self._sockets.abort()

    def interrupt(self) -> None:
        """End what the thread waits for now; it may begin anew."""
        self._sockets.interrupt()

    def close(self) -> None:
        """Close all connections, also half-made ones; by the owning thread."""
        for link in list(self._links.values()):
            self._close(link)
        self._sockets.close_all()

    def _exchange(
        self,
        link: Link,
        method: str,
        address: HttpAddress,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes | memoryview] | None,
    ) -> Response:
        common = {"Host": address.netloc, "Accept-Encoding": "identity", "User-Agent": self._network.agent}
        everything = {**common, **link.headers, **headers}
        try:
            link.connection.request(method, link.prefix + address.target, body, everything)
        except (BrokenPipeError, ConnectionResetError):
            if not body:
                raise
            # Whoever refuses a body before it is whole has answered already, and the answer says why.
        link.response = link.connection.getresponse()
        self._network.answered.set()
        return Response(link.response, link)

    def _close(self, link: Link) -> None:
        if link.response:
            # An answer that ends with its connection keeps the socket open for itself.
            link.response.close()
        link.connection.close()
        self._sockets.close(link.socket)
        self._links = {origin: other for origin, other in self._links.items() if other is not link}
