"""Connections to an origin, directly or by way of a proxy, over TLS where its URL says so; any wait can be ended."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import unquote, urlsplit

from registry.errors import Offline, SourceUnavailable
from registry.net.address import HttpAddress
from registry.net.network import Network
from registry.net.reaching import is_loopback
from registry.net.retries import Unreachable

CONNECT_TIMEOUT = 10.0


@dataclass(eq=False)
class Link:
    """A connection to an origin. `public`: its address is public; False behind a proxy, where we do not see it.

    prefix, headers: for a plain request by way of a proxy: it names the whole URL, and may have the proxy's password.
    response: the last answer; its body may still be to come.
    """

    connection: HTTPConnection
    socket: socket.socket
    public: bool
    prefix: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    response: HTTPResponse | None = None


class Sockets:
    """All sockets of one thread, so that any other thread can end what it waits for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._aborted = False

    def add(self, sock: socket.socket, instead_of: socket.socket | None = None) -> None:
        """Add a socket, in the place of `instead_of` if there is one. Raises ConnectionAbortedError after `abort`."""
        with self._lock:
            self._open.discard(instead_of or sock)
            self._open.add(sock)
            if self._aborted:
                raise ConnectionAbortedError("the transfer was ended")

    def close(self, sock: socket.socket) -> None:
        """Close a socket; by the owning thread."""
        sock.close()
        with self._lock:
            self._open.discard(sock)

    def close_all(self) -> None:
        """Close all sockets; by the owning thread."""
        for sock in list(self._open):
            self.close(sock)

    def abort(self) -> None:
        """End every wait, now and from now on; from any thread."""
        self._aborted = True
        self.interrupt()

    def interrupt(self) -> None:
        """End every wait of this moment; from any thread."""
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    # SSLSocket's own shutdown would take the TLS object away under the reading thread.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)


def dial(network: Network, sockets: Sockets, address: HttpAddress, public: bool) -> Link:
    """A connection to the origin of `address`; with `public` not to a private address.

    Every connection of lm to a source is made here. Offline none is made but to this machine, and no other name is
    looked up. Raises Unreachable and other OSErrors for trouble that may pass, Offline, SourceUnavailable for what will
    not.
    """
    if network.offline and not is_loopback(address.host):
        raise Offline.of(address.host)
    url = network.proxy(address)
    if url is None:
        check = partial(_check_place, network, address.host, public)
        sock = _connect(network, sockets, address.host, address.port, check)
        extra: dict[str, str] = {}
        reached_public = is_public(sock.getpeername()[0])
    else:
        sock, extra = _through(url, network, sockets, address)
        reached_public = False
    if address.scheme == "https":
        sock = _secure(network, sockets, sock, address)
    connection = HTTPConnection(address.host, address.port)
    connection.sock, connection.auto_open = sock, 0
    prefix = f"http://{address.netloc}" if url and address.scheme == "http" else ""
    return Link(connection, sock, reached_public, prefix, extra if prefix else {})


def is_public(address: str) -> bool:
    """Whether an IP address is reachable from the whole internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_global


def _check_place(network: Network, host: str, public: bool, address: str) -> None:
    """Raise SourceUnavailable or Offline for an address of `host` that may not be asked, before anything is sent.

    Link-local ones are for neighbours on the cable: clouds answer there with the machine's secrets.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    if network.offline and not found.is_loopback:  # the name `localhost`, by a file of hosts that says otherwise
        raise Offline.of(host)
    if found.is_link_local:
        raise SourceUnavailable(f"`{host}` has a link-local address", "no models are fetched from there")
    if public and not is_public(address):
        raise SourceUnavailable(
            f"`{host}` has a private address, where models are not looked for",
            "a private host is asked only where it is the hub's own (`HF_ENDPOINT`), or `LM_REGISTRIES` names it",
        )


def _connect(
    network: Network, sockets: Sockets, host: str, port: int, check: Callable[[str], None] = lambda address: None
) -> socket.socket:
    """A TCP connection to the first address of `host` that answers; `check` raises for one that may not be asked.

    Raises Unreachable, SourceUnavailable.
    """
    problem = OSError("it has no address")
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(host, error) from error
    except UnicodeError:
        raise SourceUnavailable(f"`{host[:80]}` is no name of a host", "check `HF_ENDPOINT`") from None
    for family, kind, protocol, _, place in places:
        check(str(place[0]))
        sock = socket.socket(family, kind, protocol)
        sockets.add(sock)
        try:
            sock.settimeout(min(CONNECT_TIMEOUT, network.timeout))
            sock.connect(place)
            sock.settimeout(network.timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sockets.close(sock)
            problem = error
        else:
            return sock
    raise Unreachable(host, problem) from problem


def _through(
    url: str, network: Network, sockets: Sockets, address: HttpAddress
) -> tuple[socket.socket, dict[str, str]]:
    """A connection by way of the proxy at `url`, and the headers that the proxy wants with each plain request."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise SourceUnavailable(f"the proxy for `{address.scheme}` is not an `http://` URL", "correct the proxy")
    headers = {}
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    sock = _connect(network, sockets, parts.hostname, parts.port or 80)
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


def _secure(network: Network, sockets: Sockets, sock: socket.socket, address: HttpAddress) -> socket.socket:
    """The connection over TLS, the certificate checked. Raises OSError, SourceUnavailable."""
    wrapped = network.tls.wrap_socket(sock, server_hostname=address.host, do_handshake_on_connect=False)
    sockets.add(wrapped, instead_of=sock)
    try:
        wrapped.do_handshake()
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message
        raise SourceUnavailable(
            f"the certificate of `{address.host}` is not valid: {reason}", "check the clock and `SSL_CERT_FILE`"
        ) from None
    return wrapped
