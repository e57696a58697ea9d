"""lm's routes about pulls: list the unfinished ones, and stop one or the model that it made."""

from __future__ import annotations

from aiohttp import web

from registry.errors import ModelNotFound
from registry.names import parse
from server.api.request import LOG_NOTE, ModelBody, is_installed
from server.http.wire import read_body, reply
from server.services import SERVICES


async def partials(request: web.Request) -> web.Response:
    """`GET /lm/partials`: pulls that are under way or paused, and how far they are."""
    return reply({"partials": await request.app[SERVICES].jobs.partials()})


async def stop(request: web.Request) -> web.Response:
    """`POST /lm/stop`: pause a pull that is under way; else unload a model, after the answers that are under way."""
    body = await read_body(request, ModelBody)
    request[LOG_NOTE] = body.model_name
    services = request.app[SERVICES]
    reference = parse(body.model_name)
    paused = await services.jobs.pause(reference, await is_installed(services, body.model_name))
    if paused:
        return reply({"model": paused, "paused": True, "stopped": False})
    try:
        model = await services.library.resolve(body.model_name)
    except ModelNotFound:
        if not services.pool.is_retired(reference.name):
            raise
        return reply({"model": body.model_name, "paused": False, "stopped": True})
    return reply({"model": model.name, "paused": False, "stopped": await services.pool.unload(model)})
