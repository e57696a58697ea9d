"""Who may speak to the daemon: which names it answers to, which pages and peers, how many connections, how slow.

A browser carries requests for pages of other origins, and a name that an attacker's DNS points at loopback makes such a
page "same origin": so the Host must be ours, the Origin must be known, and what the browser itself calls cross-site is
refused (facts/reliability.md C6). Programs that are no browsers send neither and are not touched.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import socket
from collections.abc import Callable
from typing import cast

from aiohttp import web

from server.config import Config, is_loopback
from server.errors import Forbidden, Unauthorized

HEADER_SECONDS = 10.0
MAX_CONNECTIONS = 1024

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?")
# Origins of programs on this machine that show pages: no website can have one.
_PROGRAMS = ("app://*", "tauri://*", "vscode-webview://*", "vscode-file://*")
# Names that no public name server answers for, so that no page can be rebound to them.
_PRIVATE = re.compile(r"[a-z0-9_-]+|.+\.(?:local|internal|home\.arpa)")


class Doorkeeper:
    """The rules of one configuration; `admit` raises Forbidden or Unauthorized."""

    def __init__(self, config: Config) -> None:
        self._wide = not is_loopback(config.host)
        self._origins = [_pattern(origin) for origin in (*_PROGRAMS, *config.origins)]
        self._names = {config.host.lower(), socket.gethostname().lower()} - {"0.0.0.0", "::", ""}
        # Who trusts the pages of a host trusts its name too: so a daemon in a network gets the name it is asked by.
        named = (origin.rstrip("/").lower() for origin in config.origins)
        self._names |= {found[1] for origin in named if (found := _ORIGIN.fullmatch(origin))}
        self._key = config.api_key.encode()

    def admit(self, request: web.Request) -> None:
        """Check Host, Origin, Sec-Fetch-Site and API key, in this order."""
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            raise Forbidden(
                f"the daemon does not answer to the host `{', '.join(hosts)[:100]}`",
                "ask it as `localhost`, or start it with the name in LM_ORIGINS, such as `http://NAME`",
            )
        origin = request.headers.get("Origin")
        if origin is not None and not self.knows(origin):
            raise Forbidden(
                f"pages of `{origin[:100]}` may not use this daemon", "start it with that in LM_ORIGINS to allow them"
            )
        if origin is None and request.headers.get("Sec-Fetch-Site") == "cross-site" and not self.knows("null"):
            raise Forbidden("another site's page may not use this daemon", "it has to send its Origin")
        if self._key and request.method != "OPTIONS" and not self._has_key(request):
            raise Unauthorized("this daemon wants its API key", "send `Authorization: Bearer KEY` (LM_API_KEY)")

    def knows(self, origin: str) -> bool:
        """Whether a page of this origin may ask: pages of this machine, and those that the settings name."""
        origin = origin.lower()
        found = _ORIGIN.fullmatch(origin)
        here = found is not None and (is_loopback(found[1]) or found[1].endswith(".localhost"))
        return here or any(pattern.fullmatch(origin) for pattern in self._origins)

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].lower().strip("[]").rstrip(".")
        if is_loopback(name) or name.endswith(".localhost") or name in self._names:
            return True
        return self._wide and (_is_address(name) or _PRIVATE.fullmatch(name) is not None)

    def _has_key(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._key)


def require_loopback(request: web.Request, what: str) -> None:
    """Raise Forbidden unless the peer is on this machine."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    if not peer or not ipaddress.ip_address(str(peer[0]).split("%")[0]).is_loopback:
        raise Forbidden(f"{what} is for clients on this machine", "ask on the machine itself")


def _pattern(origin: str) -> re.Pattern[str]:
    """What matches an origin of the settings: `*` is any, within one the rest of a name or port."""
    if origin == "*":
        return re.compile(r"[^\s]+")
    place = re.sub(r"(?<=[^:/])/+$", "", origin.lower())
    return re.compile(re.escape(place).replace(r"\*", r"[a-z0-9_.:\[\]-]*"))


def _is_address(name: str) -> bool:
    """A page cannot be rebound to an address: only names can be pointed elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Gate:
    """Counts the connections of one daemon and makes the protocol that stands before aiohttp's handler."""

    def __init__(self, server: Callable[[], asyncio.Protocol]) -> None:
        self._server = server
        self.open = 0

    def __call__(self) -> Connection:
        """A protocol for one connection, as `loop.create_server` wants it."""
        return Connection(self, self._server())


class Connection(asyncio.Protocol):
    """Passes everything on to aiohttp's handler, but refuses one connection too many and slow first headers.

    Later requests of a connection fall under aiohttp's own keep-alive timer.
    """

    def __init__(self, gate: Gate, handler: asyncio.Protocol) -> None:
        self._gate = gate
        self._handler = handler
        self._timer: asyncio.TimerHandle | None = None
        self._tail = b""
        self._in_headers = True
        self._refused = gate.open >= MAX_CONNECTIONS

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer for the headers."""
        transport = cast(asyncio.Transport, transport)
        if self._refused:
            transport.abort()
            return
        self._gate.open += 1
        self._timer = asyncio.get_running_loop().call_later(HEADER_SECONDS, transport.abort)
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Stop the timer at the empty line that ends the headers, wherever the packets are cut."""
        if self._in_headers:
            seen = self._tail + data
            self._tail = seen[-3:]
            if b"\r\n\r\n" in seen and self._timer is not None:
                self._timer.cancel()
                self._in_headers = False
        self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on."""
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        """Pass on."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        if self._refused:
            return
        self._gate.open -= 1
        if self._timer is not None:
            self._timer.cancel()
        self._handler.connection_lost(exc)
