"""lm's routes about the daemon itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from aiohttp import web

from runtime.confinement import SWITCHED_OFF, Confinement, trial
from server.access.callers import CALLER, caller_of
from server.access.peers import require_loopback
from server.config import OLLAMA_VERSION, VERSION, Config
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
    bounds = _bounds(request.app[SERVICES].config, [worker.confinement for worker, _ in loaded])
    own = {"version": VERSION, "api": OLLAMA_VERSION, "pid": os.getpid(), "loaded": names}
    return reply({"status": "ok"} | own | who | bounds)


def _bounds(config: Config, workers: list[Confinement]) -> dict[str, Any]:
    """The daemon's own bounds: whether it asks other machines, and the walls around its workers."""
    walls = trial() if config.sandbox else Confinement(missing=(SWITCHED_OFF,))
    missing = {line for each in (walls, *workers) for line in each.missing}
    sandbox = {"landlock": walls.landlock, "seccomp": walls.seccomp, "missing": sorted(missing)}
    return {"offline": config.offline, "sandbox": sandbox}


async def shutdown(request: web.Request) -> web.Response:
    """`POST /lm/shutdown`: end the daemon, from this machine only."""
    require_loopback(request, "stopping the daemon")
    request.app[STOP]()
    return reply({"status": "stopping", "pid": os.getpid()})
