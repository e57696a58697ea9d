"""Requests that the daemon sends to itself: work in the name of a key, through the same door as any client's."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from aiohttp import web

from server.access.gate import Gate
from server.api.openai.batches.runner import OwnAnswer


class Inward:
    """Asks the daemon's own server over a pair of sockets that nobody else has."""

    def __init__(self, server: web.Server, gate: Gate) -> None:
        self._server = server
        self._gate = gate

    async def ask(self, owner: str, path: str, body: bytes) -> OwnAnswer | None:
        """The whole answer to a POST in the name of an owner; None where no key of the owner is valid any more.

        Cancelling closes the connection, which ends the work on the answer.
        """
        token = self._gate.keys.lend(owner)
        if token is None:
            return None
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(self._server, theirs)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            head = (
                f"POST {path} HTTP/1.1",
                "Host: localhost",
                "Connection: close",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
                f"Authorization: Bearer {token}",
            )
            writer.write("\r\n".join([*head, "", ""]).encode() + body)
            await writer.drain()
            return _parsed(await reader.read())
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def _parsed(answer: bytes) -> OwnAnswer:
    """An answer of known length: the daemon has no other where nothing is streamed. Raises ConnectionError."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    status, *rows = head.decode("latin-1").split("\r\n")
    parts = status.split(" ", 2)
    if not separator or len(parts) < 2 or not parts[1].isdigit():
        raise ConnectionError("the daemon closed the connection before it answered")
    pairs = (row.partition(":") for row in rows)
    return OwnAnswer(int(parts[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}, body)
