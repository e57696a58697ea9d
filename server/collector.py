"""A collector of records somewhere else, to which the audit log and samples of metrics are sent by POST.

An answer of 2xx acknowledges a body. Redirects are not followed: records go to the address that was named, and to no
other.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from registry.errors import AccessDenied, RegistryError, SourceUnavailable
from registry.net.address import HttpAddress
from registry.net.network import Network
from registry.net.retries import Unreachable
from registry.net.transport import HttpClient
from registry.store import fsops
from server.config import Config
from server.values import is_loopback

# The file of acknowledgements, beside the records.
SENT = "sent.json"
Mark = TypeVar("Mark")
_REFUSALS = (401, 403)
_TOKEN = re.compile(r"[\x21-\x7e]{0,4096}")


class Collector:
    """The way to one collector; `records` is the word for what it takes, as in "refuses the lines"."""

    def __init__(self, config: Config, url: str, token: str, records: str) -> None:
        """`token` is a bearer. Raises BadAddress, and AccessDenied for a token that cannot be sent."""
        self._address = HttpAddress.parse(url)
        if not _TOKEN.fullmatch(token):
            raise AccessDenied("the token contains characters that no token has", "name a file with the token alone")
        if token and self._address.scheme != "https" and not is_loopback(self._address.host):
            message = f"the token is not sent to `{self._address.host}` in plain text"
            raise AccessDenied(message, "name an address with `https`")
        proxies = {"all": config.proxy, "no": ",".join(config.no_proxy)} if config.proxy else {}
        self._network = Network(token=token or None, proxies=proxies, offline=config.offline)
        self._client = HttpClient(self._network)
        self._records = records

    def post(self, body: bytes, media: str, later: str, headers: Mapping[str, str] | None = None) -> None:
        """Send one body and return once it is acknowledged; `later` is the hint where that may come another time.

        Raises Offline, SourceUnavailable, AccessDenied.
        """
        sent = {"Content-Type": media} | dict(headers or {})
        if self._network.authorization:
            sent["Authorization"] = self._network.authorization
        host = self._address.host
        try:
            reply = self._client.send("POST", self._address, sent, body)
            reply.discard()
        except (OSError, HTTPException) as error:
            why = error.why if isinstance(error, Unreachable) else getattr(error, "strerror", None) or str(error)
            why = why or type(error).__name__
            raise SourceUnavailable(f"the collector `{host}` cannot be reached: {why}", later) from None
        if reply.status in _REFUSALS:
            hint = "`--token-file FILE` names a file with the token that it wants"
            raise AccessDenied(f"the collector `{host}` refuses the {self._records}: HTTP {reply.status}", hint)
        if not 200 <= reply.status < 300:
            message = f"the collector `{host}` does not take the {self._records}: HTTP {reply.status}"
            raise SourceUnavailable(message, later)

    def close(self) -> None:
        """End the connection."""
        self._client.close()


class SentUnknown(RegistryError):
    """It cannot be read what a collector has."""

    code = "sent_unknown"


def read_sent(folder: Path, mark: Callable[[Any], Mark]) -> dict[str, Mark]:
    """Up to where each collector, by its URL, has acknowledged the records of a folder; `mark` reads one such note.

    Raises OSError, SentUnknown for a file that cannot be understood.
    """
    path = folder / SENT
    try:
        return {str(url): mark(value) for url, value in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        hint = "remove it to send all once more"
        raise SentUnknown(f"`{path}` does not tell what was sent", hint) from None


def write_sent(folder: Path, notes: Mapping[str, str | int]) -> None:
    """Keep such notes. Raises OSError."""
    fsops.replace(folder / SENT, json.dumps(dict(notes)).encode())


@contextlib.contextmanager
def only_sender(lock: Path, command: str) -> Iterator[None]:
    """Be the one sender, by a lock. Raises SourceUnavailable where another `command` is at work, and OSError."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SourceUnavailable(f"another `{command}` is at work", "wait until it has ended") from None
        yield
    finally:
        os.close(descriptor)
