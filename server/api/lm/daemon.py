"""lm's routes about the daemon itself."""

from __future__ import annotations

import os
from collections.abc import Callable

from aiohttp import web

from server.access.guard import KNOWN, require_loopback
from server.config import OLLAMA_VERSION, VERSION
from server.http.wire import reply
from server.services import SERVICES

# Begins the daemon's end.
STOP = web.AppKey("stop", Callable[[], None])  # type: ignore[var-annotated,arg-type]


async def health(request: web.Request) -> web.Response:
    """`GET /health`: that the daemon lives, and who it is; without the key only that it lives."""
    if not request[KNOWN]:
        return reply({"status": "ok"})
    loaded = [worker.model.name for worker, _ in request.app[SERVICES].pool.loaded()]
    return reply({"status": "ok", "version": VERSION, "api": OLLAMA_VERSION, "pid": os.getpid(), "loaded": loaded})


async def shutdown(request: web.Request) -> web.Response:
    """`POST /lm/shutdown`: end the daemon, from this machine only."""
    require_loopback(request, "stopping the daemon")
    request.app[STOP]()
    return reply({"status": "stopping", "pid": os.getpid()})
