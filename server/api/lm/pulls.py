"""lm's routes about pulls: list the unfinished ones, and stop them or the models that they made."""

from __future__ import annotations

from contextlib import suppress

from aiohttp import web

from registry.errors import ModelNotFound
from registry.store.finding import is_meant
from server.access.callers import caller_of
from server.api.fields import KnownFields
from server.api.request import LOG_NOTE, ModelBody, answer, read
from server.http.wire import reply
from server.services import SERVICES


async def partials(request: web.Request) -> web.Response:
    """`GET /lm/partials`: pulls that are under way or paused, and how far they are."""
    caller = caller_of(request)
    return reply({"partials": await request.app[SERVICES].jobs.partials(caller.may_touch)})


class StopBody(ModelBody):
    """The body of `/lm/stop`: a model, at all its levels unless the name has one; or `all`."""

    all: bool = False


async def stop(request: web.Request) -> web.Response:
    """`POST /lm/stop`: pause pulls that are under way, and unload models, after the answers that are under way.

    Each of `models` has a `state`: `paused`, `stopped`, `stopping` (it still answers), or `not loaded`.
    """
    body = await read(request, StopBody, KnownFields())
    request[LOG_NOTE] = name = "" if body.all else body.model_name
    services = request.app[SERVICES]
    here, caller = await services.library.meant(name) if name else [], caller_of(request)
    if name:
        caller.require_listed(name, here)
    paused = await services.jobs.pause(name, installed=bool(here), may_touch=caller.may_touch)
    states = dict.fromkeys(paused, "paused")
    blobs = {model.blob_digest for model in here}  # a file that is here under two names is loaded once
    for adapter in (model for model in here if model.is_adapter):
        with suppress(ModelNotFound):
            blobs.add((await services.library.base(adapter)).blob_digest)  # an adapter is loaded with its base
    for model in services.pool.models():
        meant = not name or model.blob_digest in blobs or is_meant(name, model)
        if meant and caller.sees(model):
            states[model.name] = await services.pool.unload(model)
    if name and not states:
        here = here or [await services.library.find(name)]  # raises ModelNotFound, with what comes close
        states = {model.name: "not loaded" for model in here}
    rows = [{"model": each, "state": state} for each, state in states.items()]
    ends = {"paused": "paused" in states.values(), "stopped": bool({"stopped", "stopping"} & {*states.values()})}
    return answer(request, {"model": next(iter(states), ""), **ends, "models": rows})
