"""Limits of connections: how many are open at once, and how long the first headers may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

HEADER_SECONDS = 10.0
MAX_CONNECTIONS = 1024


class Connections:
    """The open connections of one daemon: a protocol factory, as `loop.create_server` takes it."""

    def __init__(self, server: Callable[[], asyncio.Protocol]) -> None:
        self._server = server
        self.open = 0

    def __call__(self) -> Connection:
        """The protocol of one new connection."""
        return Connection(self, self._server())


class Connection(asyncio.Protocol):
    """Passes everything on to aiohttp's handler, but closes connections above the limit, and after slow first headers.

    aiohttp's own keep-alive timer covers the later requests of a connection.
    """

    def __init__(self, connections: Connections, handler: asyncio.Protocol) -> None:
        self._connections = connections
        self._handler = handler
        self._timer: asyncio.TimerHandle | None = None
        self._tail = b""
        self._in_headers = True
        self._refused = connections.open >= MAX_CONNECTIONS

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer of the first headers."""
        transport = cast(asyncio.Transport, transport)
        if self._refused:
            transport.abort()
            return
        self._connections.open += 1
        self._timer = asyncio.get_running_loop().call_later(HEADER_SECONDS, transport.abort)
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Stop the timer at the empty line that ends the headers, which two packets may share."""
        if self._in_headers:
            text = self._tail + data
            self._tail = text[-3:]
            if b"\r\n\r\n" in text and self._timer is not None:
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
        """Count one connection less."""
        if self._refused:
            return
        self._connections.open -= 1
        if self._timer is not None:
            self._timer.cancel()
        self._handler.connection_lost(exc)
