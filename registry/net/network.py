"""How a process reaches sources: token, proxies and rate, in one record for all of its transfers."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from registry.errors import AccessDenied
from registry.net.address import HttpAddress
from registry.net.hub import OLLAMA_URL, Hub
from registry.net.retries import DOWNLOADS, FETCHES, Retries

WINDOW = 256 << 20
# After this time (seconds) a user wants to know what is being waited for.
LONG_SECONDS = 5.0
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


class Limiter:
    """A rate in bytes/s that all transfers together keep to (a token bucket; `--limit-rate`)."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._due = time.monotonic()

    def take(self, count: int) -> float:
        """Count `count` bytes as received; returns the seconds to wait before receiving more."""
        with self._lock:
            now = time.monotonic()
            self._due = max(self._due, now - 0.05) + count / self.rate
            return self._due - now


class Authorization(Protocol):
    """The header `Authorization` for one registry, "" for none (`registry/net/authorize.py`)."""

    @property
    def header(self) -> str:
        """The value to send, "" for none."""

    def renew(self, refused: str, challenge: str) -> bool:
        """Get another value than `refused`, by the `WWW-Authenticate` of a refusal; whether there is one."""


@dataclass(frozen=True)
class Network:
    """How this process reaches sources; one for all of its transfers.

    token: sent as a bearer to the origin of the URL that was asked for, to no other.
    authorizer: the header `Authorization` for the origin of the URL that was asked for, in the place of a token.
    proxies: URL by scheme (`http`, `https`, `all`) and `no`, a comma-separated list of hosts to reach directly.
    private: hosts (`name` or `name:port`) that may have private addresses; None: the host that is asked first may.
    registries: hosts that the user named (`registry/net/reaching.py`). ollama: the URL of Ollama's registry.
    logins: `USER:PASSWORD` by the host of a registry.
    offline: connections to other machines are refused (`registry/net/dialing.py`).
    timeout: seconds without a byte after which a transfer counts as stalled.
    context: TLS settings, None for the system's.
    fetches, downloads: how often requests for small answers, and for files, are repeated.
    window: the greatest number of bytes for the buffers of a download.
    notice: called with a sentence for the user when a request fails and is repeated; from any thread.
    answered: set once any host has answered.
    """

    token: str | None = field(default=None, repr=False)
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    authorizer: Authorization | None = field(default=None, repr=False)
    private: frozenset[str] | None = None
    registries: tuple[str, ...] = ()
    ollama: str = OLLAMA_URL
    logins: Mapping[str, str] = field(default_factory=dict, repr=False)
    offline: bool = False
    limiter: Limiter | None = None
    timeout: float = 30.0
    context: ssl.SSLContext | None = None
    agent: str = "lm"
    fetches: Retries = FETCHES
    downloads: Retries = DOWNLOADS
    window: int = WINDOW
    notice: Callable[[str], None] = field(default=lambda text: None, repr=False)
    answered: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise AccessDenied("the token contains characters that no token has", "set `HF_TOKEN` to the token alone")

    def with_hub(self, hub: Hub) -> Network:
        """The same way to sources, with the token, the proxy and the registries of `hub`."""
        proxies = {"all": hub.proxy, "no": ",".join(hub.no_proxy)} if hub.proxy else {}
        return replace(
            self,
            token=hub.token or None,
            proxies=proxies,
            registries=hub.registries,
            ollama=hub.ollama,
            logins=dict(hub.logins),
            offline=hub.offline,
        )

    def with_authorizer(self, authorizer: Authorization) -> Network:
        """The same way, with a header `Authorization` by `authorizer`."""
        return replace(self, authorizer=authorizer)

    def may_be_private(self, address: HttpAddress, home: HttpAddress) -> bool:
        """Whether the host of `address` may have a private address; the file's own URL leads to `home`."""
        if self.private is None:
            return address.host == home.host
        return bool(self.private & {address.host, f"{address.host}:{address.port}"})

    @property
    def authorization(self) -> str:
        """The header `Authorization` for the origin of the URL that is asked for, "" for none."""
        if self.authorizer is not None:
            return self.authorizer.header
        return f"Bearer {self.token}" if self.token else ""

    @contextmanager
    def sign_of_life(self, name: str, host: str) -> Iterator[None]:
        """Tell the user that a request for the file `name` is being waited for, once that takes `LONG_SECONDS`."""
        text = f"`{host}` has not answered yet: waiting for `{name}`"
        timer = threading.Timer(LONG_SECONDS, self.notice, (text,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """The settings of connections over TLS."""
        return self.context or ssl.create_default_context()

    def proxy(self, address: HttpAddress) -> str | None:
        """The URL of the proxy for this address, None for a direct connection; this machine never has a proxy."""
        if re.fullmatch(r"localhost|127(\.[0-9]{1,3}){3}|::1", address.host):
            return None
        for item in self.proxies.get("no", "").lower().split(","):
            name, _, port = item.strip().lstrip("*").lstrip(".").partition(":")
            fits = address.host == name or address.host.endswith("." + name)
            if item.strip() == "*" or (name and fits and port in ("", str(address.port))):
                return None
        return self.proxies.get(address.scheme) or self.proxies.get("all")
