"""HTTP GET for sources: one origin that is trusted with a token, redirects by hand, a few retries.

What the standard library's client leaves to us, and peers got wrong (facts/reliability.md §1, C7 to C9):
the token goes to the exact origin (scheme, host, port) of the endpoint and to no other, whatever a redirect says; a
redirect never leads from https to http, nor from a public address to one of the local network; bodies are asked for
uncompressed, and whoever reads one says how much it may be.
"""

from __future__ import annotations

import http.client
import ipaddress
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from registry.errors import AccessDenied, SourceUnavailable

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 6  # in a row without progress
PAUSE = 0.5  # seconds before the second attempt; doubles
LONGEST_PAUSE = 30.0
_HOPS = 5
_LONGEST_NOTE = 64 << 10  # of a redirect's body, read so that its connection can be used again
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

Result = TypeVar("Result")
Origin = tuple[str, str, int]


class Passing(Exception):
    """Trouble that may be gone at the next attempt; `after` is how many seconds the server asks us to wait."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of an answer; the body is read inside the `with` that gave it."""

    status: int
    headers: http.client.HTTPMessage
    body: http.client.HTTPResponse

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, empty at the end. Raises Passing when the connection breaks before the announced end."""
        with _passing():
            data = self.body.read(size)
        if not data and self.body.length:
            raise Passing("the connection was closed early")
        return data

    def read_all(self, limit: int) -> bytes:
        """The whole body. Raises SourceUnavailable when it is longer than `limit` bytes, Passing."""
        parts = []
        while data := self.read(limit + 1):
            parts.append(data)
            limit -= len(data)
            if limit < 0:
                raise SourceUnavailable("the source's answer is longer than it may be")
        return b"".join(parts)


class Web:
    """Requests on behalf of one source. Connections are kept for the next request; used by one thread at a time."""

    def __init__(self, endpoint: str, token: str, proxy: str) -> None:
        """Raises AccessDenied for a token that cannot be one. `proxy` is not used for this machine itself."""
        if not re.fullmatch(r"[!-~]*", token):
            raise AccessDenied("the token of the hub holds characters that no token has", "set `HF_TOKEN` again")
        self.endpoint = endpoint.rstrip("/")
        self._trusted = _origin(urlsplit(endpoint))
        self._token = token
        self._proxy = urlsplit(proxy) if proxy else None
        self._idle: dict[Origin, http.client.HTTPConnection] = {}
        self._public = False

    @property
    def host(self) -> str:
        """The endpoint's host, for messages."""
        return self._trusted[1]

    def close(self) -> None:
        """Close the connections that wait for another request."""
        for connection in self._idle.values():
            connection.close()
        self._idle.clear()

    @contextmanager
    def get(self, url: str, start: int = 0, end: int | None = None) -> Iterator[Answer]:
        """The answer to one GET, after redirects, of the bytes from `start` up to `end` where these are given.

        Raises Passing for what a later attempt may bring, SourceUnavailable for redirects that must not be followed.
        """
        byte_range = f"bytes={start}-{'' if end is None else end - 1}" if start or end is not None else None
        for _ in range(_HOPS + 1):
            origin = _origin(urlsplit(url))
            connection, response = self._request(url, origin, byte_range)
            try:
                answer = _checked(response)
                if response.status not in _REDIRECTS:
                    yield answer
                    return
                url = self._redirected(url, response.headers.get("Location", ""))
                answer.read(_LONGEST_NOTE)
            finally:
                self._put_back(origin, connection, response)
        raise SourceUnavailable(f"`{self.host}` redirects for ever")

    def _put_back(
        self, origin: Origin, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        """Keep the connection for the next request if its answer was read to the end."""
        reusable = response.isclosed() and not response.will_close and origin not in self._idle
        response.close()
        if reusable and connection.sock is not None:
            self._idle[origin] = connection
        else:
            connection.close()

    def _request(
        self, url: str, origin: Origin, byte_range: str | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        parts = urlsplit(url)
        headers = {"Accept-Encoding": "identity", "User-Agent": "lm"}
        if byte_range:
            headers["Range"] = byte_range
        if self._token and origin == self._trusted:
            headers["Authorization"] = f"Bearer {self._token}"
        target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        through = self._proxy is not None and parts.scheme == "http" and not _is_here(origin[1])
        kept = self._idle.pop(origin, None)
        for connection in [kept, None] if kept else [None]:
            connection = connection or self._connect(origin)
            try:
                with _passing():
                    connection.request("GET", url if through else target, headers=headers)
                    return connection, connection.getresponse()
            except BaseException as error:
                connection.close()
                # A kept connection may have been closed by the other side meanwhile: that is no failure.
                if connection is not kept or not isinstance(error, Passing):
                    raise
        raise AssertionError("not reached")

    def _connect(self, origin: Origin) -> http.client.HTTPConnection:
        scheme, host, port = origin
        proxy = None if _is_here(host) else self._proxy
        address = (host, port) if proxy is None else (proxy.hostname or "", proxy.port or 80)
        connection: http.client.HTTPConnection
        if scheme == "https":
            connection = http.client.HTTPSConnection(*address, timeout=TIMEOUT, context=ssl.create_default_context())
            if proxy is not None:
                connection.set_tunnel(host, port)
        else:
            connection = http.client.HTTPConnection(*address, timeout=TIMEOUT)
        with _passing():
            connection.connect()
        if proxy is None:
            self._judge(origin, connection)
        return connection

    def _judge(self, origin: Origin, connection: http.client.HTTPConnection) -> None:
        """Refuse a peer of the local network when the endpoint is a public one; before anything is sent to it."""
        address = ipaddress.ip_address(connection.sock.getpeername()[0].partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if origin == self._trusted:
            self._public = address.is_global
        elif self._public and not address.is_global:
            connection.close()
            raise SourceUnavailable(f"`{self.host}` redirects to the local network, which is not followed")

    def _redirected(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
            _origin(parts)
        except ValueError:
            raise SourceUnavailable(f"`{self.host}` redirects to what is no address") from None
        allowed = ("https",) if urlsplit(url).scheme == "https" else ("https", "http")
        if not location or parts.scheme not in allowed or not parts.hostname or "@" in parts.netloc:
            raise SourceUnavailable(f"`{self.host}` redirects to an address that is not followed")
        return target


def persist(action: Callable[[], Result], what: str) -> Result:
    """Do `action` until it succeeds, a few times if it raises Passing. Raises SourceUnavailable, naming `what`."""
    patience = Patience(what)
    while True:
        try:
            return action()
        except Passing as trouble:
            patience.wait(trouble)


class Patience:
    """Counts failures in a row and waits longer after each."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._failures = 0

    def progress(self) -> None:
        """Something went well: count anew."""
        self._failures = 0

    def wait(self, trouble: Passing) -> None:
        """Sleep before the next attempt. Raises SourceUnavailable when there were enough of them."""
        self._failures += 1
        if self._failures >= ATTEMPTS:
            raise SourceUnavailable(f"{self.what} cannot be read: {trouble}", "check the network, then pull again")
        pause = PAUSE * 2 ** (self._failures - 1) * random.uniform(0.8, 1.2)
        time.sleep(min(max(pause, trouble.after), LONGEST_PAUSE))


def _checked(response: http.client.HTTPResponse) -> Answer:
    if response.status in _PASSING:
        after = response.headers.get("Retry-After", "")
        raise Passing(
            f"the server answers {response.status}", float(after) if re.fullmatch(r"[0-9]{1,6}", after) else 0.0
        )
    return Answer(response.status, response.headers, response)


@contextmanager
def _passing() -> Iterator[None]:
    """Troubles of the network become Passing; a certificate that is not believed stays one."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise SourceUnavailable(f"the certificate of the server is not trusted: {error.verify_message}") from None
    except TimeoutError:
        raise Passing(f"no answer within {TIMEOUT:.0f} s") from None
    except socket.gaierror as error:
        raise Passing(f"the host's address cannot be found ({error.strerror})") from None
    except OSError as error:
        raise Passing(error.strerror or str(error) or type(error).__name__) from None
    except http.client.HTTPException as error:
        raise Passing(f"the answer is not HTTP or was cut off ({type(error).__name__})") from None


def _origin(url: SplitResult) -> Origin:
    return url.scheme, url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _is_here(host: str) -> bool:
    return host == "localhost" or re.fullmatch(r"127(\.[0-9]{1,3}){3}|::1", host) is not None
