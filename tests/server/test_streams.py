"""What the log says of streams that fail, and how long slow clients are borne."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from server.access import connections
from server.http import bodies
from tests.daemon import Daemon, allowed, put_model, wait_until


def test_a_stream_that_fails_is_logged_as_failed(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path, script={"die_after": 1}, env={"LM_CONTEXT": "256"}) as daemon:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
        daemon.post("/api/generate", {"model": "tiny"})
        assert daemon.get("/api/ps").json["models"][0]["context_length"] == 256  # as the setting says
        answer = daemon.post("/api/chat", body)
        assert answer.status == 200 and answer.lines[-1]["code"] == "worker_died"
        wait_until(lambda: "POST /api/chat 500" in daemon.log, 5)
        assert "worker_died" in daemon.log


class Anything(msgspec.Struct):
    value: Any = None


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that reads JSON bodies as the daemon does."""

    async def handle(request: web.Request) -> web.Response:
        try:
            await bodies.read_body(request, Anything)
        except bodies.BadBody as error:
            return web.Response(status=400, text=str(error))
        return web.Response(text="read")

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    assert runner.server is not None
    counted = connections.Connections(runner.server)
    server = await asyncio.get_running_loop().create_server(counted, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()
        await runner.cleanup()


HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


def test_the_headers_of_a_second_request_may_not_be_slow_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)

    async def ask() -> None:
        async with serving() as (reader, writer), asyncio.timeout(allowed(10)):
            writer.write(HEAD % 2 + b"{}")
            assert b"200 OK" in await reader.readuntil(b"read")
            await asyncio.sleep(0.3)  # a quiet connection stays
            writer.write(HEAD % 2 + b"{}")
            assert b"200 OK" in await reader.readuntil(b"read")
            writer.write(b"POST / HTTP/1.1\r\nHost: local")
            assert await reader.read() == b""

    asyncio.run(ask())


@pytest.mark.slow
def test_a_body_that_trickles_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "IDLE_SECONDS", 0.3)

    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % 1000)
        for _ in range(1000):
            writer.write(b" ")
            await asyncio.sleep(0.02)

    async def ask() -> None:
        async with serving() as (reader, writer), asyncio.timeout(allowed(10)):
            sending = asyncio.create_task(trickle(writer))
            assert b"400 Bad Request" in await reader.readuntil(b"too slowly")
            sending.cancel()

    asyncio.run(ask())
