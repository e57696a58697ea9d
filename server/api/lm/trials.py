"""`POST /lm/trials`: what tunes measured of the levels of a model on this machine, kept for the next one."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from aiohttp import web

from runtime.processor import processor_name
from server.api.fields import KnownFields
from server.api.request import LOG_NOTE, answer, read, require_name, resolve_model
from server.errors import BadBody
from server.services import SERVICES
from server.tuning.goals import METRICS
from server.tuning.records import Trials

_LONGEST = 80


class TrialsBody(msgspec.Struct):
    """The body of `/lm/trials`: a `model` that is here. With `made` its `figures` are added.

    `made` is a level and an effort, such as `Q4_K_M best`. `figures` are numbers by names: `kl`, `tokens/s`, `memory`
    and the others that goals of `lm tune` may have.
    """

    model: str = ""
    made: Annotated[str, msgspec.Meta(max_length=_LONGEST)] = ""
    figures: dict[str, float] = {}


async def trials(request: web.Request) -> web.Response:
    """`POST /lm/trials`: the figures that are known, by level and effort."""
    body = await read(request, TrialsBody, KnownFields())
    request[LOG_NOTE] = require_name(body.model)
    if unknown := [name for name in body.figures if name not in METRICS]:
        raise BadBody(f"`{unknown[0][:40]}` is no figure of a tune", f"known are {', '.join(METRICS)}", "figures")
    services = request.app[SERVICES]
    model = await resolve_model(request, body.model)
    bare, content = model.key.tagged(None).display, str(model.own.get("content") or model.blob_digest)
    kept = Trials(services.config.cache, processor_name())

    def work() -> dict[str, dict[str, float]]:
        if body.made and body.figures:
            kept.add(bare, content, body.made, body.figures)
        return kept.of(bare, content)

    return answer(request, {"model": bare, "trials": await asyncio.to_thread(work)})
