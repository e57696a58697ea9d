"""One request over HTTP, made so that a large body costs little and nothing secret leaves its origin.

`http.client` on blocking sockets of our own: a body is received straight into the caller's buffer (half the CPU time of
aiohttp, measured), and another thread can end any wait by shutting the socket down. Redirects are not followed here;
proxies are. What it does not do: cookies, compression, caches, HTTP/2.

`Network` holds what all transfers of a process share, `Client` one thread's connections.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from registry.errors import AccessDenied, SourceUnavailable

CONNECT_TIMEOUT = 10.0
# Of a body that nobody wants, so much is read to keep the connection; beyond that a new one is cheaper.
_LEFTOVER = 1 << 16
_PORTS = {"http": 80, "https": 443}
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")
_NO_NETWORK = (errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL)


class Unreachable(OSError):
    """No connection to `host`, which is the source's or a proxy's, came to be; with no sign of a network, `offline`."""

    def __init__(self, host: str, problem: OSError) -> None:
        unnamed = isinstance(problem, socket.gaierror)
        self.host = host
        self.offline = problem.errno == socket.EAI_AGAIN if unnamed else problem.errno in _NO_NETWORK
        why = "nothing arrived for too long" if isinstance(problem, TimeoutError) else problem.strerror or str(problem)
        if unnamed:
            why = "no name server answers" if self.offline else "its name is not known"
        super().__init__(problem.errno, f"`{host}` cannot be reached: {why[:1].lower()}{why[1:]}")


class Limiter:
    """A rate in bytes/s that all transfers together keep to (a token bucket; `--limit-rate`)."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._due = time.monotonic()

    def take(self, count: int) -> float:
        """Note `count` bytes as received; returns the seconds to wait before asking for more."""
        with self._lock:
            now = time.monotonic()
            self._due = max(self._due, now - 0.05) + count / self.rate
            return self._due - now


class Address(NamedTuple):
    """A URL taken apart: lower-case scheme and host, explicit port, quoted path with its query."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, url: str) -> Address:
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
        """What a token is bound to."""
        return self[:3]

    @property
    def netloc(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def join(self, location: str) -> Address:
        """Where a Location header leads from here."""
        try:
            return Address.parse(urljoin(f"{self.scheme}://{self.netloc}{self.target}", location))
        except ValueError:
            raise SourceUnavailable("the source names an address that is no URL") from None


@dataclass(frozen=True)
class Network:
    """How this process reaches sources; one for all of its transfers.

    token: sent as a bearer to the origin of the URL that was asked for, to no other.
    proxies: URL by scheme (`http`, `https`, `all`) and `no`, a comma-separated list of hosts to reach directly.
    timeout: seconds without a byte after which a transfer counts as stalled.
    context: TLS settings, None for the system's.
    notice: hears a sentence when something fails and is tried again; from any thread.
    answered: set once anything was heard of any host.
    """

    token: str | None = field(default=None, repr=False)
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    limiter: Limiter | None = None
    timeout: float = 30.0
    context: ssl.SSLContext | None = None
    agent: str = "lm"
    notice: Callable[[str], None] = field(default=lambda text: None, repr=False)
    answered: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise AccessDenied("the token contains characters that no token has", "set `HF_TOKEN` to the token alone")

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """What connections over TLS use."""
        return self.context or ssl.create_default_context()

    def proxy(self, address: Address) -> str | None:
        """The proxy's URL for this address, None to go directly; to this machine itself one always goes directly."""
        if re.fullmatch(r"localhost|127(\.[0-9]{1,3}){3}|::1", address.host):
            return None
        for item in self.proxies.get("no", "").lower().split(","):
            name, _, port = item.strip().lstrip("*").lstrip(".").partition(":")
            fits = address.host == name or address.host.endswith("." + name)
            if item.strip() == "*" or (name and fits and port in ("", str(address.port))):
                return None
        return self.proxies.get(address.scheme) or self.proxies.get("all")


@dataclass(eq=False)
class _Link:
    """A connection. `public`: the other side has a public address, as far as we can see."""

    connection: HTTPConnection
    socket: socket.socket
    public: bool
    prefix: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    response: HTTPResponse | None = None


class Reply:
    """An answer whose body is still to come."""

    def __init__(self, response: HTTPResponse, link: _Link) -> None:
        self._response, self._link = response, link
        self.status, self.headers = response.status, response.headers
        self.public = link.public
        self.readinto = response.readinto

    def discard(self) -> None:
        """Be done with it: the connection is kept if the rest of the body is small, closed otherwise."""
        with contextlib.suppress(OSError, HTTPException):
            if self._response.length is not None and self._response.length <= _LEFTOVER:
                self._response.read()
        if not self._response.isclosed():
            self._response.close()
            self._link.connection.close()


class Client:
    """The connections of one thread, at most one per origin; `abort` may be called from any thread."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._links: dict[tuple[str, str, int], _Link] = {}
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._aborted = False

    def get(self, address: Address, headers: Mapping[str, str], public: bool = False) -> Reply:
        """Send a GET and read the answer's head; redirects are answers.

        public: refuse to connect to a private address (a redirect from a public hub must not reach into this network).
        Raises OSError and HTTPException for trouble that may pass, SourceUnavailable for what will not; `close` the
        client then.
        """
        link = self._links.get(address.origin)
        if link and link.connection.sock:
            try:
                return self._exchange(link, address, headers)
            except (ConnectionError, ssl.SSLError, HTTPException):
                # A connection that was kept may have been closed by the other side meanwhile: no fault of anybody's.
                self._close(link)
        return self._exchange(self._dial(address, public), address, headers)

    def abort(self) -> None:
        """End whatever the thread waits for, at once; it sees an OSError."""
        self._aborted = True
        self.interrupt()

    def interrupt(self) -> None:
        """End what the thread waits for now; it may begin anew. From any thread."""
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    # SSLSocket's own shutdown would take the TLS object away under the reading thread.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all connections, those too that came to nothing; by the owning thread."""
        for link in list(self._links.values()):
            self._close(link)
        for sock in list(self._sockets):
            self._drop(sock)

    def _exchange(self, link: _Link, address: Address, headers: Mapping[str, str]) -> Reply:
        common = {"Host": address.netloc, "Accept-Encoding": "identity", "User-Agent": self._network.agent}
        link.connection.request("GET", link.prefix + address.target, headers={**common, **link.headers, **headers})
        link.response = link.connection.getresponse()
        self._network.answered.set()
        return Reply(link.response, link)

    def _close(self, link: _Link) -> None:
        if link.response:
            # An answer that ends with its connection keeps the socket open for itself.
            link.response.close()
        link.connection.close()
        self._drop(link.socket)
        self._links = {origin: other for origin, other in self._links.items() if other is not link}

    def _dial(self, address: Address, public: bool) -> _Link:
        if old := self._links.get(address.origin):
            self._close(old)
        url = self._network.proxy(address)
        if url is None:
            sock = self._connect(address.host, address.port)
            extra: dict[str, str] = {}
            is_public = _is_public(sock.getpeername()[0])
            if public and not is_public:
                raise SourceUnavailable(f"`{address.host}` was reached by a redirect and has a private address")
        else:
            sock, extra = self._through(url, address)
            is_public = False
        if address.scheme == "https":
            sock = self._secure(sock, address)
        connection = HTTPConnection(address.host, address.port)
        connection.sock, connection.auto_open = sock, 0
        prefix = f"http://{address.netloc}" if url and address.scheme == "http" else ""
        link = _Link(connection, sock, is_public, prefix, extra if prefix else {})
        self._links[address.origin] = link
        return link

    def _drop(self, sock: socket.socket) -> None:
        sock.close()
        with self._lock:
            self._sockets.discard(sock)

    def _keep(self, sock: socket.socket, instead_of: socket.socket | None = None) -> None:
        with self._lock:
            self._sockets.discard(instead_of or sock)
            self._sockets.add(sock)
            if self._aborted:
                raise ConnectionAbortedError("the transfer was ended")

    def _connect(self, host: str, port: int) -> socket.socket:
        """A TCP connection to the first address of `host` that answers. Raises Unreachable, SourceUnavailable."""
        problem = OSError("it has no address")
        try:
            places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unreachable(host, error) from error
        except UnicodeError:
            raise SourceUnavailable(f"`{host[:80]}` is no name of a host", "check `HF_ENDPOINT`") from None
        for family, kind, protocol, _, place in places:
            sock = socket.socket(family, kind, protocol)
            self._keep(sock)
            try:
                sock.settimeout(min(CONNECT_TIMEOUT, self._network.timeout))
                sock.connect(place)
                sock.settimeout(self._network.timeout)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                self._drop(sock)
                problem = error
            else:
                return sock
        raise Unreachable(host, problem) from problem

    def _through(self, url: str, address: Address) -> tuple[socket.socket, dict[str, str]]:
        """A connection by way of a proxy, and the headers that the proxy wants with each plain request."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise SourceUnavailable(f"the proxy for `{address.scheme}` is not an `http://` URL", "correct the proxy")
        headers = {}
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        sock = self._connect(parts.hostname, parts.port or 80)
        if address.scheme == "https":
            host = f"[{address.host}]" if ":" in address.host else address.host
            lines = [f"CONNECT {host}:{address.port} HTTP/1.1", f"Host: {host}:{address.port}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            sock.sendall("\r\n".join([*lines, "", ""]).encode())
            response = HTTPResponse(sock, method="CONNECT")
            response.begin()
            response.close()
            if response.status != 200:
                raise SourceUnavailable(f"the proxy `{parts.hostname}` answers {response.status}", "check the proxy")
        return sock, headers

    def _secure(self, sock: socket.socket, address: Address) -> socket.socket:
        wrapped = self._network.tls.wrap_socket(sock, server_hostname=address.host, do_handshake_on_connect=False)
        self._keep(wrapped, instead_of=sock)
        try:
            wrapped.do_handshake()
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message
            raise SourceUnavailable(
                f"the certificate of `{address.host}` is not valid: {reason}", "check the clock and `SSL_CERT_FILE`"
            ) from None
        return wrapped


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_global


def retry_after(headers: HTTPMessage) -> float:
    """Seconds that a Retry-After header asks for, 0 without one (RFC 9110 §10.2.3: a number or a date)."""
    from email.utils import parsedate_to_datetime

    value = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
