"""`POST /lm/default`: which level the bare name of a model means."""

from __future__ import annotations

import asyncio

from aiohttp import web

from registry.errors import BadName
from registry.names import parse
from registry.words import AUTO
from server.access.callers import caller_of
from server.api.fields import KnownFields
from server.api.request import LOG_NOTE, ModelBody, answer, read, visible_model
from server.services import SERVICES


async def default(request: web.Request) -> web.Response:
    """`POST /lm/default`: a name with a level pins that level, `NAME:auto` ends this, a bare name only asks."""
    body = await read(request, ModelBody, KnownFields())
    request[LOG_NOTE] = name = body.model_name
    library = request.app[SERVICES].library
    reference = parse(name)
    automatic = AUTO in (reference.level, (reference.name.tag or "").lower())
    bare = name[: -len(AUTO) - 1] if automatic else name
    caller = caller_of(request)
    model = await visible_model(request, bare)
    shown = model.key.tagged(None).display
    if parse(shown).name.tag is not None:
        raise BadName(f"`{shown}` means its tag `latest`, as at every registry", "name the tag that you want")
    if automatic:
        await asyncio.to_thread(library.store.unpin, model.key)
    elif await library.meaning(name) is None:
        await asyncio.to_thread(library.store.pin, model)
    meaning = await library.meaning(shown)
    assert meaning is not None
    return answer(
        request,
        {
            "model": meaning.bare.display,
            "default": meaning.name.display,
            "reason": meaning.reason,
            "others": [] if caller.limited else meaning.others,
        },
    )
