"""Limits of connections: how many are open at once, in all and from one machine, and how long headers may take."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import cast

from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from server.access.peers import peer_at

HEADER_SECONDS = 10.0
MAX_CONNECTIONS = 1024
# So that one machine cannot take all of them.
MAX_FROM_ONE = 512


class Connections:
    """The open connections of one daemon: a protocol factory, as `loop.create_server` takes it."""

    def __init__(self, server: Callable[[], RequestHandler]) -> None:
        self._server = server
        self._open: dict[Connection, None] = {}  # the longest idle first
        self._from: Counter[str] = Counter()

    def __call__(self) -> Connection:
        """The protocol of one new connection."""
        return Connection(self, self._server())

    def enter(self, connection: Connection) -> bool:
        """Count a new connection; where there are too many, the longest idle one is closed for it. False if none is."""
        peer = connection.peer
        if len(self._open) >= MAX_CONNECTIONS or self._from[peer] >= MAX_FROM_ONE:
            crowd = self._from[peer] >= MAX_FROM_ONE
            idle = (each for each in self._open if each.idle and (not crowd or each.peer == peer))
            if (oldest := next(idle, None)) is None:
                return False
            oldest.close()
            self.leave(oldest)
        self._open[connection] = None
        self._from[peer] += 1
        return True

    def heard(self, connection: Connection) -> None:
        """Move a connection that sent something behind all others."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def leave(self, connection: Connection) -> None:
        """Count one connection less, if it is counted."""
        if connection in self._open:
            del self._open[connection]
            self._from[connection.peer] -= 1
            if not self._from[connection.peer]:
                del self._from[connection.peer]


class Connection(asyncio.Protocol):
    """Passes everything on to aiohttp's handler, but closes connections above the limits, and after slow headers.

    aiohttp's own keep-alive timer covers a connection between two requests, on which nothing comes.
    """

    def __init__(self, connections: Connections, handler: RequestHandler) -> None:
        self.peer = ""
        self._connections = connections
        self._handler = handler
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    @property
    def idle(self) -> bool:
        """Whether no request is answered, and none waits: headers may still be incomplete."""
        return self._handler._current_request is None and not self._handler._messages

    def close(self) -> None:
        """End it at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer of the first headers."""
        self._transport = transport = cast(asyncio.Transport, transport)
        self.peer = peer_at(transport).name
        self._refused = not self._connections.enter(self)
        if self._refused:
            transport.abort()
            return
        self._handler.connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Give the headers of a request that has begun some seconds to be complete."""
        self._connections.heard(self)
        self._handler.data_received(data)
        self._end_broken_body()
        if not self.idle:
            self._stop_timer()
        elif self._timer is None:
            self._await_headers()

    def eof_received(self) -> None:
        """Pass on."""
        self._handler.eof_received()

    def pause_writing(self) -> None:
        """Pass on."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count one connection less."""
        self._stop_timer()
        self._connections.leave(self)
        if not self._refused:
            self._handler.connection_lost(exc)

    def _end_broken_body(self) -> None:
        """End the wait for the rest of a body whose chunks are broken; aiohttp keeps that error for its next turn."""
        request, messages = self._handler._current_request, self._handler._messages
        broken = bool(messages) and isinstance(messages[-1][0], _ErrInfo)
        if broken and request is not None and not request.content.is_eof():
            request.content.set_exception(RequestPayloadError("the framing of the body is broken"))
            request.content.feed_eof()  # so that nobody waits for the rest after the answer
            self._handler.close()

    def _await_headers(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._late)

    def _late(self) -> None:
        self._timer = None
        if self.idle:
            self.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
