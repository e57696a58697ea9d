"""lm's routes about the daemon itself."""

from __future__ import annotations

import os
from collections.abc import Callable

from aiohttp import web

from server.access.callers import CALLER, caller_of
from server.access.peers import require_loopback
from server.config import OLLAMA_VERSION, VERSION
from server.http.wire import reply
from server.services import SERVICES

# Begins the daemon's end.
STOP = web.AppKey("stop", Callable[[], None])  # type: ignore[var-annotated,arg-type]


async def health(request: web.Request) -> web.Response:
    """`GET /health`: that the daemon lives, who it is, and who asks; without the key only that it lives."""
    if request.get(CALLER) is None:
        return reply({"status": "ok"})
    caller, loaded = caller_of(request), request.app[SERVICES].pool.loaded()
    names = [worker.model.name for worker, _ in loaded if caller.sees(worker.model)]
    who = {"role": caller.role, "caller": caller.title}
    return reply({"status": "ok", "version": VERSION, "api": OLLAMA_VERSION, "pid": os.getpid(), "loaded": names} | who)


async def shutdown(request: web.Request) -> web.Response:
    """`POST /lm/shutdown`: end the daemon, from this machine only."""
    require_loopback(request, "stopping the daemon")
    request.app[STOP]()
    return reply({"status": "stopping", "pid": os.getpid()})
