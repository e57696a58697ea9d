"""`GET /lm/found`: the models that other programs have on this machine."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from aiohttp import web

from registry.sources.found import find_models
from server.access.peers import require_loopback
from server.http.wire import reply
from server.services import SERVICES


async def found(request: web.Request) -> web.Response:
    """`GET /lm/found`: rows with `name` (for a pull), `program`, `title` and `size` in bytes."""
    require_loopback(request, "a list of other programs' models")
    stores = request.app[SERVICES].config.model_stores
    return reply({"models": [asdict(each) for each in await asyncio.to_thread(find_models, *stores)]})
