"""One request to a daemon; its connection lasts as long as the answer is read."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from cli.errors import UNREACHABLE, Failure
from server.config import Config
from server.values import is_loopback, on_this_machine, socket_path

# Bytes of a file that are sent at once.
_BLOCK = 1 << 20


@contextmanager
def request(
    url: str, config: Config, method: str, path: str, body: Any = None, seconds: float | None = None, size: int = -1
) -> Iterator[HTTPResponse]:
    """The answer of the daemon at `url`, its body still to come.

    `body` is sent as JSON; a file as it is, in chunks, or with its length where `size` bytes are known.

    It carries the key of `config`, or the token by which a daemon knows the user who runs it.

    `seconds` limits each wait; None sets no limit, because a large model may load for minutes. Raises OSError,
    HTTPException.
    """
    raw = hasattr(body, "read")
    headers = {"Content-Type": "application/octet-stream" if raw else "application/json"}
    if key := config.api_key or _of_own(url, config, "token"):
        headers["Authorization"] = f"Bearer {key}"
    connection = _connection(url, config, seconds)
    try:
        headers |= {"Content-Length": str(size)} if size >= 0 else {}
        data = body if raw or body is None else json.dumps(body)
        try:
            connection.request(method, path, data, headers)
        except (BrokenPipeError, ConnectionResetError):
            if not raw:
                raise
            # A body that is refused before it is whole: the answer is there already, and says why.
        yield connection.getresponse()
    finally:
        connection.close()


class UnixConnection(HTTPConnection):
    """A connection over a Unix socket."""

    def __init__(self, path: str, seconds: float | None) -> None:
        super().__init__("localhost", timeout=seconds, blocksize=_BLOCK)
        self._path = path

    def connect(self) -> None:
        """Connect. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(url: str, config: Config, seconds: float | None) -> HTTPConnection:
    if path := socket_path(url):
        return UnixConnection(path, seconds)
    place = urlsplit(url)
    host = place.hostname or ""
    if config.offline and not on_this_machine(host):
        raise Failure(
            f"`offline` is set, so the daemon of `{host}` is not asked: lm connects to this machine alone",
            "leave LM_HOST out for the daemon of this machine, or `LM_OFFLINE=0` for this command",
            UNREACHABLE,
        )
    if place.scheme != "https":
        return HTTPConnection(host, place.port, timeout=seconds, blocksize=_BLOCK)
    return HTTPSConnection(host, place.port, timeout=seconds, context=_trust(url, host, config), blocksize=_BLOCK)


def _trust(url: str, host: str, config: Config) -> ssl.SSLContext:
    """Whom to trust: the certificates of `tls_ca`, or the system's. Raises OSError for a file that cannot be used.

    On this machine the daemon's own certificate is enough, whatever name is in it: only who has its key can show it.
    """
    own = (config.tls_cert or _of_own(url, config, "tls_cert")) if is_loopback(host) else ""
    context = ssl.create_default_context(cafile=own or config.tls_ca)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = not own
    return context


def _of_own(url: str, config: Config, name: str) -> str:
    """A note that the daemon of this home left for its own user, "" where it has none; "" for every other daemon."""
    try:
        record = json.loads(config.daemon_file.read_bytes())
        return str(record[name]) if record["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
